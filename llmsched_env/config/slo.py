"""Service-level objectives: what requests are promised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsched_env.config.checks import LARGEST, check_flags, keep, number, real
from llmsched_env.config.queues import DEADLINE_ORDERS
from llmsched_env.errors import ConfigError
from llmsched_env.units import percent_hint

if TYPE_CHECKING:
    from llmsched_env.config.scenario import Scenario

__all__ = ["Promises", "SLOOptions", "check", "promises_of"]

MIN_PROMISE_S = 1e-9


@dataclass(frozen=True)
class SLOOptions:
    """Promises.

    Attributes:
        ttft_s: promised time to first token, with ``tpot_s``; ``None`` for no promises.
        tpot_s: promised time per output token after the first.
        uncounted_share: share of the requests at the beginning (the warm-up), and as many at the end (the cut end),
            that are served like the others but left out of goodput and latencies.
        choose_order: each order is an action of its own: 1 is a prefill by "fcfs", 2 "late_last", 3 "shortest_first", 4
            "late_last_shortest", 5 "longest_first", 6 "late_last_longest". Needs promises and one shared queue.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    uncounted_share: float = 0.1
    choose_order: bool = False

    @property
    def serving(self) -> bool:
        """Whether requests are promised a TTFT and a TPOT."""
        return self.ttft_s is not None

    @property
    def objective(self) -> str:
        """The metric that policies are tuned and scored by: ``goodput`` with promises, else ``makespan_s``."""
        return "goodput" if self.serving else "makespan_s"


@dataclass(frozen=True)
class Promises:
    """The same for the requests of one case, as the engine takes them.

    Attributes:
        ttft_ns: time to first token.
        tpot_ns: time per output token.
        first: number of the first request that counts.
        last: number after that of the last.
        choose_order: whether each order is an action of its own.
    """

    ttft_ns: int
    tpot_ns: int
    first: int
    last: int
    choose_order: bool = False


def check(scenario: Scenario) -> None:
    """Check them.

    Raises:
        ConfigError: a value out of range, or one that nobody would read.
    """
    check_flags(scenario, "choose_order")
    for name in ("ttft_s", "tpot_s"):
        if getattr(scenario, name) is not None:
            keep(scenario, name, real(name, getattr(scenario, name), MIN_PROMISE_S, LARGEST[name]))
    share = number("uncounted_share", scenario.uncounted_share)
    if not 0 <= share < 0.5:
        raise ConfigError(
            f"uncounted_share = {scenario.uncounted_share!r} is out of range: it lies in [0, 0.5), at each end."
            f"{percent_hint(share, 0.5)}"
        )
    keep(scenario, "uncounted_share", share)
    if (scenario.ttft_s is None) != (scenario.tpot_s is None):
        raise ConfigError(f"ttft_s = {scenario.ttft_s}, tpot_s = {scenario.tpot_s}: promise both or none.")
    if scenario.queue != "shared" and (scenario.order in DEADLINE_ORDERS or scenario.choose_order):
        which = "choose_order = True" if scenario.choose_order else f"order = {scenario.order!r}"
        raise ConfigError(
            f"{which} with queue = {scenario.queue!r}: orders by deadline are orders of one line. Set "
            "queue='shared', or leave it out."
        )
    if not scenario.serving:
        for name, value in (("order", DEADLINE_ORDERS), ("choose_order", (True,)), ("reward", ("goodput",))):
            if getattr(scenario, name) in value:
                raise ConfigError(f"{name} = {getattr(scenario, name)!r} needs promises: give ttft_s and tpot_s.")
    elif scenario.choose_order and scenario.order != "fcfs":
        raise ConfigError(
            f"order = {scenario.order!r} with choose_order=True: the order is the action's; set order='fcfs'."
        )


def promises_of(scenario: Scenario, num_requests: int) -> Promises | None:
    """What the requests of a case are promised, and which of them count; ``None`` where nothing is promised."""
    if scenario.ttft_s is None or scenario.tpot_s is None:
        return None
    left_out = int(num_requests * scenario.uncounted_share)
    return Promises(
        round(scenario.ttft_s * 1e9),
        round(scenario.tpot_s * 1e9),
        left_out,
        num_requests - left_out,
        scenario.choose_order,
    )
