"""The KV cache as a budget: the engine against the plain simulator, laws, instances done on paper, bad input."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from episodes import slo_case
from hypothesis import given, settings
from reference import Reference
from strategies import ORDERED_ACTIONS, REPEATABLE, Case, memory_cases, seeded_case
from test_equivalence import assert_same_history, assert_same_state
from test_slo import assert_same_slo

from llmsched_env.config import ADMISSIONS, KVCache, Scenario
from llmsched_env.engine.view import FIELDS
from llmsched_env.errors import ConfigError, LLMSchedError, WorkloadError
from llmsched_env.metrics import final_metrics, worst_token_gaps_ns
from llmsched_env.simulator import Simulator


def in_space(problem, action):
    return min(action, problem.num_actions - 1)


def assert_same_memory(simulator, reference):
    totals = simulator.totals
    assert totals.preemptions == reference.preemptions
    assert totals.recomputed_tokens == reference.recomputed
    assert totals.swapped_tokens == reference.swapped
    assert totals.kv_peak == reference.kv_peak
    outputs = reference.case.outputs
    emitted = {request: outputs[request] for request in reference.completion_ns}
    emitted |= reference.preempted
    emitted |= {held.request: held.emitted for held in reference.active}
    assert simulator.emitted.tolist() == [emitted.get(request, 0) for request in range(len(outputs))]


def crowded(rule, number):
    """Twenty requests and room for little more than the longest: requests give way, whatever Hypothesis draws."""
    block, keeps = (1, 4, 16)[number % 3], rule == "keep_growth"
    case = slo_case(number) if number % 2 else seeded_case(number, queues=None, stealing=False)
    lists = ("prompts", "outputs", "estimates", "releases_ns")
    case = replace(case, **{name: getattr(case, name)[:20] for name in lists})
    headroom = block if rule == "vllm_v0" else 0
    cache = KVCache(
        30 + headroom + max(-(-(p + n) // block) * block for p, n in zip(case.prompts, case.outputs, strict=True)),
        block,
        headroom_tokens=headroom,
        admission=ADMISSIONS[number // 3 % 3] if keeps else "fits",
        reserve_tokens=2,
        swap_token_ns=3 if keeps and number % 5 == 0 else 0,
        rule=rule,
    )
    return replace(case, kv_cache=cache)


@pytest.mark.parametrize(("rule", "examples"), [("keep_growth", 90), ("vllm_v0", 60), ("vllm_v1", 60)])
def test_it_equals_the_reference_after_every_iteration(rule, examples):
    seen = Counter()

    @settings(REPEATABLE, max_examples=examples)
    @given(case=memory_cases((rule,)), actions=ORDERED_ACTIONS)
    def check(case, actions):
        problem = case.problem()
        simulator, reference = Simulator(problem, record=True), Reference(case)
        assert_same_state(simulator, reference)
        for action in itertools.cycle(actions):
            if reference.done:
                break
            simulator.step(in_space(problem, action))
            reference.step(in_space(problem, action))
            assert_same_state(simulator, reference)
            assert_same_memory(simulator, reference)
            if case.ttft_ns:
                assert_same_slo(simulator, reference)
        assert_same_history(simulator, reference)
        gaps = worst_token_gaps_ns(simulator, np.array(case.outputs))
        for request, times in reference.token_ns.items():
            assert len(times) == case.outputs[request], "a token was lost, or given twice"
            assert gaps[request] == max(np.diff(times), default=0)
        cache = case.kv_cache
        seen["preempted"] += reference.preemptions > 0
        seen["preempted often"] += reference.preemptions > 3
        seen["recomputed"] += reference.recomputed > 0
        seen["preempted under SLOs"] += reference.preemptions > 0 and case.ttft_ns > 0
        seen["preempted, blocks", cache.block_tokens] += reference.preemptions > 0
        if rule == "keep_growth":
            seen["swapped"] += reference.swapped > 0
            seen["admission", cache.admission] += 1
            seen["preempted, by estimate"] += reference.preemptions > 0 and cache.victim == "least_estimate"
            seen["preempted although", cache.admission] += reference.preemptions > 0
        if rule == "vllm_v0":
            seen["watermark"] += reference.preemptions > 0 and cache.headroom_tokens > 0
            seen["gave way to itself"] += reference.gave_way_alone > 0
        seen["caps"] += cache.cap_levels > 0
        seen["orders"] += case.choose_order
        seen["full"] += reference.kv_peak > cache.budget_tokens - cache.block_tokens

    check()
    for number in range(30):
        check.hypothesis.inner_test(crowded(rule, number), [5, 0, 0] if number % 2 else [1, 0, 0])
    rare = {name: count for name, count in seen.items() if count < 5}
    assert not rare, f"hardly tested: {rare}"
    assert len(seen) == {"keep_growth": 18, "vllm_v0": 12, "vllm_v1": 10}[rule], sorted(map(str, seen))


def paper(**changes):
    """Two clients, a cache of 10 tokens, and two requests of 3 + 6 tokens, of which 18 do not fit."""
    case = Case((3, 3), (6, 6), 2, kv_cache=KVCache(10))
    return replace(case, **changes)


def log_of(simulator):
    return [tuple(int(x) for x in entry)[:4] for entry in simulator.log]


def test_recompute_on_paper():
    """Alpha and beta of a prefill are 100 and 10 ns, of a decode 50 and 1.

    Both start: 4 + 4 tokens, 10 after a decode, when there is no room for 2 more. The second, with 2 tokens, gives way.
    The first goes on to 9 tokens alone: 4 decodes. Then 3 + 2 tokens are prefilled anew, which gives the third token,
    and 3 decodes give the rest.
    """
    simulator = Simulator(paper().problem(), record=True)
    assert (simulator.view.ready, simulator.view.kv_used, simulator.view.kv_growth) == (2, 0, 0)
    for action in (1, 0):
        simulator.step(action)
    view = simulator.view
    assert (view.active, view.preempted, view.waiting, view.kv_used, view.kv_growth) == (1, 1, 0, 5, 1)
    assert view.ready == 0, "5 + 6 tokens would fill the cache, and there would be no room for the next decode"
    while not simulator.done:
        simulator.step(1)  # infeasible until the first is complete
    assert log_of(simulator) == [
        (0, 160, 1, 2), (160, 212, 0, 2), (212, 263, 0, 1), (263, 314, 0, 1), (314, 365, 0, 1), (365, 416, 0, 1),
        (416, 566, 1, 1), (566, 617, 0, 1), (617, 668, 0, 1), (668, 719, 0, 1),
    ]  # fmt: skip
    totals = simulator.totals
    assert (totals.preemptions, totals.recomputed_tokens, totals.swapped_tokens, totals.kv_peak) == (1, 5, 0, 10)
    assert final_metrics(simulator)["kv_peak"] == 1.0
    assert final_metrics(simulator)["preemptions"] == 1
    # 12 tokens, each once: the throughput knows which prefills gave one.
    assert final_metrics(simulator)["throughput_tokens_per_s"] == pytest.approx(12 / 719e-9)
    assert worst_token_gaps_ns(simulator, np.array([6, 6])).tolist() == [52, 566 - 212]


def test_swapping_on_paper():
    """The same at 2 ns a token: 5 tokens are copied out beside the next decode and back by a prefill of nothing."""
    case = paper(kv_cache=KVCache(10, swap_token_ns=2))
    simulator = Simulator(case.problem(), record=True)
    for action in (1, 0):
        simulator.step(action)
    assert simulator.view.decode_ns == 51 + 10
    while not simulator.done:
        simulator.step(1)
    assert log_of(simulator) == [
        (0, 160, 1, 2), (160, 212, 0, 2), (212, 273, 0, 1), (273, 324, 0, 1), (324, 375, 0, 1), (375, 426, 0, 1),
        (426, 436, 1, 1), (436, 487, 0, 1), (487, 538, 0, 1), (538, 589, 0, 1), (589, 640, 0, 1),
    ]  # fmt: skip
    totals = simulator.totals
    assert (totals.preemptions, totals.recomputed_tokens, totals.swapped_tokens, totals.swap_ns) == (1, 0, 10, 20)
    assert worst_token_gaps_ns(simulator, np.array([6, 6])).tolist() == [61, 487 - 212]


@pytest.mark.parametrize(
    ("cache", "admitted"),
    [
        (KVCache(17), 2),  # 4 + 4 tokens, and 2 for the next decode
        (KVCache(9), 1),
        (KVCache(12, headroom_tokens=2), 2),
        (KVCache(12, headroom_tokens=3), 1),
        (KVCache(18, admission="reserve"), 2),  # 9 + 9
        (KVCache(17, admission="reserve"), 1),
        (KVCache(25, admission="reserve", reserve_tokens=10), 1),  # 13 + 13
        (KVCache(26, admission="reserve", reserve_tokens=10), 2),
        (KVCache(18, admission="predicted"), 2),  # both end in the same decode, with 9 tokens each
        (KVCache(17, admission="predicted"), 1),
        (KVCache(16, block_tokens=4), 2),  # 4 + 4, both full: 4 + 4 more for the next decode
        (KVCache(12, block_tokens=4), 1),
    ],
)
def test_admission_on_paper(cache, admitted):
    simulator = Simulator(paper(kv_cache=cache).problem())
    assert simulator.view.ready == simulator.view.batch_requests == admitted
    simulator.step(1)
    assert simulator.view.active == admitted


def test_prediction_lets_in_who_ends_before_others_grow():
    """Requests of 2 + 2 and 2 + 8 tokens: their peaks are 4 + 4, then 10 alone. By reserve it would be 4 + 10."""
    case = Case((2, 2), (2, 8), 2, kv_cache=KVCache(10, admission="predicted"))
    assert Simulator(case.problem()).view.ready == 2
    assert Simulator(replace(case, kv_cache=KVCache(10, admission="reserve")).problem()).view.ready == 1
    tight = replace(case, prompts=(2, 2), outputs=(7, 8), estimates=(), kv_cache=KVCache(10, admission="predicted"))
    assert Simulator(replace(tight, estimates=(7, 8)).problem()).view.ready == 1


def test_caps_stop_a_prefill():
    case = Case((1,) * 8, (3,) * 8, 8, kv_cache=KVCache(100, cap_levels=4))
    for action, active in ((1, 8), (2, 6), (3, 4), (4, 2)):
        simulator = Simulator(case.problem())
        simulator.step(action)
        assert simulator.view.active == active
        simulator.step(4)
        assert simulator.view.active == min(8, active + 1) or active == 8, "at least one"


@settings(REPEATABLE, max_examples=100)
@given(case=memory_cases(), actions=ORDERED_ACTIONS)
def test_memory_is_conserved_and_never_exceeded(case, actions):
    problem, cache = case.problem(), case.kv_cache
    simulator = Simulator(problem)
    for action in itertools.cycle(actions):
        view = simulator.view
        assert 0 <= view.kv_used <= cache.budget_tokens
        assert view.kv_growth >= 0
        assert view.kv_used + view.kv_growth <= cache.budget_tokens or cache.rule != "keep_growth"
        cached = view.context_tokens - view.active * cache.uncached_tokens
        assert cached <= view.kv_used <= cached + view.active * (cache.block_tokens - 1)
        assert view.kv_used % cache.block_tokens == 0
        assert (view.kv_used == 0) == (view.active == 0)
        released = sum(release <= view.clock_ns for release in case.releases_ns)
        assert view.completed + view.active + view.waiting + view.preempted == released
        assert simulator.totals.kv_peak <= cache.budget_tokens
        if simulator.done:
            break
        assert simulator.can_decode or simulator.can_prefill
        simulator.step(in_space(problem, action))
    assert view.kv_used == 0
    assert simulator.episode.kv.reserved == 0


@settings(REPEATABLE, max_examples=60)
@given(case=memory_cases(), actions=ORDERED_ACTIONS)
def test_a_cache_that_holds_everybody_changes_nothing(case, actions):
    cache = replace(case.kv_cache, budget_tokens=10**6, block_tokens=1, headroom_tokens=0, cap_levels=0)
    roomy = replace(case, kv_cache=cache)
    problem = roomy.problem()
    limited, free = Simulator(problem), Simulator(replace(case, kv_cache=None).problem())
    for action in itertools.cycle(actions):
        for name in set(FIELDS) - {"kv_budget_tokens", "kv_used", "kv_growth", "prefill_ns", "oldest_release_ns"}:
            assert getattr(limited.view, name) == getattr(free.view, name), name
        if free.done:
            break
        limited.step(in_space(problem, action))
        free.step(in_space(problem, action))


@settings(REPEATABLE, max_examples=150)
@given(case=memory_cases(), actions=ORDERED_ACTIONS)
def test_no_episode_beats_the_bound(case, actions):
    """Also where prefills give tokens to those that were preempted."""
    problem = case.problem()
    simulator = Simulator(problem)
    for action in itertools.cycle(actions):
        if simulator.done:
            break
        simulator.step(in_space(problem, action))
    assert simulator.view.clock_ns - case.releases_ns[0] >= problem.bound_ns


def test_the_plain_bound_is_too_large_where_prefills_give_tokens():
    """Recompute in place of dear decodes: two of 1 + 3 tokens that do not fit side by side but for one decode."""
    dear = {"alpha_decode_ns": 1000, "alpha_prefill_ns": 0, "beta_prefill_ns": 1, "beta_decode_ns": 1}
    case = Case((1, 1), (3, 3), 2, kv_cache=KVCache(6), **dear)
    simulator = Simulator(case.problem())
    while not simulator.done:
        simulator.step(1)
    assert simulator.totals.preemptions > 0
    assert case.problem().bound_ns <= simulator.view.clock_ns
    assert case.problem().bound_ns < replace(case, kv_cache=None).problem().bound_ns


def test_a_request_that_does_not_fit_is_refused():
    with pytest.raises(WorkloadError, match="takes 12 tokens in blocks of 4, and the KV cache holds 10"):
        paper(kv_cache=KVCache(10, block_tokens=4)).problem()
    with pytest.raises(WorkloadError, match="a request of 9 prompt and output tokens takes 9"):
        paper(kv_cache=KVCache(8)).problem()
    with pytest.raises(WorkloadError, match=r"takes 8 .* holds 8, 4 of which stay free"):
        paper(kv_cache=KVCache(8, 4, headroom_tokens=4, rule="vllm_v0")).problem()
    paper(kv_cache=KVCache(8, 4, rule="vllm_v0")).problem()  # the last token needs no cache
    paper(kv_cache=KVCache(8, 4, headroom_tokens=4, rule="vllm_v1")).problem()  # for those who join somebody only
    with pytest.raises(ConfigError, match="may have 8 tokens to compute again, which exceeds the largest"):
        paper(levels=((4, 10), (7, 20)), token_cap=7).problem()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kv_budget_tokens": 0}, "kv_budget_tokens = 0 is out of range"),
        ({"kv_budget_tokens": 1.5}, "kv_budget_tokens = 1.5 is not a whole number"),
        ({"kv_budget_tokens": 1000, "queue": "client"}, "needs queue='shared'"),
        ({"kv_budget_tokens": 1000, "kv_block_tokens": 2000}, "not one block would fit"),
        ({"kv_budget_tokens": 1000, "kv_block_tokens": None}, "kv_block_tokens = None is not a whole number"),
        ({"kv_budget_tokens": 1000, "kv_watermark": 1.0}, r"it lies in \[0, 1\)"),
        ({"kv_budget_tokens": 1000, "kv_watermark": -0.1}, r"it lies in \[0, 1\)"),
        ({"kv_budget_tokens": 1000, "kv_watermark": 1}, r"it lies in \[0, 1\)\. As a share, 1 % is 0\.01\."),
        ({"kv_budget_tokens": 1000, "kv_swap_gb_per_s": -1.0}, "kv_swap_gb_per_s = -1.0 is out of range"),
        ({"kv_budget_tokens": 1000, "kv_swap_gb_per_s": "fast"}, "kv_swap_gb_per_s = 'fast' is not a number"),
        ({"kv_budget_tokens": 1000, "kv_reserve_tokens": 10}, "only 'reserve' sets anything aside"),
        ({"kv_budget_tokens": 1000, "kv_admission": "vllm"}, "unknown kv_admission 'vllm'"),
        (
            {"kv_budget_tokens": 1000, "kv_admission": "reserve", "kv_reserve_tokens": 1001},
            "kv_reserve_tokens = 1001 exceeds kv_budget_tokens = 1000",
        ),
        ({"kv_watermark": 0.1}, "kv_watermark = 0.1 without a budget"),
        ({"kv_rule": "vllm_v1"}, "kv_rule = 'vllm_v1' without a budget"),
        ({"kv_budget_tokens": 1000, "kv_rule": "vllm"}, "unknown kv_rule 'vllm'"),
        (
            {"kv_budget_tokens": 1000, "kv_rule": "vllm_v0", "kv_admission": "predicted"},
            "kv_admission = 'predicted' with kv_rule = 'vllm_v0': it lets in whoever fits now",
        ),
        ({"kv_budget_tokens": 1000, "kv_victim": "first"}, "unknown kv_victim 'first'"),
        ({"kv_victim": "least_estimate"}, "kv_victim = 'least_estimate' without a budget"),
        (
            {"kv_budget_tokens": 1000, "kv_rule": "vllm_v1", "kv_victim": "least_estimate"},
            "kv_victim = 'least_estimate' with kv_rule = 'vllm_v1': whoever started last gives way",
        ),
        (
            {"kv_budget_tokens": 1000, "kv_rule": "vllm_v0", "kv_swap_gb_per_s": 25.0},
            "kv_swap_gb_per_s = 25.0 with kv_rule = 'vllm_v0': what it preempts is computed again",
        ),
        ({"choose_cap": True}, "choose_cap = True without a budget"),
        (
            {"kv_budget_tokens": 1000, "choose_cap": True, "choose_order": True, "ttft_s": 1.0, "tpot_s": 1.0},
            "an action says the one or the other",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(LLMSchedError, match=message):
        Scenario(**{"queue": "shared", "order": "fcfs", **arguments})


def test_a_clock_that_copies_could_overflow_is_refused():
    with pytest.raises(WorkloadError, match="beyond the 4e"):
        paper(kv_cache=KVCache(10, swap_token_ns=10**17)).problem()


def vllm(rule, **changes):
    """Three requests of 15 + 40 tokens on 9 blocks of 16: each has 4 blocks at its end."""
    cache = KVCache(**{"budget_tokens": 9 * 16, "block_tokens": 16, "rule": rule, **changes})
    return Case((15,) * 3, (40,) * 3, 3, kv_cache=cache)


def prefill_first(case):
    simulator = Simulator(case.problem(), record=True)
    while not simulator.done:
        simulator.step(1)
    return simulator


@pytest.mark.parametrize(("rule", "preemptions", "iterations"), [("vllm_v0", 16, 61), ("vllm_v1", 1, 46)])
def test_vllm_preempts(rule, preemptions, iterations):
    """As vLLM's own schedulers do (tests/baselines/golden): V0 thrashes, V1 does not."""
    simulator = prefill_first(vllm(rule))
    assert simulator.totals.preemptions == preemptions
    assert len(simulator.log) == iterations


