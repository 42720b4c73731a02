"""The scalars of an episode as it stands; docs/metrics.md has their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.jit import inlined, jit

__all__ = ["COUNTS", "EPISODE_METRICS", "MEASURED", "PACKED", "measure", "measure_so_far", "pack"]

EPISODE_METRICS = (
    "makespan_s",
    "elapsed_s",
    "utilization",
    "gap_to_bound",
    "prefills",
    "decodes",
    "prefill_share",
    "decode_share",
    "bubble_share",
    "mean_latency_s",
    "throughput_tokens_per_s",
    "completed",
    "goodput",
    "ttft_s",
    "tpot_s",
    "preemptions",
    "kv_peak",
    "migrations",
    "moved_tokens",
    "recomputed_tokens",
    "transfer_s",
    "mixed_iterations",
)
"""What an episode achieved."""

MEASURED = (*EPISODE_METRICS, "bound_s")
"""What :func:`measure` writes, in that order."""

COUNTS = (
    "prefills",
    "decodes",
    "completed",
    "preemptions",
    "migrations",
    "moved_tokens",
    "recomputed_tokens",
    "mixed_iterations",
)
"""Those that are whole numbers."""

PACKED = "=" + "".join("q" if name in COUNTS else "d" for name in MEASURED)
"""What :func:`pack` makes of them, as the module ``struct`` names it."""

COUNT_PLACES = tuple(MEASURED.index(name) for name in COUNTS)
GOODPUT, TPOT, BOUND = (MEASURED.index(name) for name in ("goodput", "tpot_s", "bound_s"))

MOST = float(2**63 - 1)


@jit
def measure(v: Any, s: Any, k: Any, out: NDArray[np.float64]) -> None:
    """Write `MEASURED` of the episode to ``out``, (len(MEASURED),) float64.

    NaN for the makespan and the gap of an episode that is not complete, and for a total that may have left 64 bits:
    client time beyond 292 client-years, request time beyond 292 request-years. Goodput, TTFT and TPOT are NaN where
    nothing is promised, and while the episode is not complete: means over those that are would flatter who lets others
    wait. The peak is NaN where the KV cache is not modelled.
    """
    clock_ns = np.float64(v.clock_ns)
    slots_ns = np.float64(k.num_clients) * clock_ns
    requests = np.float64(k.num_requests)
    done = v.completed == k.num_requests
    busy = s.busy_client_ns / slots_ns if slots_ns > 0 else 0.0
    if slots_ns > MOST:
        busy = np.nan
    by_prefill = v.completed + v.active + v.preempted + s.resumed_by_prefill
    tokens = v.decodes * k.num_clients - s.idle_client_decodes + by_prefill
    out[0] = clock_ns / 1e9 if done else np.nan
    out[1] = clock_ns / 1e9
    out[2] = busy
    out[3] = clock_ns / k.bound_ns - 1.0 if done else np.nan
    out[4] = v.prefills
    out[5] = v.decodes
    out[6] = s.prefill_time_ns / clock_ns if clock_ns > 0 else 0.0
    out[7] = (v.clock_ns - s.prefill_time_ns - s.jump_ns) / clock_ns if clock_ns > 0 else 0.0
    out[8] = 1.0 - busy
    out[9] = s.request_ns / requests / 1e9 if requests * clock_ns <= MOST else np.nan
    out[10] = tokens / clock_ns * 1e9 if clock_ns > 0 else 0.0
    out[11] = v.completed
    counted = k.last_counted - k.first_counted
    out[12] = 1.0 - s.lost / counted if k.serving and done else np.nan
    exact = done and s.counted_started > 0 and np.float64(s.counted_started) * clock_ns <= MOST
    out[13] = s.ttft_ns / s.counted_started / 1e9 if exact else np.nan
    out[14] = s.tpot_ns / s.counted_decoded / 1e9 if done and s.counted_decoded > 0 else np.nan
    out[15] = s.preemptions
    out[16] = s.kv_peak / k.kv_budget if k.kv_budget > 0 else np.nan
    out[17] = s.migrations
    out[18] = s.moved_tokens
    out[19] = s.recomputed_tokens
    out[20] = s.move_ns / 1e9
    out[21] = v.mixed
    out[22] = k.bound_ns / 1e9


@jit
def measure_so_far(v: Any, s: Any, k: Any, out: NDArray[np.float64]) -> None:
    """Write `MEASURED` as an ``info`` has it to ``out``, (len(MEASURED),) float64: no NaN, and no hidden length.

    Infinity where :func:`measure` says NaN, but for two: the goodput of an episode that is not complete is what can
    still be reached, 1 less the share of counted requests whose promise is broken for certain; the TPOT is 0 where no
    counted request has a second token. The bound is 0 until the episode is complete, since it is computed from all
    output lengths.
    """
    measure(v, s, k, out)
    if v.completed < k.num_requests:
        out[BOUND] = 0.0
    if k.serving:
        out[GOODPUT] = 1.0 - s.lost / (k.last_counted - k.first_counted)
        if v.completed == k.num_requests and s.counted_decoded == 0:
            out[TPOT] = 0.0
    for i in range(len(out)):
        if np.isnan(out[i]):
            out[i] = np.inf


@inlined
def pack(measured: NDArray[np.float64]) -> None:
    """Turn the counts into integers, in place: `PACKED` then reads all of them as what they are."""
    counts = measured.view(np.int64)
    for i in COUNT_PLACES:
        counts[i] = np.int64(measured[i])
