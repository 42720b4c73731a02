"""What an episode achieved: each metric is defined, with its formula, in docs/metrics.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core import layout
from llmsched_env.core.measure import COUNTS, EPISODE_METRICS, MEASURED, measure
from llmsched_env.errors import ConfigError
from llmsched_env.simulator import Simulator

__all__ = ["EPISODE_METRICS", "final_metrics", "request_metrics", "worst_token_gaps_ns"]


def final_metrics(simulator: Simulator) -> dict[str, Any]:
    """The scalars of an episode as it stands: `EPISODE_METRICS` and ``bound_s``, as plain numbers.

    NaN for the makespan and the gap of an episode that is not complete, and for a total that may have left 64 bits:
    client time beyond 292 client-years, request time beyond 292 request-years.
    """
    memory = simulator.memory
    out = np.empty(len(MEASURED))
    measure(memory.view[0], memory.state[0], memory.setup[0], out)
    return {name: int(value) if name in COUNTS else value for name, value in zip(MEASURED, out.tolist(), strict=True)}


def request_metrics(simulator: Simulator) -> dict[str, NDArray[np.float64]]:
    """(n,) seconds a request, by request number: ``ttft_s``, ``tpot_s``, ``worst_token_gap_s``, ``latency_s``.

    NaN for what a request has not reached (``tpot_s`` and the gap: also where it has one token only).

    Raises:
        ConfigError: the episode was not recorded.
    """
    served, release_ns = simulator.served, simulator.instance.release_ns
    if not len(served):
        raise ConfigError("this episode was not recorded: make it with Simulator(instance, record=True).")
    output = np.empty(len(served), np.int64)
    output[simulator.instance.request_of] = simulator.instance.requests[:, layout.OUTPUT]
    started, finished = served["first_token_ns"] > 0, served["completion_ns"] > 0
    several = started & finished & (output > 1)
    decoding_ns = served["completion_ns"] - served["first_token_ns"]
    gaps_ns = worst_token_gaps_ns(simulator, output)
    return {
        "ttft_s": np.where(started, served["first_token_ns"] - release_ns, np.nan) / 1e9,
        "tpot_s": np.where(several, decoding_ns, np.nan) / np.maximum(1, output - 1) / 1e9,
        "worst_token_gap_s": np.where(several, gaps_ns, np.nan) / 1e9,
        "latency_s": np.where(finished, served["completion_ns"] - release_ns, np.nan) / 1e9,
    }


def worst_token_gaps_ns(simulator: Simulator, output: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) longest time between two tokens of each completed request with more than one; 0 for the others.

    Token k of a request ends with decode ``decode + k`` of the episode; gaps between decodes are shared by all clients,
    so a request's worst is a range maximum over decodes (a table of maxima over powers of two), and its first gap.
    """
    served, log = simulator.served, simulator.log
    ends = log["end_ns"][log["prefill"] == 0]
    before = int(simulator.view.decodes) - len(ends)  # a fork's recording begins late
    worst = np.zeros(len(served), np.int64)
    rows = np.flatnonzero((served["completion_ns"] > 0) & (served["first_token_ns"] > 0) & (output > 1))
    first, count = served["decode"][rows] - before, output[rows] - 2
    worst[rows] = ends[first] - served["first_token_ns"][rows]
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