@pytest.mark.parametrize(
    ("rule", "log"),
    [
        ("vllm_v0", [(0, 160, 1, 2), (160, 211, 0, 1), (211, 351, 1, 1), (351, 402, 0, 1), (402, 552, 1, 1)]),
        ("vllm_v1", [(0, 160, 1, 2), (160, 212, 0, 2), (212, 263, 0, 1), (263, 413, 1, 1)]),
    ],
)
def test_vllm_on_paper(rule, log):
    """Two requests of 3 + 3 tokens on 2 blocks of 4. Alpha and beta of a prefill are 100 and 10 ns, of a decode 50, 1.

    Each prompt takes a block and leaves room for a token, so the first decode needs none. V0 asks for a free one all
    the same, and the second gives way; a prefill of 3 + 1 tokens brings it back, and it gives way again to the block
    that the first needs for its last token. V1 serves both, and preempts once, for that block. Then 3 + 2 tokens are
    prefilled, which gives the third.
    """
    case = Case((3, 3), (3, 3), 2, kv_cache=KVCache(8, 4, rule=rule))
    simulator = prefill_first(case)
    assert log_of(simulator) == log
    assert simulator.totals.preemptions == {"vllm_v0": 2, "vllm_v1": 1}[rule]
    simulator = Simulator(case.problem())
    simulator.step(1)
    view = simulator.view
    assert (view.active, view.kv_used, view.kv_growth, view.ready) == (2, 8, 0, 0)
    assert view.decode_ns == log[1][1] - log[1][0], "of those that are left once it has preempted"


