"""The observation: a fixed list of numbers in [0, 1] that mean the same at any size and on any cost scale.

A count of clients is divided by J; a ratio of two prices or lengths x : y becomes x / (x + y). The tables of names and
formulas are what the documentation and the tests read; the functions compute the row, in the same order.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes
from llmsched_env.engine.arrays import view_of
from llmsched_env.engine.view import View
from llmsched_env.errors import ConfigError


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

SLO_FEATURES: tuple[Feature, ...] = (
    Feature("late", "L / (L + J): waiting requests that are late, whose TTFT SLO cannot be met any more"),
    Feature("in_time_wait", "min(1, age of the oldest waiting request that is not late / S1); 0 where there is none"),
    Feature("prefill_price", "T_p / (T_p + S1): that prefill's duration against the TTFT SLO"),
    Feature("decode_price", "T_d / (T_d + S2): a decode's duration now against the TPOT SLO"),
    Feature("pace", "p / (p + S2), p the mean time per output token of the active clients so far"),
    Feature("pace_after", "the same if that prefill came now, and then a decode"),
    Feature(
        "slack",
        "(1 + x / (abs x + A S2 m)) / 2, x = S2 * (tokens emitted and expected of the active clients) - time of the "
        "emitted - T_d * the expected",
    ),
)
"""What follows where there are service-level objectives: a TTFT S1 and a TPOT S2."""

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
    Feature("reading", "r / (r + b): what is left to compute of the partly prefilled prompt"),
)
"""What follows where a mixed iteration may read b tokens beside a decode."""


def feature_table(slo: bool, memory: bool = False, mixed: bool = False) -> tuple[Feature, ...]:
    """The observation, entry by entry: with objectives, with a KV cache, with mixed iterations, or without."""
    table = FEATURES + (SLO_FEATURES if slo else ())
    return table + (MEMORY_FEATURES if memory else ()) + (MIXED_FEATURES if mixed else ())


def features_of(scenario: _Scenario) -> tuple[Feature, ...]:
    """The observation of a scenario, entry by entry."""
    return feature_table(scenario.serving, scenario.kv_limited, scenario.mixes)


TABLES = tuple(
    feature_table(slo, memory, mixed) for slo in (False, True) for memory in (False, True) for mixed in (False, True)
)
"""Every observation that a scenario can have; no two are as long."""

ALL_FEATURES = feature_table(slo=True, memory=True, mixed=True)
"""Every feature at a place that does not depend on the scenario."""


def check_whole(view: View) -> None:
    """Raise where a view made by hand lacks what features divide by.

    Raises:
        ConfigError: it does.
    """
    needed = ["num_clients", "token_cap", "mean_output_tokens"]
    needed += ["decode_ns"] * (view.active > 0) + ["prefill_ns"] * (view.batch_requests > 0)
    lacking = [name for name in needed if not getattr(view, name) > 0]
    if lacking:
        raise ConfigError(
            f"features need {' and '.join(lacking)} above 0, and this view has "
            f"{', '.join(f'{name}={getattr(view, name)}' for name in lacking)}: fill them in (docs/view.md)."
        )


def features(view: View) -> NDArray[np.float32]:
    """(num_features,) float32: the observation of a view.

    Raises:
        ConfigError: the view lacks what features divide by.
    """
    check_whole(view)
    table = feature_table(view.ttft_ns > 0, view.kv_budget_tokens > 0, view.mixed_tokens > 0)
    out: NDArray[np.float32] = np.empty(len(table), np.float32)
    observe(view, view_of(out[np.newaxis]), 0)
    return out


def all_features(view: View) -> NDArray[np.float32]:
    """(len(ALL_FEATURES),) float32, by their places there; what is not modelled is 0.

    Raises:
        ConfigError: the view lacks what features divide by.
    """
    check_whole(view)
    out: NDArray[np.float32] = np.zeros(len(ALL_FEATURES), np.float32)
    observe_all(view, view_of(out[np.newaxis]), 0)
    return out


def observe(v: View, out: cython.float[:, ::1], row: cython.int) -> cython.void:
    """Write the features of a view, in the order of :func:`feature_table`."""
    first: cython.int = codes.FEATURES
    observe_always(v, out, row)
    if out.shape[1] == codes.FEATURES:
        return  # and the rest of the view stays in a far cache
    if v.ttft_ns > 0:
        observe_slo(v, out, row, first)
        first += codes.SLO_FEATURES
    if v.kv_budget_tokens > 0:
        observe_memory(v, out, row, first)
        first += codes.MEMORY_FEATURES
    if v.mixed_tokens > 0:
        observe_mixed(v, out, row, first)


def observe_all(v: View, out: cython.float[:, ::1], row: cython.int) -> cython.void:
    """Write the features of a view by their places in `ALL_FEATURES`; the others stay as they are."""
    observe_always(v, out, row)
    if v.ttft_ns > 0:
        observe_slo(v, out, row, codes.FEATURES)
    if v.kv_budget_tokens > 0:
        observe_memory(v, out, row, codes.FEATURES + codes.SLO_FEATURES)
    if v.mixed_tokens > 0:
        observe_mixed(v, out, row, codes.FEATURES + codes.SLO_FEATURES + codes.MEMORY_FEATURES)


def share(part: cython.double, rest: cython.double) -> cython.double:
    """``part`` of the sum of both; 0 where it is not above 0."""
    return part / (part + rest) if part > 0 else 0.0


def at_most_one(x: cython.double) -> cython.double:
    """``x``, or 1."""
    return x if x < 1.0 else 1.0


def observe_slo(v: View, out: cython.float[:, ::1], row: cython.int, first: cython.int) -> cython.void:
    """Write `SLO_FEATURES` to ``out[row, first:]``."""
    active: cython.double = v.active
    ttft_ns: cython.double = v.ttft_ns
    tpot_ns: cython.double = v.tpot_ns
    prefill_ns: cython.double = v.prefill_ns if v.batch_requests > 0 else 0
    decode_ns: cython.double = v.decode_ns if v.active > 0 else 0
    tokens: cython.double = v.decoding_tokens
    spent_ns: cython.double = v.decoding_ns
    clients: cython.double = v.num_clients
    remaining: cython.double = v.remaining
    after_ns: cython.double
    slack_ns: cython.double
    scale_ns: cython.double
    waited_ns: cython.double = v.clock_ns - v.in_time_release_ns
    out[row, first] = v.late / (v.late + clients)
    out[row, first + 1] = at_most_one(waited_ns / ttft_ns)
    out[row, first + 2] = prefill_ns / (prefill_ns + ttft_ns)
    out[row, first + 3] = decode_ns / (decode_ns + tpot_ns)
    out[row, first + 4] = share(spent_ns, tpot_ns * tokens)
    after_ns = spent_ns + active * (prefill_ns + decode_ns)
    out[row, first + 5] = share(after_ns, tpot_ns * (tokens + active))
    slack_ns = tpot_ns * (tokens + remaining) - spent_ns - decode_ns * remaining
    scale_ns = (slack_ns if slack_ns > 0 else -slack_ns) + active * tpot_ns * v.mean_output_tokens
    out[row, first + 6] = 0.5 + 0.5 * slack_ns / scale_ns if scale_ns > 0 else 0.5


def observe_memory(v: View, out: cython.float[:, ::1], row: cython.int, first: cython.int) -> cython.void:
    """Write `MEMORY_FEATURES` to ``out[row, first:]``."""
    budget: cython.double = v.kv_budget_tokens
    used: cython.double = v.kv_used
    pace: cython.double = 16.0 * v.kv_growth
    waiting: cython.double = v.waiting_tokens + v.waiting_work
    batch: cython.double = v.batch_tokens + v.batch_work
    clients: cython.double = v.num_clients
    out[row, first] = used / budget
    out[row, first + 1] = pace / (pace + budget - used) if pace > 0 else 0.0
    out[row, first + 2] = at_most_one((used + v.remaining) / budget)
    out[row, first + 3] = at_most_one(batch / budget)
    out[row, first + 4] = waiting / (waiting + budget)
    out[row, first + 5] = v.preempted / (v.preempted + clients)


def observe_mixed(v: View, out: cython.float[:, ::1], row: cython.int, first: cython.int) -> cython.void:
    """Write `MIXED_FEATURES` to ``out[row, first:]``."""
    budget: cython.double = v.mixed_tokens
    chunk: cython.double = v.chunk_tokens
    decode_ns: cython.double = v.decode_ns if v.active > 0 else 0
    mixed_ns: cython.double = v.mixed_ns
    prefill_ns: cython.double = v.prefill_ns if v.batch_requests > 0 else 0
    out[row, first] = at_most_one(chunk / budget)
    out[row, first + 1] = at_most_one(chunk / v.batch_tokens) if chunk > 0 and v.batch_tokens > 0 else 0.0
    out[row, first + 2] = mixed_ns / (mixed_ns + decode_ns) if chunk > 0 else 0.0
    out[row, first + 3] = mixed_ns / (mixed_ns + prefill_ns + decode_ns) if chunk > 0 else 0.0
    out[row, first + 4] = v.reading_tokens / (v.reading_tokens + budget)


def observe_always(v: View, out: cython.float[:, ::1], row: cython.int) -> cython.void:
    """Write `FEATURES`."""
    clients: cython.double = v.num_clients
    per_client: cython.double = 1.0 / clients
    mean: cython.double = v.mean_output_tokens
    active: cython.double = v.active
    batch: cython.double = v.batch_requests
    alpha_prefill_ns: cython.double = v.alpha_prefill_ns
    alpha_decode_ns: cython.double = v.alpha_decode_ns
    prefill_ns: cython.double = v.prefill_ns
    both_ns: cython.double = v.prefill_ns + v.decode_ns
    decode_ns: cython.double = v.decode_ns
    price: cython.double = alpha_prefill_ns * active
    charge: cython.double = alpha_decode_ns * v.idle_charge
    ahead: cython.double = charge + alpha_decode_ns * v.ready
    fixed: cython.double = v.alpha_prefill_ns + v.alpha_decode_ns
    released: cython.double = v.completed + v.active + v.waiting
    tokens: cython.double = v.batch_tokens
    since: cython.double = v.decodes - v.last_prefill_decode
    remaining: cython.double
    spread: cython.double
    longest: cython.double
    age: cython.double = v.clock_ns - v.oldest_release_ns if v.waiting > 0 else 0
    work: cython.double = v.waiting_work
    batch_work: cython.double = v.batch_work
    if out.shape[1] > codes.FEATURES:
        released += v.preempted + (1 if v.reading_tokens > 0 else 0)
    out[row, 0] = active * per_client
    out[row, 1] = v.ready * per_client
    out[row, 2] = (v.idle - v.ready) * per_client
    out[row, 3] = v.waiting / (v.waiting + clients)
    out[row, 4] = v.completed / released if released > 0 else 0.0
    out[row, 5] = share(charge, price)
    out[row, 6] = share(ahead, price)
    out[row, 7] = alpha_prefill_ns / fixed if fixed > 0 else 0.0
    out[row, 8] = batch * per_client
    out[row, 9] = at_most_one(tokens / v.token_cap)
    out[row, 10] = prefill_ns / both_ns if v.batch_requests > 0 else 0.0
    out[row, 11] = batch_work / (batch_work + mean * batch) if v.batch_requests > 0 else 0.0
    out[row, 12] = v.beta_decode_ns * active / decode_ns if v.active > 0 else 0.0
    out[row, 13] = since / (since + 16.0)
    out[row, 14] = v.consecutive_prefills / (v.consecutive_prefills + 4.0)
    out[row, 15] = v.due_1 * per_client
    out[row, 16] = v.due_4 * per_client
    out[row, 17] = v.due_16 * per_client
    out[row, 18] = v.due_64 * per_client
    out[row, 19] = v.due_256 * per_client
    out[row, 20] = v.overdue * per_client
    if v.active > 0:
        remaining = v.remaining / active
        spread = v.remaining_squared / active - remaining * remaining
        spread = math.sqrt(spread) if spread > 0 else 0.0
        longest = v.last_due - v.decodes if v.last_due > v.decodes else 0
        out[row, 21] = remaining / (remaining + mean)
        out[row, 22] = spread / (spread + mean)
        out[row, 23] = longest / (longest + mean)
    else:
        out[row, 21] = 0.0
        out[row, 22] = 0.0
        out[row, 23] = 0.0
    out[row, 24] = work / (work + clients * mean)
    out[row, 25] = age / (age + mean * decode_ns) if age > 0 else 0.0
