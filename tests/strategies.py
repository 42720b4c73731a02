"""Small cases: how tests write them down, how Hypothesis draws them, and what the simulator makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from llmsched_env.cases import bounds_ns
from llmsched_env.config import (
    KV_RULES,
    KV_VICTIMS,
    ORDER_CODES,
    ORDERS,
    SLO,
    STEALS,
    KVCache,
    Mechanism,
    Migration,
    Mixed,
    Noise,
)
from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.problem import Problem
from llmsched_env.workload import Requests
from llmsched_env.workload.prefix_blocks import PrefixBlocks

DECODE, PREFILL, MIXED = 0, 1, 2
"""Kinds of iterations, and, where no action says more than the kind, actions."""

CHOICES = ("fcfs", "late_last", "shortest_first", "late_last_shortest", "longest_first", "late_last_longest")
"""Orders of actions 1, 2, ... where they are to be chosen."""

REPEATABLE = settings(deadline=None, derandomize=True)
"""For laws that also assert what was exercised: the same examples in every run."""


@dataclass(frozen=True)
class Case:
    """Everything that fixes an episode but the actions: plain Python, one entry a request in release order."""

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    num_clients: int
    estimates: tuple[int, ...] = ()
    releases_ns: tuple[int, ...] = ()
    queues: tuple[int, ...] | None = None
    order: str = "fcfs"
    stealing: bool = False
    alpha_prefill_ns: int = 100
    beta_prefill_ns: int = 10
    alpha_decode_ns: int = 50
    beta_decode_ns: int = 1
    gamma_decode_ns: int = 0
    token_cap: int = 1000
    levels: tuple[tuple[int, int], ...] = ()
    ttft_ns: int = 0  # 0: no SLOs
    tpot_ns: int = 0
    uncounted: int = 0
    choose_order: bool = False
    choose_length: bool = False
    kv_cache: KVCache | None = None
    mixed: Mixed | None = None
    migration: Migration | None = None
    noise: Noise | None = None
    first_decode_ns: int = 0
    aging_tokens_per_s: float = 0.0
    prefixes: tuple[tuple[int, ...], ...] = ()  # ids of what prompts are made of; none without prefix caching
    prefix_tokens: int = 0  # that each id stands for
    believed_mixed: MixedCost | None = None  # beside a believed cost model; None: what `mixed` says

    def __post_init__(self) -> None:
        if not self.estimates:
            object.__setattr__(self, "estimates", self.outputs)
        if not self.releases_ns:
            object.__setattr__(self, "releases_ns", (0,) * len(self.prompts))

    @property
    def cost(self) -> CostModel:
        return CostModel(
            "test",
            self.alpha_prefill_ns,
            self.beta_prefill_ns,
            self.alpha_decode_ns,
            self.beta_decode_ns,
            self.gamma_decode_ns,
            self.token_cap,
            self.levels,
            first_decode_ns=self.first_decode_ns,
        )

    @cached_property
    def believed(self) -> Case:
        """The case with the cost model that schedulers believe in."""
        model = self.noise.believed if self.noise else None
        if model is None:
            return self
        return replace(
            self,
            alpha_prefill_ns=model.alpha_prefill_ns,
            beta_prefill_ns=model.beta_prefill_ns,
            alpha_decode_ns=model.alpha_decode_ns,
            beta_decode_ns=model.beta_decode_ns,
            gamma_decode_ns=model.gamma_decode_ns,
            first_decode_ns=model.first_decode_ns,
            levels=model.prefill_levels,
            mixed=self.mixed and replace(self.mixed, cost=self.believed_mixed or self.mixed.cost),
        )

    @cached_property
    def variants(self) -> tuple[tuple[str, int], ...]:
        """Orders and most active clients among which the actions of one kind choose."""
        if self.choose_order:
            return tuple((order, self.num_clients) for order in CHOICES)
        if self.choose_length:
            return tuple((f"window {part}", self.num_clients) for part in range(17))
        levels = self.kv_cache.cap_levels if self.kv_cache else 0
        caps = tuple(-(-level * self.num_clients // levels) for level in range(levels, 0, -1))
        return tuple((self.order, cap) for cap in caps or (self.num_clients,))

    @cached_property
    def num_actions(self) -> int:
        """A decode, a prefill in each variant, where there are any a mixed iteration in each variant, and waits."""
        return len(self.actions)

    @cached_property
    def first_mixed(self) -> int:
        """The action that is a mixed iteration in the variant of action 1."""
        return 1 + len(self.variants)

    def number(self, kind: int, variant: int) -> int:
        """The action of this kind and, counted around, variant; a prefill where there are no mixed iterations."""
        if kind == DECODE:
            return 0
        first = self.first_mixed if kind == MIXED and self.mixed else 1
        return first + variant % len(self.variants)

    @cached_property
    def actions(self) -> tuple[tuple[int, str, int], ...]:
        """Of each action: kind of its iteration, order, and most clients that are active after it.

        One request may start in any case.
        """
        kinds = (PREFILL, MIXED) if self.mixed else (PREFILL,)
        decode = (DECODE, *self.variants[0])
        waits = (decode,) * len(self.waits)
        return (decode, *((kind, *variant) for kind in kinds for variant in self.variants), *waits)

    @cached_property
    def waits(self) -> tuple[int, ...]:
        """Idle clients until which the last actions decode."""
        percents = (4, 6, 8, *range(9, 17), 18) if self.choose_length else ()
        return tuple(max(1, self.num_clients * percent // 100) for percent in percents)

    def action(self, number: int) -> tuple[int, str, int]:
        """That of this number."""
        assert 0 <= number < self.num_actions, f"there are {self.num_actions} actions, and no {number}"
        return self.actions[number]

    @property
    def slo(self) -> SLO | None:
        if not self.ttft_ns:
            return None
        last = len(self.prompts) - self.uncounted
        return SLO(self.ttft_ns, self.tpot_ns, self.uncounted, last, self.choose_order)

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        mixed = self.mixed and replace(self.mixed, believed_cost=self.believed_mixed)
        found = (self.slo, self.kv_cache, mixed, self.migration, self.noise)
        return tuple(one for one in found if one is not None)

    @property
    def requests(self) -> Requests:
        blocks = None
        if self.prefixes:
            ids = np.array([one for prompt in self.prefixes for one in prompt], np.int64)
            starts = np.cumsum([0, *map(len, self.prefixes)], dtype=np.int64)
            blocks = PrefixBlocks(ids, starts, self.prefix_tokens)
        columns = list(self.prompts), list(self.outputs)
        return Requests.of(*columns, release_ns=list(self.releases_ns), prefix_blocks=blocks)

    def problem(self, **options: Any) -> Problem:
        """The case as the engine reads it; ``options`` as those of `Problem.build` (reward, skip_forced, ...)."""
        lb1, best = bounds_ns(self.requests, self.num_clients, self.cost, self.migration, self.mixed, self.kv_cache)
        return Problem.build(
            self.requests,
            np.array(self.estimates, np.int32),
            self.cost,
            self.num_clients,
            client_of=None if self.queues is None else np.array(self.queues, np.int32),
            order=self.order,
            stealing=self.stealing,
            bound_ns=best,
            lb1_ns=lb1,
            mechanisms=self.mechanisms,
            aging_tokens_per_s=self.aging_tokens_per_s,
            choose_length=self.choose_length,
            **options,
        )


def _lengths(longest: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, 8), st.integers(1, longest))


@st.composite
def cases(draw: st.DrawFn, *, affine: bool = False, arrivals: bool = True, longest: int = 24) -> Case:
    """Few requests on few clients, with every mechanism on or off."""
    longest = 300 if longest > 20 and draw(st.integers(0, 9)) == 9 else longest
    n, num_clients = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    outputs = draw(st.lists(_lengths(longest), min_size=n, max_size=n))
    prompts = draw(st.lists(st.integers(1, 12), min_size=n, max_size=n))
    kind = draw(st.sampled_from(["known", "noisy", "hidden"]))
    if kind == "noisy":
        estimates = draw(st.lists(_lengths(longest), min_size=n, max_size=n))
    else:
        estimates = outputs if kind == "known" else [draw(_lengths(longest))] * n
    gaps = [0] * n
    if arrivals and draw(st.booleans()):
        gaps = draw(st.lists(st.sampled_from([0, 0, 1, 40, 150, 150, 1000, 5000]), min_size=n, max_size=n))
    queues = None
    if draw(st.integers(0, 3)) > 0:
        queues = tuple(draw(st.lists(st.integers(0, num_clients - 1), min_size=n, max_size=n)))
    token_cap = draw(st.sampled_from([1, 7, 15, 30, 1000]))
    levels: tuple[tuple[int, int], ...] = ()
    gamma = first = 0
    if not affine:
        gamma, first = draw(st.sampled_from([(0, 0), (0, 23), (3, 23)]))
        if draw(st.integers(0, 3)) == 0:
            levels = ((5, 90), (13, 140), (max(13, token_cap) + 7, 260))
    return Case(
        tuple(prompts),
        tuple(outputs),
        num_clients,
        estimates=tuple(estimates),
        releases_ns=tuple(accumulate(gaps)),
        queues=queues,
        order=draw(st.sampled_from((*ORDERS, "smallest_volume_first"))),
        stealing=draw(st.integers(0, 2)) > 0,
        alpha_prefill_ns=draw(st.sampled_from([0, 37, 100])),
        beta_prefill_ns=draw(st.sampled_from([1, 10])),
        alpha_decode_ns=draw(st.sampled_from([0, 50])),
        beta_decode_ns=draw(st.sampled_from([1, 7])),
        gamma_decode_ns=gamma,
        first_decode_ns=first,
        token_cap=token_cap,
        levels=levels,
    )


@st.composite
def slo_cases(draw: st.DrawFn) -> Case:
    """The same on a shared queue, over time, with SLOs that some meet and others do not."""
    case = draw(cases())
    n = len(case.prompts)
    gaps = draw(st.lists(st.sampled_from([0, 0, 1, 40, 150, 150, 400, 1000]), min_size=n, max_size=n))
    return replace(
        case,
        releases_ns=tuple(accumulate(gaps)),
        queues=None,
        stealing=False,
        order=draw(st.sampled_from(list(ORDER_CODES))),
        ttft_ns=draw(st.sampled_from([60, 200, 300, 500, 1000, 3000])),
        tpot_ns=draw(st.sampled_from([30, 60, 90, 150, 400])),
        uncounted=draw(st.integers(0, (n - 1) // 2)),
        choose_order=draw(st.booleans()),
    )


@st.composite
def memory_cases(draw: st.DrawFn, rules: tuple[str, ...] = KV_RULES) -> Case:
    """Cases on a shared queue, with and without SLOs, with a KV cache that is mostly too small for all clients."""
    case = draw(st.one_of(slo_cases(), cases()))
    case = replace(case, queues=None, stealing=False)
    block = draw(st.sampled_from([1, 1, 4, 16]))
    most = max(-(-(p + n) // block) * block for p, n in zip(case.prompts, case.outputs, strict=True))
    if case.levels:
        case = replace(case, levels=(*case.levels, (case.levels[-1][0] + most, 700)))
    caps = 0 if case.choose_order else draw(st.sampled_from([0, 4]))
    room = draw(st.one_of(st.integers(0, 12), st.integers(0, 80)))
    rule = draw(st.sampled_from(rules))
    if rule != "keep_growth":
        most = max(-(-(p + n - 1) // block) * block for p, n in zip(case.prompts, case.outputs, strict=True))
        watermark = draw(st.sampled_from([0, 0, block]))
        cache = KVCache(
            most + (watermark if rule == "vllm_v0" else 0) + room,
            block,
            headroom_tokens=watermark,
            cap_levels=caps,
            rule=rule,
        )
        return replace(case, kv_cache=cache)
    cache = KVCache(
        most + room,
        block,
        headroom_tokens=draw(st.sampled_from([0, 0, 5])),
        admission=draw(st.sampled_from(["fits", "reserve", "predicted"])),
        reserve_tokens=draw(st.sampled_from([0, 2, 6, 30])),
        swap_token_ns=draw(st.sampled_from([0, 0, 3])),
        cap_levels=caps,
        victim=draw(st.sampled_from(KV_VICTIMS)),
    )
    return replace(case, kv_cache=cache)


@st.composite
def moving_cases(draw: st.DrawFn) -> Case:
    """Cases on client queues, mostly uneven ones, where prompts are cached in part or running requests move."""
    case = draw(cases())
    n, num_clients = len(case.prompts), draw(st.integers(2, 5))
    busy = draw(st.integers(1, min(3, num_clients)))  # the others begin as thieves
    steal = draw(st.sampled_from([*STEALS, "running", "cheaper", "cheaper"]))
    share = draw(st.sampled_from([0, 300_000, 500_000, 900_000, 999_999][3 * (steal == "cheaper") :]))
    moves = Migration(share, steal, draw(st.sampled_from([0, 0, 1, 15])))
    return replace(
        case,
        num_clients=num_clients,
        prompts=tuple(draw(st.lists(_lengths(60), min_size=n, max_size=n))),
        queues=tuple(draw(st.lists(st.integers(0, busy - 1), min_size=n, max_size=n))),
        token_cap=draw(st.sampled_from([1, 15, 60, 1000, 1000, 1000])),
        levels=((5, 90), (13, 140), (1007, 260)) if case.levels else (),
        stealing=draw(st.integers(0, 3)) > 0,
        migration=moves,
    )


@st.composite
def noisy_cases(draw: st.DrawFn) -> Case:
    """Cases of every kind whose iterations do not last what schedulers believe."""
    case = draw(st.one_of(cases(), slo_cases(), memory_cases(), mixed_cases(), moving_cases()))
    believed = None
    if draw(st.booleans()) and case.mixed is None:
        most = case.token_cap + max(p + n for p, n in zip(case.prompts, case.outputs, strict=True))
        believed = CostModel(
            "believed",
            draw(st.sampled_from([0, 80, 130])),
            draw(st.sampled_from([1, 13])),
            draw(st.sampled_from([0, 40])),
            draw(st.sampled_from([1, 9])),
            **draw(st.sampled_from([{}, {"first_decode_ns": 31}, {"gamma_decode_ns": 2, "first_decode_ns": 23}])),
            prefill_token_cap=case.token_cap,
            prefill_levels=draw(st.sampled_from([(), ((9, 70), (most, 300))])) if most > 9 else (),
        )
    probability = draw(st.sampled_from([0.0, 0.05, 0.4]))
    noise = Noise(
        believed,
        draw(st.sampled_from([0.0, 0.3, 1.5])),
        probability,
        1.0 if probability == 0 else draw(st.sampled_from([2.5, 40.0])),
        draw(st.integers(0, 2**32 - 1)),
    )
    return replace(case, noise=noise)


def seeded_case(seed: int, **changes: Any) -> Case:
    """A case of medium size without Hypothesis: 40 requests on 7 clients, noisy estimates, arrivals for odd seeds."""
    rng = np.random.default_rng(seed)
    n, num_clients = 40, 7
    outputs = rng.integers(1, 60, n)
    case = Case(
        tuple(rng.integers(1, 30, n).tolist()),
        tuple(outputs.tolist()),
        num_clients,
        estimates=tuple(np.maximum(1, outputs + rng.integers(-20, 20, n)).tolist()),
        releases_ns=tuple(np.cumsum(rng.integers(0, 500, n) * (seed % 2)).tolist()),
        queues=tuple(rng.integers(0, num_clients, n).tolist()) if seed % 3 else None,
        order=ORDERS[seed % len(ORDERS)],
        stealing=seed % 4 != 0,
        token_cap=60,
    )
    return replace(case, **changes)


@st.composite
def mixed_cases(draw: st.DrawFn) -> Case:
    """The same with or without SLOs, with mixed iterations, on a shared queue."""
    with_slo = draw(st.booleans())
    case = draw(slo_cases()) if with_slo else draw(cases())
    cost = MixedCost(overlaps=True)
    if draw(st.booleans()):
        cost = MixedCost(
            alpha_ns=draw(st.sampled_from([0, 60, 120])),
            beta_prompt_ns=draw(st.sampled_from([1, 10])),
            beta_active_ns=draw(st.sampled_from([0, 3])),
            interference_ns=draw(st.sampled_from([0, 17])),
        )
    tokens = draw(st.sampled_from([1, 3, 5, 8, 13, 40]))
    mixed = Mixed(tokens, draw(st.booleans()), draw(st.integers(0, 3)) == 3, cost)
    return replace(case, queues=None, stealing=False, choose_order=False, levels=(), mixed=mixed)


MIXED_ACTIONS = st.lists(st.integers(0, 2), min_size=1, max_size=40)
"""A decode, a prefill, a mixed iteration."""

ACTIONS = st.lists(st.integers(0, 1), min_size=1, max_size=40)
"""A sequence of actions, to be repeated until an episode ends."""

ORDERED_ACTIONS = st.lists(st.one_of(st.just(0), st.integers(1, len(ORDER_CODES))), min_size=1, max_size=40)
"""The same where orders may be actions; where they are not, every prefill is one."""
