"""Cases with any mechanisms that go together: as Hypothesis draws them, and by number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import Case

from llmsched_env.config import (
    ADMISSIONS,
    KEYED_ORDERS,
    KV_VICTIMS,
    ORDER_CODES,
    ORDERS,
    STEALS,
    KVCache,
    Migration,
    Mixed,
    Noise,
)
from llmsched_env.cost import CostModel, MixedCost

MIXED_COSTS = (
    MixedCost(overlaps=True),
    MixedCost(False, 60, 10, 3, 17),
    MixedCost(False, 120, 1),
    MixedCost(False, 0, 10),
)

Pick = Callable[[Sequence[Any]], Any]
"""Chooses one of some values."""


def _even(seed: int) -> Pick:
    rng = np.random.default_rng(seed)
    return lambda values: values[rng.integers(len(values))]


@st.composite
def combined_cases(draw: st.DrawFn) -> Case:
    """Any legal combination of mechanisms, each of them mostly on, on few requests and clients, in small numbers."""
    return _combined(lambda values: draw(st.sampled_from(values)))


def combined_case(seed: int) -> Case:
    """The same without Hypothesis, which makes most examples out of earlier ones: these meet all pairs evenly."""
    return _combined(_even(seed))


KINDS = ((0, 1, 2), (0, 2), (2,), (0, 2, 2, 2), (1, 2), (0, 1))
"""Some leave out kinds of iterations, so that prefills stay chunked."""

COMBINED_ACTIONS = st.sampled_from(KINDS).flatmap(
    lambda kinds: st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 7)), min_size=1, max_size=40)
)
"""Kinds and variants, for `Case.number`, to be repeated until an episode ends."""


def combined_actions(seed: int) -> list[tuple[int, int]]:
    """The same without Hypothesis."""
    pick = _even(seed)
    kinds = pick(KINDS)
    return [(pick(kinds), pick(range(8))) for _ in range(40)]


def _combined(pick: Pick) -> Case:
    shared = pick((True, True, True, False))
    case = _plain_case(pick)
    if pick((False, True, True)):
        choose_order = shared and pick((False, True))
        case = replace(
            case,
            order="fcfs" if choose_order else pick((*ORDER_CODES,)) if shared else case.order,
            ttft_ns=pick((300, 60, 200, 500, 1000, 3000)),
            tpot_ns=pick((60, 30, 90, 150, 400)),
            uncounted=pick((0, 0, 1)) if len(case.prompts) > 2 else 0,
            choose_order=choose_order,
        )
    if shared:
        rule = pick(("", "keep_growth", "keep_growth", "vllm_v1", "vllm_v1", "vllm_v0"))
        if rule != "vllm_v0" and pick((False, True, True, True)):
            counts_active, whole, cost = pick((False, True)), pick((False, False, False, True)), pick(MIXED_COSTS)
            case = replace(case, mixed=Mixed(pick((3, 1, 2, 4, 6, 8, 40)), counts_active, whole, cost))
        if rule == "vllm_v1" and pick((False, True)):
            case = _alike(case, pick)
        if rule:
            case = replace(case, kv_cache=_cache(case, rule, pick))
    else:
        case = _on_client_queues(case, pick)
    if case.mixed is None and pick((False, True)):
        most = max(p + n for p, n in zip(case.prompts, case.outputs, strict=True))
        case = replace(case, levels=((5, 90), (13, 140), (20 + case.token_cap + most, 700)))
    case = _noisy(case, pick) if pick((False, True)) else case
    if case.noise is not None and case.noise.believed is not None:
        believed = replace(case.noise.believed, first_decode_ns=pick((0, 31)))
        case = replace(case, noise=replace(case.noise, believed=believed))
    case = replace(case, first_decode_ns=pick((0, 23, 400)))
    batch = case.kv_cache is not None and case.releases_ns[-1] == 0
    order = pick((case.order, "smallest_volume_first", "aged_shortest_first", *["sorted_f"] * (3 * batch)))
    if case.kv_cache is not None and case.kv_cache.rule == "keep_growth":
        case = replace(case, kv_cache=replace(case.kv_cache, victim=pick(KV_VICTIMS)))
    if not case.choose_order:
        case = replace(case, order=order, aging_tokens_per_s=pick((0.0, 1e7, 5e7)))
    if case.mixed is not None and case.ttft_ns and not case.mixed.whole_prompts and pick((False, True, True)):
        case = replace(case, mixed=replace(case.mixed, within_slack=True))
    free = shared and not case.ttft_ns and (case.kv_cache is None or not case.kv_cache.cap_levels)
    if free and case.order != "sorted_f" and pick((False, True, True)):
        case = replace(case, order="longest_first", aging_tokens_per_s=0.0, choose_length=True)
    return case


def _plain_case(pick: Pick) -> Case:
    crowded = pick((False, True))  # whoever begins stays long, beside others
    n = pick(range(5, 13) if crowded else range(1, 10))
    lengths = (8, 10, 13, 16, 20, 24) if crowded else (*range(1, 9), 16)
    prompts, outputs = ([pick(lengths) for _ in range(n)] for _ in range(2))
    estimates = [pick((5, 1, 2, 3, 9, 16, 24)) for _ in range(n)] if pick((False, True, True)) else outputs
    gaps = [pick((0, 0, 0, 40, 150, 400, 1000)) for _ in range(n)] if pick((False, True, True)) else [0] * n
    return Case(
        tuple(prompts),
        tuple(outputs),
        pick(range(3, 7) if crowded else range(1, 6)),
        estimates=tuple(estimates),
        releases_ns=tuple(itertools.accumulate(gaps)),
        order=pick(ORDERS),
        alpha_prefill_ns=pick((100, 0, 37)),
        beta_prefill_ns=pick((10, 1)),
        alpha_decode_ns=pick((50, 0)),
        beta_decode_ns=pick((1, 7)),
        gamma_decode_ns=pick((0, 0, 3)),
        token_cap=pick((1000, 1, 7, 15, 30)),
    )


def _alike(case: Case, pick: Pick) -> Case:
    """The case with prompts that begin alike, of blocks with few different ids; some say less than their length."""
    tokens = pick((1, 2, 4, 6))
    full = [-(-prompt // tokens) for prompt in case.prompts]
    prefixes = tuple(tuple(pick((0, 0, 0, 1)) for _ in range(pick((most, most, most // 2)))) for most in full)
    return replace(case, prefixes=prefixes, prefix_tokens=tokens) if any(prefixes) else case


def _cache(case: Case, rule: str, pick: Pick) -> KVCache:
    """One that holds the largest request alone, and little more."""
    block, uncached = pick((1, 3, 4, 16)), int(rule != "keep_growth")
    if case.prefixes:
        block = pick([size for size in (1, 2, 3, 4, 6) if case.prefix_tokens % size == 0])
    longest = max(p + n - uncached for p, n in zip(case.prompts, case.outputs, strict=True))
    headroom = pick((0, 0, 1)) * (5 if rule == "keep_growth" else block)
    budget = -(-longest // block) * block + (headroom if rule == "vllm_v0" else 0)
    budget += pick((0, 1, 2, 5)) * block + pick((0, 1, 4, 10, 20))
    caps = 0 if case.choose_order else pick((0, 4))
    if uncached:
        shares = rule == "vllm_v1" and bool(case.prefixes)
        return KVCache(budget, block, headroom, cap_levels=caps, rule=rule, prefix_caching=shares)
    return KVCache(budget, block, headroom, pick(ADMISSIONS), pick((0, 2, 6, 30)), pick((0, 0, 3)), caps)


def _on_client_queues(case: Case, pick: Pick) -> Case:
    """The case on client queues, mostly uneven ones: some clients begin as thieves."""
    num_clients = case.num_clients + 1
    busy = range(pick(range(1, num_clients + 1)))
    stealing = pick((False, True, True, True))
    moves = None
    if pick((False, True, True)):
        moves = Migration(pick((0, 300_000, 900_000)), pick(STEALS) if stealing else "waiting", pick((0, 0, 1, 15)))
    queues = tuple(pick(busy) for _ in case.prompts)
    return replace(case, num_clients=num_clients, queues=queues, stealing=stealing, migration=moves)


def _noisy(case: Case, pick: Pick) -> Case:
    """The case with noise, stragglers, a wrong belief, or several of them."""
    believed = None
    if pick((False, True, True)):
        coefficients = (pick((80, 0, 130)), pick((1, 13)), pick((40, 0)), pick((1, 9)), pick((0, 0, 2)))
        believed = CostModel("believed", *coefficients, case.token_cap, case.levels if pick((False, True)) else ())
        if case.mixed is not None and not case.mixed.cost.overlaps:
            case = replace(case, believed_mixed=pick((None, MixedCost(False, 90, 4, 1, 40))))
    probability = pick((0.0, 0.05, 0.4))
    factor = pick((2.5, 40.0)) if probability else 1.0
    noise = Noise(believed, pick((0.0, 0.3, 1.5)), probability, factor, pick(range(2**16)))
    return replace(case, noise=noise)


def _rule(name: str) -> Callable[[Case], bool]:
    return lambda case: case.kv_cache is not None and case.kv_cache.rule == name


MECHANISMS: dict[str, Callable[[Case], bool]] = {
    "keep_growth": _rule("keep_growth"),
    "vllm_v0": _rule("vllm_v0"),
    "vllm_v1": _rule("vllm_v1"),
    "prefix caching": lambda case: case.kv_cache is not None and case.kv_cache.prefix_caching,
    "reserve": lambda case: case.kv_cache is not None and case.kv_cache.admission == "reserve",
    "predicted": lambda case: case.kv_cache is not None and case.kv_cache.admission == "predicted",
    "swap": lambda case: case.kv_cache is not None and case.kv_cache.swap_token_ns > 0,
    "least_estimate": lambda case: case.kv_cache is not None and case.kv_cache.victim == "least_estimate",
    "caps": lambda case: case.kv_cache is not None and case.kv_cache.cap_levels > 0,
    "mixed": lambda case: case.mixed is not None,
    "whole prompts": lambda case: case.mixed is not None and case.mixed.whole_prompts,
    "overlap": lambda case: case.mixed is not None and case.mixed.cost.overlaps,
    "within slack": lambda case: case.mixed is not None and case.mixed.within_slack,
    "SLOs": lambda case: case.ttft_ns > 0,
    "orders": lambda case: case.order != "fcfs",
    "smallest_volume_first": lambda case: case.order == "smallest_volume_first",
    "aged_shortest_first": lambda case: case.order == "aged_shortest_first" and case.aging_tokens_per_s > 0,
    "sorted_f": lambda case: case.order == "sorted_f",
    "choose_order": lambda case: case.choose_order,
    "choose_length": lambda case: case.choose_length,
    "client queues": lambda case: case.queues is not None,
    "stealing": lambda case: case.stealing,
    "cached prompts": lambda case: case.migration is not None and case.migration.cached_millionths > 0,
    "migration": lambda case: case.migration is not None and case.migration.steal != "waiting",
    "noise": lambda case: case.noise is not None and case.noise.noise_sd > 0,
    "stragglers": lambda case: case.noise is not None and case.noise.straggler_probability > 0,
    "believed cost": lambda case: case.noise is not None and case.noise.believed is not None,
    "levels": lambda case: bool(case.levels),
    "context": lambda case: case.gamma_decode_ns > 0,
    "first decode": lambda case: case.first_decode_ns > 0,
    "arrivals": lambda case: case.releases_ns[-1] > 0,
}
"""What a case may have, for tests that count what they have met."""

_APART = (
    (("keep_growth",), ("vllm_v0", "vllm_v1", "prefix caching")),
    (("prefix caching",), ("vllm_v0", "reserve", "predicted", "swap", "least_estimate")),
    (("vllm_v0",), ("vllm_v1", "mixed", "whole prompts", "overlap", "within slack")),
    (("within slack",), ("whole prompts",)),
    (("vllm_v0", "vllm_v1"), ("reserve", "predicted", "swap", "least_estimate")),
    (("reserve",), ("predicted",)),
    (("choose_order",), ("caps", "orders", *KEYED_ORDERS)),
    (("choose_length",), ("caps", "SLOs", "within slack", "choose_order", *KEYED_ORDERS)),
    (("smallest_volume_first",), ("aged_shortest_first",)),
    (
        ("sorted_f",),
        ("smallest_volume_first", "aged_shortest_first", "arrivals", "client queues", "stealing", "cached prompts",
         "migration"),
    ),
    (("levels",), ("mixed", "whole prompts", "overlap", "within slack")),
    (
        ("client queues", "stealing", "cached prompts", "migration"),
        ("keep_growth", "vllm_v0", "vllm_v1", "prefix caching", "reserve", "predicted", "swap", "least_estimate",
         "caps", "mixed", "whole prompts", "overlap", "within slack", "choose_order", "choose_length"),
    ),
)  # fmt: skip

PAIRS = [
    pair
    for pair in itertools.combinations(MECHANISMS, 2)
    if not any({a, b} == set(pair) for one, other in _APART for a in one for b in other)
]
"""Mechanisms that go together."""


def pairs_of(case: Case) -> list[tuple[str, str]]:
    """Those that the case has."""
    return list(itertools.combinations([name for name, has in MECHANISMS.items() if has(case)], 2))