def test_vllm_v0_has_one_alone_give_way_to_itself():
    """A request of 2 + 3 tokens on a block of 4: no block is free, so prefills of 3 and of 4 tokens take its place."""
    case = Case((2,), (3,), 1, kv_cache=KVCache(4, 4, rule="vllm_v0"))
    assert log_of(prefill_first(case)) == [(0, 120, 1, 1), (120, 250, 1, 1), (250, 390, 1, 1)]
    assert prefill_first(case).totals.preemptions == 2
    one = replace(case, kv_cache=KVCache(4, 4, rule="vllm_v1"))
    assert log_of(prefill_first(one)) == [(0, 120, 1, 1), (120, 171, 0, 1), (171, 222, 0, 1)]


@pytest.mark.parametrize(("rule", "tokens"), [("keep_growth", 51), ("vllm_v0", 48), ("vllm_v1", 64)])
def test_vllm_rounds_the_watermark_down_to_whole_blocks(rule, tokens):
    """A share of 0.0635 of 800 tokens, of 50 blocks of 16, and of 51 with the one that vLLM V1's pool sets apart."""
    where = {"queue": "shared", "order": "fcfs", "kv_budget_tokens": 800, "kv_block_tokens": 16}
    scenario = Scenario(**where, kv_watermark=0.0785 if rule == "vllm_v1" else 0.0635, kv_rule=rule)
    assert scenario.kv_cache().headroom_tokens == tokens
