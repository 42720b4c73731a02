"""What an episode achieved: each metric is defined, with its formula, in docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.config import Scenario
from llmsched_env.engine import codes
from llmsched_env.engine.measure import COUNTS, EPISODE_METRICS, MEASURED
from llmsched_env.errors import ConfigError
from llmsched_env.limits import MAX_CLOCK_S
from llmsched_env.simulator import Records, Simulator

__all__ = [
    "EPISODE_METRICS",
    "SERVING_METRICS",
    "final_metrics",
    "info_metrics",
    "request_metrics",
    "running_metrics",
    "serving_metrics",
    "serving_summary",
    "slos_met",
    "worst_token_gaps_ns",
]

SERVING_METRICS = (
    "goodput",
    "ttft_met",
    "tpot_met",
    "ttft_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_s",
    "tpot_p50_s",
    "tpot_p99_s",
    "worst_token_gap_s",
    "longest_wait_s",
    "queueing_s",
    "latency_s",
    "latency_p99_s",
    "served_requests_per_s",
    "served_tokens_per_s",
)
"""What :func:`serving_metrics` gives, in order."""

NS_PER_S = 10**9


def info_metrics(scenario: Scenario) -> tuple[str, ...]:
    """Which of `MEASURED` the ``info`` of an environment has: all that the scenario has a meaning for."""
    missing: set[str] = set()
    if not scenario.serving:
        missing |= {"goodput", "ttft_s", "tpot_s"}
    if not scenario.kv_limited:
        missing |= {"kv_peak"}
    if not scenario.kv_prefix_caching:
        missing |= {"cached_tokens"}
    return tuple(name for name in MEASURED if name not in missing)


def running_metrics(scenario: Scenario) -> tuple[str, ...]:
    """Those of :func:`info_metrics` that may change before the last request is complete."""
    fixed = {"makespan_s", "gap_to_bound", "ttft_s", "tpot_s", "bound_s"}
    if not scenario.kv_limited:
        fixed |= {"preemptions"}
    if not scenario.migrates:
        fixed |= {"migrations", "moved_tokens", "transfer_s"}
    if not scenario.kv_limited and not scenario.migrates:
        fixed |= {"recomputed_tokens"}
    if not scenario.mixes:
        fixed |= {"mixed_iterations"}
    return tuple(name for name in info_metrics(scenario) if name not in fixed)


def final_metrics(simulator: Simulator) -> dict[str, Any]:
    """The scalars of an episode as it stands: `EPISODE_METRICS` and ``bound_s``, as plain numbers.

    NaN for the makespan and the gap of an episode that is not complete, and for a total that may have left 64 bits:
    client time beyond 292 client-years, request time beyond 292 request-years.
    """
    values = zip(MEASURED, simulator.episode.measured().tolist(), strict=True)
    return {name: int(value) if name in COUNTS else value for name, value in values}


def request_metrics(simulator: Simulator) -> dict[str, NDArray[np.float64]]:
    """(n,) seconds a request, by number: ``queueing_s``, ``ttft_s``, ``tpot_s``, ``worst_token_gap_s``, ``latency_s``.

    NaN for what a request has not reached (``tpot_s`` and the gap: also where it has one token only).

    Raises:
        ConfigError: the episode was not recorded.
    """
    return _seconds(simulator, *_recorded(simulator))


def serving_metrics(simulator: Simulator, *, ttft_s: float, tpot_s: float, first: int, last: int) -> dict[str, float]:
    """How well an episode served the requests that are counted: the scalars of `SERVING_METRICS`.

    Counted are the requests numbered ``first <= i < last``, in release order. The others are served and not counted:
    those before find a system that is still empty (warm-up), those after one that drains. Only the two throughputs
    are of a stretch of time, from the first counted release to the last, whichever requests are served in it.

    NaN throughout unless every counted request is complete, and recorded from its release on (a fork's recording
    begins late): a mean over those that are would flatter a policy that lets others wait. Beyond that, the times
    between tokens are NaN where no counted request has two, the throughputs where the counted are released at once.

    Args:
        simulator: a recorded episode.
        ttft_s: limit of the time to first token: met iff it takes at most so many seconds, rounded to the nanosecond.
        tpot_s: limit of the time per output token, likewise; a request with one token meets it.
        first: number of the first counted request.
        last: number after the last counted request.

    Returns:
        Shares in [0, 1] (``goodput``, ``*_met``), seconds (``*_s``) and rates per second, as plain floats.

    Raises:
        ConfigError: the episode was not recorded, no such requests, or a limit that is no time within the clock.
    """
    ttft_ns, tpot_ns = _limit_ns("ttft_s", ttft_s), _limit_ns("tpot_s", tpot_s)
    served, output = _recorded(simulator)
    counted = _counted(first, last, len(served))
    if _recorded_from_ns(simulator) > int(simulator.problem.release_ns[counted][0]):
        return dict.fromkeys(SERVING_METRICS, math.nan)
    seconds = _seconds(simulator, served, output)
    return serving_summary(
        simulator.problem.release_ns, output, served, seconds, [simulator.log], ttft_ns, tpot_ns, counted
    )


def serving_summary(
    release_ns: NDArray[np.int64],
    output: NDArray[np.int64],
    served: Records,
    seconds: Mapping[str, NDArray[np.float64]],
    logs: Sequence[Records],
    ttft_ns: int,
    tpot_ns: int,
    counted: slice,
) -> dict[str, float]:
    """:func:`serving_metrics` of requests that one accelerator has served, or several.

    Args:
        release_ns: (n,) int64, ascending.
        output: (n,) output tokens.
        served: (n,) `llmsched_env.simulator.SERVED`.
        seconds: (n,) each, as :func:`request_metrics` gives.
        logs: iterations of each accelerator, from the first counted release on.
        ttft_ns: limit of the time to first token.
        tpot_ns: limit of the time per output token.
        counted: which requests count.
    """
    begin_ns, end_ns = int(release_ns[counted][0]), int(release_ns[counted][-1])
    if not served["completion_ns"][counted].all():
        return dict.fromkeys(SERVING_METRICS, math.nan)

    ttft_met, tpot_met = (met[counted] for met in _met(release_ns, output, served, ttft_ns, tpot_ns))
    times = {name: column[counted] for name, column in seconds.items()}
    tpot, gaps = (times[name][output[counted] > 1] for name in ("tpot_s", "worst_token_gap_s"))

    completions = served["completion_ns"]
    requests = np.count_nonzero((completions > begin_ns) & (completions <= end_ns))
    tokens = 0
    for log in logs:  # a prefill yields a token to each client that takes part, a decode to each active one
        within = slice(*np.searchsorted(log["end_ns"], (begin_ns, end_ns), side="right"))
        tokens += int(log["clients"][within].sum())
    window_s = (end_ns - begin_ns) / NS_PER_S or math.nan
    values = (
        np.mean(ttft_met & tpot_met),
        np.mean(ttft_met),
        np.mean(tpot_met),
        *_mean_and_quantiles(times["ttft_s"], 0.5, 0.99),
        *_mean_and_quantiles(tpot, 0.5, 0.99),
        gaps.max() if len(gaps) else math.nan,
        times["queueing_s"].max(),
        times["queueing_s"].mean(),
        *_mean_and_quantiles(times["latency_s"], 0.99),
        requests / window_s,
        tokens / window_s,
    )
    return {name: float(value) for name, value in zip(SERVING_METRICS, values, strict=True)}


def slos_met(simulator: Simulator, ttft_ns: int, tpot_ns: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(n,) whether each complete request of a recorded episode met its TTFT, and its TPOT, by number."""
    served, output = _recorded(simulator)
    return _met(simulator.problem.release_ns, output, served, ttft_ns, tpot_ns)


