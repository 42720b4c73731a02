"""The observation: a fixed list of numbers in [0, 1] that mean the same at any size and on any cost scale.

A count of clients is divided by J; a ratio of two prices or lengths x : y becomes x / (x + y). `FEATURES` is the table
that the documentation and the tests read; `observe` computes the row, in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llmsched_env.jit import jit

__all__ = [
    "ALL_FEATURES",
    "FEATURES",
    "MEMORY_FEATURES",
    "MIXED_FEATURES",
    "NUM_FEATURES",
    "PROMISE_FEATURES",
    "TABLES",
    "Feature",
    "feature_table",
    "features_of",
    "observe",
    "observe_all",
]


class _Scenario(Protocol):
    @property
    def serving(self) -> bool: ...
    @property
    def kv_limited(self) -> bool: ...
    @property
    def mixes(self) -> bool: ...


class Feature(NamedTuple):
    """One entry of the observation: its name and the formula, in the symbols of docs/model.md. All lie in [0, 1]."""

    name: str
    formula: str


FEATURES: tuple[Feature, ...] = (
    Feature("active", "A / J: clients that decode"),
    Feature("ready", "R / J: idle clients that have something to take"),
    Feature("idle_without_work", "(F - R) / J: idle clients that have nothing to take"),
    Feature("waiting", "W / (W + J): requests released and not started"),
    Feature("completed", "completed / (completed + A + W): share of what was released that is done"),
    Feature(
        "charge",
        "C_d / (C_d + C_p), C_d = alpha_d * sum of R over the decodes since the last prefill, C_p = alpha_p * A",
    ),
    Feature("charge_ahead", "the same with the coming decode's R added to the sum"),
    Feature("fixed_price", "alpha_p / (alpha_p + alpha_d): a prefill's fixed time against a decode's"),
    Feature("batch", "b / J: requests that a prefill now would hold"),
    Feature("batch_fill", "min(1, prompt tokens of that batch / cap)"),
    Feature("batch_price", "T_p / (T_p + T_d): duration of that prefill against a decode now"),
    Feature("batch_length", "l / (l + m): mean expected output of that batch, m the population mean"),
    Feature("decode_load", "beta_d * A / T_d: share of a decode that grows with clients"),
    Feature("decodes_since_prefill", "d / (d + 16), d decodes since the last prefill"),
    Feature("consecutive_prefills", "p / (p + 4), p prefills since the last decode"),
    Feature("due_1", "active clients expected to finish in the next decode / J"),
    Feature("due_2_4", "... in 2 to 4 decodes / J"),
    Feature("due_5_16", "... in 5 to 16 decodes / J"),
    Feature("due_17_64", "... in 17 to 64 decodes / J"),
    Feature("due_65_256", "... in 65 to 256 decodes / J"),
    Feature("overdue", "active clients that have outlived their estimate / J"),
    Feature("remaining_mean", "r / (r + m): mean expected decodes to go of the active clients"),
    Feature("remaining_spread", "s / (s + m): their standard deviation"),
    Feature("remaining_max", "x / (x + m): the longest of them"),
    Feature("work", "w / (w + J * m): expected output tokens that wait, against one request a client"),
    Feature("oldest_wait", "a / (a + m * T_d): age of the oldest waiting request against a mean request's decodes"),
)

PROMISE_FEATURES: tuple[Feature, ...] = (
    Feature("late", "L / (L + J): waiting requests that are late, whose TTFT cannot be kept any more"),
    Feature("in_time_wait", "min(1, age of the oldest waiting request that is not late / S1); 0 where there is none"),
    Feature("prefill_price", "T_p / (T_p + S1): that prefill's duration against the promised TTFT"),
    Feature("decode_price", "T_d / (T_d + S2): a decode's duration now against the promised TPOT"),
    Feature("pace", "p / (p + S2), p the mean time per output token of the active clients so far"),
    Feature("pace_after", "the same if that prefill came now, and then a decode"),
    Feature(
        "slack",
        "(1 + x / (abs x + A S2 m)) / 2, x = S2 * (tokens emitted and expected of the active clients) - time of the "
        "emitted - T_d * the expected",
    ),
)
"""What follows where requests are promised a TTFT S1 and a TPOT S2."""

MEMORY_FEATURES: tuple[Feature, ...] = (
    Feature("kv_used", "U / M: share of the KV cache that is allocated"),
    Feature("kv_pace", "16 g / (16 g + M - U), g the tokens that a decode now would take"),
    Feature("kv_due", "min(1, (U + r A) / M), r the mean expected decodes to go: were nobody else let in"),
    Feature("kv_batch", "min(1, (prompt tokens of that batch + its expected output) / M)"),
    Feature("kv_waiting", "w / (w + M), w the prompt tokens and expected output tokens that wait"),
    Feature("preempted", "E / (E + J): requests that have started, and wait to go on"),
)
"""What follows where the KV cache holds M tokens, U of which are allocated."""

MIXED_FEATURES: tuple[Feature, ...] = (
    Feature("chunk", "min(1, c / b), c the prompt tokens that a mixed iteration now would read"),
    Feature("chunk_share", "min(1, c / prompt tokens of that batch): of what a prefill now would read"),
    Feature("mixed_price", "T_m / (T_m + T_d): duration of a mixed iteration now against a decode"),
    Feature("mixed_saving", "T_m / (T_m + T_p + T_d): against a prefill and a decode"),
    Feature("reading", "r / (r + b): left to read of the prompt that has been read in part"),
)
"""What follows where a mixed iteration may read b tokens beside a decode."""

NUM_FEATURES = len(FEATURES)


def feature_table(promises: bool, memory: bool = False, mixed: bool = False) -> tuple[Feature, ...]:
    """The observation, entry by entry: with promises, with a KV cache, with mixed iterations, or without."""
    table = FEATURES + (PROMISE_FEATURES if promises else ())
    return table + (MEMORY_FEATURES if memory else ()) + (MIXED_FEATURES if mixed else ())


TABLES = tuple(
    feature_table(promises, memory, mixed)
    for promises in (False, True)
    for memory, mixed in ((False, False), (True, False), (False, True))
)
"""Every observation that a scenario can have; no two are as long."""

ALL_FEATURES = feature_table(promises=True, memory=True, mixed=True)
"""Every feature at a place that does not depend on the scenario."""

PROMISED, REMEMBERED, MIXED = (
    len(FEATURES),
    len(feature_table(promises=True)),
    len(feature_table(promises=True, memory=True)),
)
"""Places in `ALL_FEATURES` at which what is not always there begins."""


def features_of(scenario: _Scenario) -> tuple[Feature, ...]:
    """The observation of a scenario, entry by entry."""
    return feature_table(scenario.serving, scenario.kv_limited, scenario.mixes)


@jit
def _observe_promises(v: Any, out: NDArray[np.float32]) -> None:
    """Write `PROMISE_FEATURES` behind `FEATURES`."""
    active = np.float64(v.active)
    ttft_ns = np.float64(v.ttft_ns)
    tpot_ns = np.float64(v.tpot_ns)
    prefill_ns = np.float64(v.prefill_ns) if v.batch_requests > 0 else 0.0
    decode_ns = np.float64(v.decode_ns) if v.active > 0 else 0.0
    tokens = np.float64(v.decoding_tokens)
    spent_ns = np.float64(v.decoding_ns)
    out[26] = v.late / (v.late + np.float64(v.num_clients))
    out[27] = min(1.0, (v.clock_ns - v.in_time_release_ns) / ttft_ns)
    out[28] = prefill_ns / (prefill_ns + ttft_ns)
    out[29] = decode_ns / (decode_ns + tpot_ns)
    out[30] = spent_ns / (spent_ns + tpot_ns * tokens) if spent_ns > 0 else 0.0
    after_ns = spent_ns + active * (prefill_ns + decode_ns)
    out[31] = after_ns / (after_ns + tpot_ns * (tokens + active)) if after_ns > 0 else 0.0
    slack_ns = tpot_ns * (tokens + v.remaining) - spent_ns - decode_ns * v.remaining
    scale_ns = abs(slack_ns) + active * tpot_ns * v.mean_output_tokens
    out[32] = 0.5 + 0.5 * slack_ns / scale_ns if scale_ns > 0 else 0.5


@jit
def _observe_memory(v: Any, out: NDArray[np.float32], first: int) -> None:
    """Write `MEMORY_FEATURES` to ``out[first:]``."""
    budget = np.float64(v.kv_budget)
    used = np.float64(v.kv_used)
    pace = 16.0 * v.kv_growth
    waiting = np.float64(v.waiting_tokens + v.waiting_work)
    out[first] = used / budget
    out[first + 1] = pace / (pace + budget - used) if pace > 0 else 0.0
    out[first + 2] = min(1.0, (used + v.remaining) / budget)
    out[first + 3] = min(1.0, np.float64(v.batch_tokens + v.batch_work) / budget)
    out[first + 4] = waiting / (waiting + budget)
    out[first + 5] = v.preempted / (v.preempted + np.float64(v.num_clients))


@jit
def _observe_mixed(v: Any, out: NDArray[np.float32], first: int) -> None:
    """Write `MIXED_FEATURES` to ``out[first:]``."""
    budget, chunk = np.float64(v.mixed_budget), np.float64(v.chunk_tokens)
    decode_ns = np.float64(v.decode_ns) if v.active > 0 else 0.0
    mixed_ns = np.float64(v.mixed_ns)
    out[first] = min(1.0, chunk / budget)
    out[first + 1] = min(1.0, chunk / v.batch_tokens) if chunk > 0 else 0.0
    out[first + 2] = mixed_ns / (mixed_ns + decode_ns) if chunk > 0 else 0.0
    out[first + 3] = mixed_ns / (mixed_ns + np.float64(v.prefill_ns) + decode_ns) if chunk > 0 else 0.0
    out[first + 4] = v.reading_tokens / (v.reading_tokens + budget)


@jit
def observe(v: Any, out: NDArray[np.float32]) -> None:
    """Write the features of view ``v`` to ``out``, (num_features,) float32, in the order of :func:`feature_table`."""
    if v.ttft_ns > 0:
        _observe_promises(v, out)
    first = REMEMBERED if v.ttft_ns > 0 else PROMISED
    if v.kv_budget > 0:
        _observe_memory(v, out, first)
        first += MIXED - REMEMBERED
    if v.mixed_budget > 0:
        _observe_mixed(v, out, first)
    _observe_always(v, out)


@jit
def observe_all(v: Any, out: NDArray[np.float32]) -> None:
    """Write the features of view ``v`` to ``out``, by their places in `ALL_FEATURES`; what is not modelled is 0."""
    out[PROMISED : len(ALL_FEATURES)] = 0.0
    if v.ttft_ns > 0:
        _observe_promises(v, out)
    if v.kv_budget > 0:
        _observe_memory(v, out, REMEMBERED)
    if v.mixed_budget > 0:
        _observe_mixed(v, out, MIXED)
    _observe_always(v, out)


@jit
def _observe_always(v: Any, out: NDArray[np.float32]) -> None:
    """Write `FEATURES`."""
    clients = np.float64(v.num_clients)
    share = 1.0 / clients
    mean = v.mean_output_tokens
    active = np.float64(v.active)
    batch = np.float64(v.batch_requests)
    price = np.float64(v.alpha_prefill_ns) * active
    charge = np.float64(v.alpha_decode_ns) * np.float64(v.idle_charge)
    ahead = charge + np.float64(v.alpha_decode_ns) * np.float64(v.ready)
    fixed = np.float64(v.alpha_prefill_ns + v.alpha_decode_ns)
    released = np.float64(v.completed + v.active + v.waiting + v.preempted + (1 if v.reading_tokens > 0 else 0))

    out[0] = active * share
    out[1] = v.ready * share
    out[2] = (v.idle - v.ready) * share
    out[3] = v.waiting / (v.waiting + clients)
    out[4] = v.completed / released if released > 0 else 0.0
    out[5] = charge / (charge + price) if charge > 0 else 0.0
    out[6] = ahead / (ahead + price) if ahead > 0 else 0.0
    out[7] = v.alpha_prefill_ns / fixed if fixed > 0 else 0.0
    out[8] = batch * share
    out[9] = min(1.0, v.batch_tokens / v.token_cap)
    out[10] = v.prefill_ns / np.float64(v.prefill_ns + v.decode_ns) if v.batch_requests > 0 else 0.0
    out[11] = v.batch_work / (v.batch_work + mean * batch) if v.batch_requests > 0 else 0.0
    out[12] = v.beta_decode_ns * active / v.decode_ns if v.active > 0 else 0.0
    since = np.float64(v.decodes - v.last_prefill_decode)
    out[13] = since / (since + 16.0)
    out[14] = v.consecutive_prefills / (v.consecutive_prefills + 4.0)
    out[15] = v.due_1 * share
    out[16] = v.due_4 * share
    out[17] = v.due_16 * share
    out[18] = v.due_64 * share
    out[19] = v.due_256 * share
    out[20] = v.overdue * share
    if v.active > 0:
        remaining = v.remaining / active
        spread = np.sqrt(max(0.0, v.remaining_squared / active - remaining * remaining))
        longest = np.float64(max(0, v.last_due - v.decodes))
        out[21] = remaining / (remaining + mean)
        out[22] = spread / (spread + mean)
        out[23] = longest / (longest + mean)
    else:
        out[21] = 0.0
        out[22] = 0.0
        out[23] = 0.0
    out[24] = v.waiting_work / (v.waiting_work + clients * mean)
    age = np.float64(v.clock_ns - v.oldest_release_ns) if v.waiting > 0 else 0.0
    out[25] = age / (age + mean * v.decode_ns) if age > 0 else 0.0
