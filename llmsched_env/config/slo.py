"""Service-level objectives (SLOs): latency limits that requests are to meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from llmsched_env.config.checks import LARGEST, check_flags, keep, number, real
from llmsched_env.config.mechanism import World
from llmsched_env.errors import ConfigError
from llmsched_env.units import percent_hint

__all__ = ["SLO", "SLOOptions", "check"]

MIN_LIMIT_S = 1e-9


@dataclass(frozen=True, kw_only=True)
class SLOOptions:
    """Service-level objectives (SLOs).

    Attributes:
        ttft_s: TTFT limit, of the time to first token, with ``tpot_s``; ``None`` for no SLOs.
        tpot_s: TPOT limit, of the time per output token after the first.
        uncounted_share: share of the requests at the beginning (the warm-up), and as many at the end (the cut end),
            that are served like the others but left out of goodput and latencies.
        choose_order: each order is an action of its own: 1 is a prefill by "fcfs", 2 "late_last", 3 "shortest_first", 4
            "late_last_shortest", 5 "longest_first", 6 "late_last_longest". Needs SLOs and one shared queue.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    uncounted_share: float = 0.1
    choose_order: bool = False

    @property
    def serving(self) -> bool:
        """Whether requests have SLOs."""
        return self.ttft_s is not None

    @property
    def objective(self) -> str:
        """The metric that policies are tuned and scored by: ``goodput`` with SLOs, else ``makespan_s``."""
        return "goodput" if self.serving else "makespan_s"

    def slo(self, num_requests: int) -> SLO | None:
        """The SLOs of a case, and which of its requests count; ``None`` without SLOs."""
        if self.ttft_s is None or self.tpot_s is None:
            return None
        left_out = int(num_requests * self.uncounted_share)
        return SLO(
            round(self.ttft_s * 1e9),
            round(self.tpot_s * 1e9),
            left_out,
            num_requests - left_out,
            self.choose_order,
        )


@dataclass(frozen=True)
class SLO:
    """The same for the requests of one case, as the engine takes them.

    Attributes:
        ttft_ns: time to first token.
        tpot_ns: time per output token.
        first: number of the first request that counts.
        last: number after that of the last.
        choose_order: whether each order is an action of its own.
    """

    name: ClassVar[str] = "slo"
    ttft_ns: int
    tpot_ns: int
    first: int
    last: int
    choose_order: bool = False

    def engine_options(self, world: World) -> dict[str, Any]:
        """Arguments of `llmsched_env.engine.slo.Slo`."""
        return {
            "ttft_ns": self.ttft_ns,
            "tpot_ns": self.tpot_ns,
            "least_prefill_ns": world.least_prefill_ns,
            "first": self.first,
            "last": self.last,
            "certain": not world.noisy,
        }


def check(options: SLOOptions) -> None:
    """Check them.

    Raises:
        ConfigError: a value out of range, or one that nobody would read.
    """
    check_flags(options, "choose_order")
    for name in ("ttft_s", "tpot_s"):
        if getattr(options, name) is not None:
            keep(options, name, real(name, getattr(options, name), MIN_LIMIT_S, LARGEST[name]))
    share = number("uncounted_share", options.uncounted_share)
    if not 0 <= share < 0.5:
        raise ConfigError(
            f"uncounted_share = {options.uncounted_share!r} is out of range: it lies in [0, 0.5), at each end."
            f"{percent_hint(share, 0.5)}"
        )
    keep(options, "uncounted_share", share)
    if (options.ttft_s is None) != (options.tpot_s is None):
        raise ConfigError(f"ttft_s = {options.ttft_s}, tpot_s = {options.tpot_s}: give both or none.")
