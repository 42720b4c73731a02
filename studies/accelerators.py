"""Several accelerators: a large case shared among them beforehand, and each of them a problem of its own.

Nothing passes between accelerators once the requests are shared out, so the shares are cases like any others, and
:func:`llmsched_env.evaluation.evaluate` runs them on as many processes or machines as there are. The whole takes as
long as the accelerator that ends last.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines.registry import entry
from llmsched_env.config import Scenario, whole
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import Estimate, evaluate, mean_estimate
from llmsched_env.evaluation.drawing import INK, LINES, new_figure, plain, save
from llmsched_env.offline import lb1_ns, lpt, round_robin
from llmsched_env.studies.study import Found, Job, Options, Study
from llmsched_env.studies.tables import Table
from llmsched_env.workload import Requests, workload
from llmsched_env.workload.gsm8k import NUM_REQUESTS
from llmsched_env.workload.protocol import check_case, check_num_requests

__all__ = ["CLIENTS", "METHOD", "SHARINGS", "STUDY", "SharedWorkload", "accelerators"]

SHARINGS = {"round_robin": "round robin", "lpt": "LPT"}
"""How requests are shared out, and what tables call it: in turn, which knows no lengths, or longest first."""

CLIENTS = 200
"""Of each accelerator."""

METHOD = "shared_lpt_lagrangian"
"""What each accelerator does with its share."""

LENGTHS = {"gsm8k": "GSM8K", "gsm8k-smooth": "smooth"}
ACCELERATORS = (1, 2, 4, 8)
"""How many there are; all serve the requests of the most of them."""


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


def _jobs(options: Options) -> list[Job]:
    """A job for each set of lengths, number of accelerators and way to share."""
    return [
        Job(
            f"accelerators {lengths} {count} {sharing}",
            accelerators,
            {
                "lengths": lengths,
                "count": count,
                "requests": max(ACCELERATORS) * NUM_REQUESTS,
                "sharing": sharing,
                "cases": options.cases,
            },
        )
        for lengths in LENGTHS
        for count in ACCELERATORS
        for sharing in SHARINGS
    ]


def _values(found: Found) -> dict[tuple[str, int, str], Mapping[str, Any]]:
    return {(value["lengths"], value["accelerators"], value["sharing"]): value for value in found.values()}


def _gaps(value: Mapping[str, Any]) -> NDArray[np.float64]:
    """(cases,) makespan above its bound."""
    gaps: NDArray[np.float64] = np.divide(value["makespan_s"], value["bound_s"]) - 1.0
    return gaps


def _percent(found: Estimate) -> str:
    half = "" if np.isnan(found.low) else f" ± {100 * (found.high - found.low) / 2:.2f}"
    return f"{100 * found.mean:z.2f}{half}"


def _tables(found: Found) -> list[Table]:
    values = _values(found)
    header = ["lengths", "accelerators", "requests of each"]
    for text in SHARINGS.values():
        header += [f"{text}: speed-up", f"{text}: gap, %"]
    header.append(f"{' less '.join(SHARINGS.values())}, points")
    rows = []
    for lengths, text in LENGTHS.items():
        for count in ACCELERATORS:
            row, gaps = [text, f"{count}", f"{max(ACCELERATORS) * NUM_REQUESTS // count:,}"], []
            for sharing in SHARINGS:
                value = values[lengths, count, sharing]
                alone = np.array(values[lengths, 1, sharing]["makespan_s"])
                gaps.append(_gaps(value))
                row += [f"{(alone / value['makespan_s']).mean():.2f}", _percent(mean_estimate(gaps[-1]))]
            rows.append([*row, _percent(mean_estimate(gaps[0] - gaps[1])) if count > 1 else ""])
    return [Table("shares", "Speed-up against one accelerator, and makespan above the bound.", header, rows)]


def _short(found: Mapping[str, Table]) -> Table:
    return found["shares"]


def _draw(found: Found, path: Path) -> Path:
    """Gap to the bound against the number of accelerators, a line for each way to share."""
    values = _values(found)
    figure = new_figure(9.0, 3.6)
    most = max(ACCELERATORS)
    speeds = [
        float(np.mean(np.divide(values[lengths, 1, "lpt"]["makespan_s"], values[lengths, most, "lpt"]["makespan_s"])))
        for lengths in LENGTHS
    ]
    title = f"Split by LPT, {most} accelerators are {min(speeds):.1f} times as fast as one"
    figure.suptitle(title, fontsize=11, color=INK)
    panels = figure.subplots(1, len(LENGTHS), sharey=True)
    for axes, (lengths, text) in zip(panels, LENGTHS.items(), strict=True):
        for colour, (sharing, said) in zip(LINES, SHARINGS.items(), strict=False):
            estimates = [mean_estimate(100 * _gaps(values[lengths, count, sharing])) for count in ACCELERATORS]
            mean, low, high = np.array(estimates).T
            axes.fill_between(ACCELERATORS, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(ACCELERATORS, mean, "o-", color=colour, markersize=4, linewidth=1.5, label=f"split by {said}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ACCELERATORS, [f"{count}" for count in ACCELERATORS])
        axes.set_title(f"{text} lengths", fontsize=9, color=INK, loc="left")
        axes.set_xlabel("accelerators", fontsize=8)
        axes.set_ylabel("makespan above the bound, %", fontsize=8)
        axes.legend(fontsize=8, frameon=False)
        plain(axes)
    panels[0].set_ylim(bottom=0)  # only now: a shared limit that is set is final
    return save(figure, path)


STUDY = Study(
    "accelerators",
    "What is lost if requests are split among several accelerators beforehand?",
    _jobs,
    _tables,
    _short,
    _draw,
)