def _met(
    release_ns: NDArray[np.int64], output: NDArray[np.int64], served: Records, ttft_ns: int, tpot_ns: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(n,) whether each request met its TTFT, and its TPOT."""
    waited_ns = served["first_token_ns"] - release_ns
    decoding_ns = served["completion_ns"] - served["first_token_ns"]
    # d <= p (N - 1) in a form that cannot overflow: the quotient, rounded up, is at most p.
    return waited_ns <= ttft_ns, -(-decoding_ns // np.maximum(1, output - 1)) <= tpot_ns


def _recorded(simulator: Simulator) -> tuple[Records, NDArray[np.int64]]:
    """(n,) `SERVED` and (n,) output lengths, both by request number."""
    served = simulator.served
    if not len(served):
        raise ConfigError("this episode was not recorded: make it with Simulator(problem, record=True).")
    output = np.empty(len(served), np.int64)
    output[simulator.problem.request_of] = simulator.problem.requests[:, codes.OUTPUT]
    return served, output


def _recorded_from_ns(simulator: Simulator) -> int:
    """When the recording begins: later than the episode in a fork."""
    log = simulator.log
    if len(log) == simulator.view.prefills + simulator.view.decodes:
        return 0
    return int(log["start_ns"][0]) if len(log) else int(simulator.view.clock_ns)


def _seconds(simulator: Simulator, served: Records, output: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    release_ns = simulator.problem.release_ns
    started, finished = served["first_token_ns"] > 0, served["completion_ns"] > 0
    several = started & finished & (output > 1)
    decoding_ns = served["completion_ns"] - served["first_token_ns"]
    gaps_ns = worst_token_gaps_ns(simulator, output)
    return {
        "queueing_s": np.where(started, served["prefill_start_ns"] - release_ns, np.nan) / NS_PER_S,
        "ttft_s": np.where(started, served["first_token_ns"] - release_ns, np.nan) / NS_PER_S,
        "tpot_s": np.where(several, decoding_ns, np.nan) / np.maximum(1, output - 1) / NS_PER_S,
        "worst_token_gap_s": np.where(several, gaps_ns, np.nan) / NS_PER_S,
        "latency_s": np.where(finished, served["completion_ns"] - release_ns, np.nan) / NS_PER_S,
    }


def _limit_ns(name: str, seconds: float) -> int:
    if not 0 < seconds <= MAX_CLOCK_S or round(seconds * NS_PER_S) < 1:
        raise ConfigError(
            f"{name} = {seconds} is out of range: a limit is a time from 1e-09 to {MAX_CLOCK_S:.0e} seconds, "
            "the ticks and the end of the clock."
        )
    return round(seconds * NS_PER_S)


def _counted(first: int, last: int, num_requests: int) -> slice:
    try:
        counted = slice(index(first), index(last))
    except TypeError:
        raise ConfigError(f"first = {first!r}, last = {last!r}: give whole numbers of requests.") from None
    if not 0 <= counted.start < counted.stop <= num_requests:
        raise ConfigError(
            f"first = {first}, last = {last} counts no requests of this case: those numbered first <= i < last are "
            f"counted, so give 0 <= first < last <= {num_requests}."
        )
    return counted


def _mean_and_quantiles(values: NDArray[np.float64], *shares: float) -> NDArray[np.float64]:
    if not len(values):
        return np.full(1 + len(shares), np.nan)
    return np.array([values.mean(), *np.quantile(values, shares)])


def worst_token_gaps_ns(simulator: Simulator, output: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) longest time between two tokens of each completed request with more than one; 0 for the others.

    Token k of a request ends with decode ``decode + k`` of the episode; gaps between decodes are shared by all clients,
    so a request's worst is a range maximum over decodes (a table of maxima over powers of two), and its first gap. Of
    a preempted request all that came before it went on for the last time was noted as it came.
    """
    served, log = simulator.served, simulator.log
    ends = log["end_ns"][log["prefill"] == 0]
    before = int(simulator.view.decodes) - len(ends)  # a fork's recording begins late
    done = (served["completion_ns"] > 0) & (served["first_token_ns"] > 0)
    worst = np.where(done, served["gap_ns"], 0)  # of a preempted request: up to when it went on
    rows = np.flatnonzero(done & (output > served["tokens"]))
    first, count = served["decode"][rows] - before, output[rows] - served["tokens"][rows] - 1
    worst[rows] = np.maximum(worst[rows], ends[first] - served["token_ns"][rows])
    later = count > 0
    rows, first, count = rows[later], first[later], count[later]
    level = np.diff(ends)  # level[i]: gap between decodes i and i + 1; then maxima over 2, 4, ... of them
    span = 1
    while len(rows):
        here = (count >= span) & (count < 2 * span)
        left, right = level[first[here]], level[first[here] + count[here] - span]
        worst[rows[here]] = np.maximum(worst[rows[here]], np.maximum(left, right))
        rows, first, count = rows[~here], first[~here], count[~here]
        level = np.maximum(level[:-span], level[span:]) if len(rows) else level
        span *= 2
    return worst
