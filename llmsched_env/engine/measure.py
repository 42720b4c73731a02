"""The scalars of an episode as it stands; docs/metrics.md has their formulas."""

from __future__ import annotations

import cython

from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.view import Totals, View

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
    "cached_tokens",
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
    "cached_tokens",
)
"""Those that are whole numbers."""


def measure(
    v: View,
    t: Totals,
    problem: ProblemData,
    counted: cython.longlong,
    rereading: cython.longlong,
    missing: cython.double,
    out: cython.double[::1],
) -> cython.void:
    """Write `MEASURED` to ``out``, (len(MEASURED),) float64.

    ``missing`` for the makespan and the gap of an episode that is not complete, and for a total that may have left 64
    bits: client time beyond 292 client-years, request time beyond 292 request-years. Goodput, TTFT and TPOT are missing
    where there are no objectives, and while the episode is not complete: means over those that are would flatter who
    lets others wait. The peak is missing where the KV cache is not modelled.

    Args:
        v: the view.
        t: the totals.
        problem: the case.
        counted: requests that count for the objectives; 0 where there are none.
        rereading: 1 where a preempted request's recomputation is chunked and under way, else 0.
        missing: what stands for a number that is not there.
        out: takes the numbers.
    """
    # As C has it: whole numbers become floats before they are divided.
    clock_ns: cython.double = float(v.clock_ns)
    slots_ns: cython.double = problem.num_clients * clock_ns
    requests: cython.double = float(problem.num_requests)
    done: cython.bint = v.completed == problem.num_requests
    most: cython.double = 9223372036854775807.0
    busy: cython.double = t.busy_client_ns / slots_ns if slots_ns > 0 else 0.0
    tokens: cython.double
    bound_ns: cython.double = float(problem.bound_ns)
    decoding_ns: cython.double = float(v.clock_ns - t.prefill_time_ns - t.jump_ns)
    ends_s: cython.double = clock_ns / 1e9
    budget: cython.double = float(v.kv_budget_tokens)
    if slots_ns > most:
        busy = missing
    tokens = float(
        v.decodes * problem.num_clients
        - t.idle_client_decodes
        + v.completed
        + v.active
        + v.preempted
        + rereading
        + t.resumed_by_prefill
    )
    out[0] = ends_s if done else missing
    out[1] = ends_s
    out[2] = busy
    out[3] = clock_ns / bound_ns - 1.0 if done else missing
    out[4] = v.prefills
    out[5] = v.decodes
    out[6] = t.prefill_time_ns / clock_ns if clock_ns > 0 else 0.0
    out[7] = decoding_ns / clock_ns if clock_ns > 0 else 0.0
    out[8] = missing if slots_ns > most else 1.0 - busy
    out[9] = t.request_ns / requests / 1e9 if requests * clock_ns <= most else missing
    out[10] = tokens / clock_ns * 1e9 if clock_ns > 0 else 0.0
    out[11] = v.completed
    out[12] = 1.0 - share_of(t.violations, counted) if counted > 0 and done else missing
    out[13] = missing
    if done and t.counted_started > 0 and t.counted_started * clock_ns <= most:
        out[13] = share_of(t.ttft_sum_ns, t.counted_started) / 1e9
    out[14] = t.tpot_sum_ns / t.counted_decoded / 1e9 if done and t.counted_decoded > 0 else missing
    out[15] = t.preemptions
    out[16] = t.kv_peak / budget if budget > 0 else missing
    out[17] = t.migrations
    out[18] = t.moved_tokens
    out[19] = t.recomputed_tokens
    out[20] = t.move_ns / 1e9
    out[21] = v.mixed
    out[22] = t.cached_tokens
    out[23] = bound_ns / 1e9


def share_of(part: cython.double, whole: cython.double) -> cython.double:
    """``part / whole``, of whole numbers."""
    return float(part) / float(whole)


def measure_so_far(
    v: View,
    t: Totals,
    problem: ProblemData,
    counted: cython.longlong,
    rereading: cython.longlong,
    infinity: cython.double,
    out: cython.double[::1],
) -> cython.void:
    """Write `MEASURED` as an ``info`` has it: no NaN, and no hidden length.

    Infinity where :func:`measure` says that a number is missing, but for two: the goodput of an episode that is not
    complete is what can still be reached, 1 less the share of counted requests whose objective is violated for certain;
    the TPOT is 0 where no counted request has a second token. The bound is 0 until the episode is complete, since it is
    computed from all output lengths.
    """
    measure(v, t, problem, counted, rereading, infinity, out)
    if v.completed < problem.num_requests:
        out[23] = 0.0
    if counted > 0:
        out[12] = 1.0 - share_of(t.violations, counted)
        if v.completed == problem.num_requests and t.counted_decoded == 0:
            out[14] = 0.0
