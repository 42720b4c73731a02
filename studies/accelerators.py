"""Several accelerators: a large case shared among them beforehand, and each of them a problem of its own.

Nothing passes between accelerators once the requests are shared out, so the shares are cases like any others, and
:func:`llmsched_env.evaluation.evaluate` runs them on as many processes or machines as there are. The whole takes as
long as the accelerator that ends last.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines.registry import entry
from llmsched_env.config import Scenario, whole
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import evaluate
from llmsched_env.offline import lb1_ns, lpt, round_robin
from llmsched_env.workload import Requests, workload
from llmsched_env.workload.protocol import check_case, check_num_requests

__all__ = ["CLIENTS", "METHOD", "SHARINGS", "SharedWorkload", "accelerators"]

SHARINGS = {"round_robin": "round robin", "lpt": "LPT"}
"""How requests are shared out, and what tables call it: in turn, which knows no lengths, or longest first."""

CLIENTS = 200
"""Of each accelerator."""

METHOD = "shared_lpt_lagrangian"
"""What each accelerator does with its share."""


@dataclass(frozen=True)
class SharedWorkload:
    """The cases of a workload, each shared among A accelerators: case A c + a is what accelerator a has of case c.

    Attributes:
        lengths: name of the workload.
        accelerators: A.
        num_requests: of a whole case.
        sharing: one of :data:`SHARINGS`.

    Raises:
        UnknownNameError: no such workload or sharing.
        ConfigError: a number out of range, or fewer requests than accelerators.
    """

    lengths: str
    accelerators: int
    num_requests: int
    sharing: str = "lpt"

    def __post_init__(self) -> None:
        workload(self.lengths)
        if self.sharing not in SHARINGS:
            raise UnknownNameError("sharing", self.sharing, SHARINGS)
        whole("accelerators", self.accelerators, 1, 2**20)
        self._checked(self.num_requests)

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.lengths} on {self.accelerators}, {self.sharing}"

    def pool_size(self, split: str) -> int | None:
        """Shares of the cases in the default pool of a split."""
        cases = workload(self.lengths).pool_size(split)
        return None if cases is None else cases * self.accelerators

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """One share; ``num_requests`` is the size of the whole case."""
        split, number = check_case(split, number)
        case, accelerator = divmod(number, self.accelerators)
        count = self.num_requests if num_requests is None else self._checked(num_requests)
        drawn, accelerator_of = _shared_out(self, split, case, count)
        mine = accelerator_of == accelerator
        return Requests.of(
            drawn.prompt_tokens[mine],
            drawn.output_tokens[mine],
            release_ns=drawn.release_ns[mine],
            mean_output_tokens=drawn.mean_output_tokens,
        )

    def _checked(self, num_requests: int) -> int:
        count = check_num_requests(num_requests)
        if count < self.accelerators:
            raise ConfigError(
                f"num_requests = {count} is less than accelerators = {self.accelerators}: each of them needs a request."
            )
        return count


@functools.lru_cache(maxsize=8)
def _shared_out(shared: SharedWorkload, split: str, case: int, num_requests: int) -> tuple[Requests, NDArray[np.int32]]:
    """A whole case and the accelerator of each request; kept, since the shares of a case are asked for in turn."""
    drawn = workload(shared.lengths).requests(split, case, num_requests=num_requests)
    if shared.sharing == "round_robin":
        return drawn, round_robin(len(drawn), shared.accelerators)
    # By tokens, of which each request has some: an accelerator without requests is no case.
    return drawn, lpt(drawn.output_tokens.astype(np.int64), shared.accelerators)


def accelerators(
    lengths: str, count: int, requests: int, sharing: str, cases: int, workers: int = 1, engine: str = "loky"
) -> dict[str, Any]:
    """A job: the first test cases, each on ``count`` accelerators of :data:`CLIENTS` clients.

    With ``workers=-1, engine="ray"`` the same call runs on a cluster; as a job among others it keeps to one core.

    Returns:
        For each case the makespan, that is the longest of its accelerators', and a bound. In sum over accelerators
        there are no fewer prefills and decodes than LB1 counts for one accelerator that serves all of them, and what
        is the same for all schedules is the same; the longest is no less than the mean. So no way to share and to
        schedule is faster than LB1 of one accelerator, divided by their number.
    """
    scenario = Scenario(SharedWorkload(lengths, count, requests, sharing), "test", num_clients=CLIENTS)
    row = entry(METHOD, scenario)
    found = evaluate(row.policy, row.scenario, cases * count, workers=workers, engine=engine, chunk=count)
    makespans = found.columns["makespan_s"].reshape(cases, count)
    source = workload(lengths)
    bounds = [
        lb1_ns(source.requests("test", case, num_requests=requests), CLIENTS, scenario.cost_model) / count / 1e9
        for case in range(cases)
    ]
    return {
        "lengths": lengths,
        "accelerators": count,
        "requests": requests,
        "sharing": sharing,
        "makespan_s": makespans.max(axis=1).tolist(),
        "bound_s": bounds,
    }
