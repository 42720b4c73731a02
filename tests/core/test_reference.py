"""The plain simulator itself: laws for every combination of mechanisms, and recordings of vLLM played on it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from combinations import COMBINED_ACTIONS, PAIRS, combined_actions, combined_case, combined_cases, pairs_of
from hypothesis import given, settings
from reference import Reference
from strategies import DECODE, MIXED, PREFILL, REPEATABLE, Case

from llmsched_env.config import KVCache, Mixed, Noise
from llmsched_env.cost import CostModel, MixedCost

GOLDEN = Path(__file__).parents[1] / "baselines" / "golden"
NO_CAP = 2**31 - 1


def most_iterations(case):
    """Each iteration gives a token, or computes one of a context, or copies one request in.

    Between two output tokens no context is lost twice: only a decode makes somebody give way.
    """
    longest = max(p + n for p, n in zip(case.prompts, case.outputs, strict=True))
    return sum(case.outputs) * (longest + len(case.prompts) + 1)


def assert_state_is_sound(reference):
    """Every request is in one place, every client does one thing, and the cache holds what it can."""
    case, reading = reference.case, reference.reading
    places = [
        *(held.request for held in reference.active),
        *reference.waiting,
        *reference.preempted,
        *reference.completion_ns,
        *reference.unreleased,
        *([] if reading is None else [reading.request]),
    ]
    assert sorted(places) == list(range(len(case.prompts)))
    assert reference.waiting == sorted(reference.waiting)
    if reading is not None:
        assert reading.client in reference.idle
        assert 0 < reading.computed < reading.whole
        assert case.mixed is not None
        assert not case.mixed.whole_prompts
    if case.queues is None:
        assert sorted(reference.starts) == [i for i, held in enumerate(reference.running) if held is not None]
    for request, output in enumerate(case.outputs):
        emitted = reference.emitted(request)
        assert emitted == len(reference.token_ns.get(request, []))
        assert emitted <= output
        assert (emitted == output) == (request in reference.completion_ns)
    if case.kv_cache is not None:
        assert reference.kv_used <= reference.kv_peak <= case.kv_cache.budget_tokens


def assert_iteration_is_sound(reference, action):
    """Within its room, its cap and its clients; only the last row is partly prefilled; who preempts admits nobody."""
    case, it = reference.case, reference.iteration(action)
    kind, order, cap = case.action(action)
    clients = [row.client for row in it.rows]
    assert clients == sorted(set(clients), key=clients.index)
    assert set(clients) <= set(reference.idle)
    assert all(row.finishes for row in it.rows[:-1])
    assert len(it.rows) <= max(1, cap - len(reference.active))
    assert not (it.gone and it.rows)
    assert len(it.served) + len(set(it.gone) & set(reference.starts)) == (
        0 if kind == PREFILL else len(reference.active)
    )
    if reference.reading is not None and it.rows:
        assert it.rows[0].request == reference.reading.request
    begun = [row for row in it.rows if reference.reading is None or row.request != reference.reading.request]
    assert [row.request for row in begun] in [reference.line(o)[: len(begun)] for o in (order, reference.first_order)]
    if kind == MIXED and it.rows:
        room = case.mixed.tokens - len(it.served) * case.mixed.counts_active
        assert it.tokens <= max(room, 0) or (case.mixed.whole_prompts and sum(row.tokens > 0 for row in it.rows) == 1)
    if kind == PREFILL:
        assert it.tokens <= case.token_cap or sum(row.tokens > 0 for row in it.rows) == 1


def play(case, actions):
    """Actions again and again, up to the end of the episode."""
    reference = Reference(case)
    for kind, variant in itertools.cycle(actions):
        if reference.done:
            return reference
        assert len(reference.log) < most_iterations(case), "no end"
        clock_ns, action = reference.clock_ns, case.number(kind, variant)
        if case.queues is None:
            assert_iteration_is_sound(reference, action)
        reference.step(action)
        assert reference.clock_ns >= clock_ns
        assert_state_is_sound(reference)


def assert_end_is_sound(reference):
    """Output tokens are given once each, and what is computed twice is counted."""
    case = reference.case
    for request, times in reference.token_ns.items():
        assert len(times) == case.outputs[request]
        assert times == sorted(times)
        assert (times[0], times[-1]) == (reference.first_token_ns[request], reference.completion_ns[request])
        assert case.releases_ns[request] <= reference.prefill_start_ns[request] <= times[0]
    cached = sum(reference.cached(i) for i in range(len(case.prompts))) if case.queues is not None else 0
    assert reference.computed == sum(case.prompts) - cached - reference.hit_tokens + reference.recomputed
    assert reference.jump_ns + sum(end - start for start, end, *_ in reference.log) == reference.clock_ns
    decodes = sum(1 for *_, kind, _ in reference.log if kind == DECODE)
    assert decodes == len(reference.active_at_decodes)
    assert sum(reference.active_at_decodes) == decodes * case.num_clients - reference.idle_client_decodes


@settings(REPEATABLE, max_examples=150)
@given(case=combined_cases(), actions=COMBINED_ACTIONS)
def test_laws(case, actions):
    assert_end_is_sound(play(case, actions))


EXPECTED = {
    *PAIRS,
    *(("gave way while reading", rule) for rule in ("keep_growth", "vllm_v1")),
    *(("preempted", rule, mixed) for rule in ("keep_growth", "vllm_v1") for mixed in (False, True)),
    ("preempted", "vllm_v0", False),
    *(("chunked", rule) for rule in ("no budget", "keep_growth", "vllm_v1")),
    "late on client queues",
    "migrated under SLOs",
    "swapped beside decodes",
    "by the order of action 1",
}
"""What the cases of the next test must have met."""


def test_laws_of_every_pair_of_mechanisms():
    seen = Counter()
    for seed in range(700):
        case = combined_case(seed)
        reference = play(case, combined_actions(seed))
        assert_end_is_sound(reference)
        seen.update(pairs_of(case))
        rule = case.kv_cache.rule if case.kv_cache else "no budget"
        seen["gave way while reading", rule] += reference.gave_way_reading > 0
        seen["preempted", rule, bool(case.mixed)] += reference.preemptions > 0
        seen["chunked", rule] += reference.chunked_prefills > 0
        seen["late on client queues"] += (
            case.queues is not None and case.ttft_ns > 0 and bool(reference.ttft_violations())
        )
        seen["migrated under SLOs"] += reference.migrations > 0 and case.ttft_ns > 0
        seen["swapped beside decodes"] += reference.swapped > 0 and reference.mixed > 0
        seen["by the order of action 1"] += reference.fell_back > 0
    met = {name for name, count in seen.items() if count}
    assert not met - EXPECTED, "what cannot be"
    rare = {name: seen[name] for name in EXPECTED if seen[name] < 3}
    assert not rare, f"hardly tested: {rare}"


def feasible(case, view, kind):
    """What becomes of an action of this kind."""
    if kind == MIXED and case.mixed is None:
        kind = PREFILL
    if kind != DECODE and not view["ready"] and not (kind == MIXED and view["reading_tokens"]):
        kind = DECODE
    return PREFILL if kind == DECODE and not view["active"] else kind


@settings(REPEATABLE, max_examples=100)
@given(case=combined_cases(), actions=COMBINED_ACTIONS)
def test_the_view_shows_what_comes(case, actions):
    """A decode, and the prefill and the mixed iteration that are previewed, last what is said, and read as much."""
    case = replace(case, noise=None, queues=None, migration=None, stealing=False)
    reference = Reference(case)
    for kind, _ in itertools.cycle(actions):
        if reference.done:
            return
        view, computed = reference.view(), reference.computed
        came = feasible(case, view, kind)
        reference.step(case.number(kind, 0))
        start_ns, end_ns, *_ = reference.log[-1]
        assert end_ns - start_ns == view[("decode_ns", "prefill_ns", "mixed_ns")[came]]
        assert reference.computed - computed == (0, view["batch_tokens"], view.get("chunk_tokens"))[came]


def same_course(one, other):
    assert one.log == other.log
    assert one.token_ns == other.token_ns
    assert one.client == other.client


@settings(REPEATABLE, max_examples=80)
@given(case=combined_cases(), actions=COMBINED_ACTIONS)
@pytest.mark.parametrize("rule", ["keep_growth", "vllm_v0", "vllm_v1"])
def test_a_budget_that_is_never_reached_changes_nothing(rule, case, actions):
    mixed = None if rule == "vllm_v0" else case.mixed
    order = "fcfs" if case.order == "sorted_f" else case.order  # which is made for a budget
    case = replace(case, queues=None, migration=None, stealing=False, mixed=mixed, order=order)
    limited = replace(case, kv_cache=KVCache(10**6, 4, rule=rule))
    same_course(play(limited, actions), play(replace(case, kv_cache=None), actions))


def by_arrival(case):
    """The same, first come, first served, and chunks of a fixed budget."""
    mixed = case.mixed and replace(case.mixed, within_slack=False)
    return replace(case, order="fcfs", choose_order=False, mixed=mixed)


@settings(REPEATABLE, max_examples=80)
@given(case=combined_cases(), actions=COMBINED_ACTIONS)
def test_slos_that_decide_nothing_change_nothing(case, actions):
    """First come, first served, with SLOs or without, whatever else is on but slack, which is made of SLOs."""
    case = by_arrival(case)
    with_slo = replace(case, ttft_ns=300, tpot_ns=60)
    same_course(play(with_slo, actions), play(replace(case, ttft_ns=0, tpot_ns=0), actions))


@settings(REPEATABLE, max_examples=80)
@given(case=combined_cases(), actions=COMBINED_ACTIONS)
def test_a_belief_changes_no_iteration_by_itself(case, actions):
    """What is believed shows in the view, in who is late and in slack; first come, first served does not ask."""
    case = by_arrival(case)
    noise = case.noise and replace(case.noise, believed=None)
    same_course(play(case, actions), play(replace(case, noise=noise, believed_mixed=None), actions))


# Instances on paper. Alpha and beta are 100 and 10 ns of a prefill, 50 and 1 of a decode, 100, 10 and 1 of a mixed one.


def paper(prompts, outputs, tokens, cache, **changes):
    beside = MixedCost(False, 100, 10, 1)
    return Case(prompts, outputs, len(prompts), mixed=Mixed(tokens, False, False, beside), kv_cache=cache, **changes)


def steps(reference, actions):
    """Length of each iteration in ns."""
    for action in actions:
        reference.step(action)
    return [end - start for start, end, *_ in reference.log[-len(actions) :]]


def test_giving_way_while_reading_on_paper():
    """15 tokens, two a chunk. The first request has its first token, then goes on beside 8 tokens of the other.

    Whoever is let in holds its whole context and a token: 4 + 9 of the 15 after the second iteration, 6 + 9 after the
    fourth, when there is no room for the next decode. The 6 tokens computed by then are lost.
    """
    case = paper((2, 8), (6, 2), 2, KVCache(15), ttft_ns=300, tpot_ns=1000)
    reference = Reference(case)
    assert steps(reference, [MIXED] * 3) == [120, 121, 121]
    assert (reference.kv_used, reference.reading.left, reference.waiting) == (14, 4, [])
    assert reference.ttft_violations() == set(), "nobody knows how long the rest takes"
    assert steps(reference, [MIXED]) == [121]
    assert (reference.kv_used, reference.reading, reference.waiting) == (6, None, [1])
    assert (reference.preemptions, reference.recomputed) == (1, 6)
    assert reference.ttft_violations() == {1}, "it waits again, and is late"
    # It does not fit beside the other one, which ends by two decodes: 8 + 9 tokens.
    assert steps(reference, [MIXED] * 7) == [51, 51, 120, 120, 120, 120, 51]
    assert reference.done
    assert reference.prefill_start_ns == {0: 0, 1: 585}
    assert reference.mixed == 4 + 4


def test_vllm_v1_preempts_the_one_being_read_on_paper():
    """9 tokens, two a chunk: 4 + 4 are held after three iterations, and the fourth has room for the decode only."""
    case = paper((2, 6), (6, 2), 2, KVCache(9, rule="vllm_v1"))
    reference = Reference(case)
    assert steps(reference, [MIXED] * 3) == [120, 121, 121]
    assert (reference.kv_used, reference.view()["reading_tokens"]) == (8, 2)
    assert (reference.ready, reference.view()["mixed_ns"], reference.view()["chunk_tokens"]) == (0, 51, 0)
    assert steps(reference, [MIXED]) == [51]
    assert (reference.reading, reference.waiting, reference.mixed) == (None, [1], 3)
    assert steps(reference, [MIXED] * 6) == [51, 51, 120, 120, 120, 51]
    assert reference.done

    by_decodes = Reference(case)
    assert steps(by_decodes, [MIXED] * 3 + [PREFILL]) == [120, 121, 121, 51], "no room for the rest: a decode"
    assert (by_decodes.invalid_actions, by_decodes.reading.left, by_decodes.kv_used) == (1, 2, 9)
    assert steps(by_decodes, [DECODE]) == [51]
    assert (by_decodes.reading, by_decodes.preemptions) == (None, 1)


def test_giving_way_with_output_tokens_while_reading_on_paper():
    """9 tokens. The third request gives way after its first token, and again when 3 of 4 tokens are computed anew."""
    case = paper((1, 2, 3), (3, 5, 3), 3, KVCache(9, rule="vllm_v1"))
    reference = Reference(case)
    assert steps(reference, [MIXED] * 4) == [130, 132, 52, 131]
    assert (reference.reading.request, reference.reading.left, reference.emitted(2)) == (2, 1, 1)
    assert steps(reference, [MIXED]) == [51]
    assert (reference.reading, reference.preempted, reference.emitted(2)) == (None, {2: 1}, 1)
    assert steps(reference, [MIXED] * 3) == [130, 110, 51]
    assert reference.done
    assert (reference.preemptions, reference.recomputed) == (2, 3 + 4)
    assert len(reference.token_ns[2]) == 3


def test_copies_beside_a_decode_on_paper():
    """10 tokens at 2 ns: 3 are copied out beside a decode, and back beside another, which computes nothing."""
    case = paper((2, 1, 1), (3, 6, 3), 4, KVCache(10, swap_token_ns=2))
    reference = Reference(case)
    assert steps(reference, [MIXED] * 3) == [140, 53, 52 + 6]
    assert (reference.view()["mixed_ns"], reference.view()["chunk_tokens"]) == (51 + 6, 0)
    assert steps(reference, [MIXED] * 3) == [51 + 6, 52, 51]
    assert reference.done
    assert (reference.swapped, reference.recomputed, reference.mixed) == (6, 0, 2)


def test_late_is_who_is_late_as_believed_on_paper():
    """After 110 ns a prefill believed to take 200 is too late for a TTFT of 300; a mixed iteration of 150 is not."""
    believed = CostModel("believed", 200, 10, 40, 2, 0, 1000)
    case = Case((1, 1), (5, 5), 1, ttft_ns=300, tpot_ns=100, noise=Noise(believed))
    plain, mixing = (
        Reference(case),
        Reference(
            replace(
                case,
                mixed=Mixed(4, False, False, MixedCost(False, 100, 10, 1)),
                believed_mixed=MixedCost(False, 150, 30, 3),
            )
        ),
    )
    for reference in (plain, mixing):
        reference.step(PREFILL)
        assert reference.clock_ns == 110
        assert reference.ttft_violations() == set(), "nobody knows for certain"
    assert (plain.view()["late"], mixing.view()["late"]) == (1, 0)
    assert plain.view()["decode_ns"] == 42
    wide = Reference(replace(mixing.case, num_clients=2, releases_ns=(0, 1)))
    wide.step(PREFILL)
    assert wide.view()["mixed_ns"] == 150 + 30 + 3
    wide.step(MIXED)
    assert wide.clock_ns == 110 + 100 + 10 + 1


# Recordings (tests/baselines/golden/README.md).


def recorded_cases(name):
    recording = json.loads((GOLDEN / f"{name}.json").read_text())
    return [pytest.param(name, recording["cost_ns"], one, id=f"{name}: {one['name']}") for one in recording["cases"]]


def case_of(name, cost, recorded):
    capacity = recorded["capacity"]
    releases, prompts, outputs = zip(*recorded["requests"], strict=True)
    kv_cache = mixed = None
    if "blocks" in capacity:
        rule = name.removesuffix("_memory")
        counted = capacity["blocks"] + (rule == "vllm_v1")  # V1 counts a block that it never gives out
        block = capacity["block_tokens"]
        kept = int(capacity["watermark"] * counted) * block
        kv_cache = KVCache(capacity["blocks"] * block, block, headroom_tokens=kept, rule=rule)
    if "mixed_tokens" in capacity:
        beside = MixedCost(False, cost["alpha_p"], cost["beta_p"], cost["beta_d"])
        mixed = Mixed(capacity["mixed_tokens"], True, False, beside)
    return Case(
        prompts, outputs, capacity["clients"], releases_ns=releases, token_cap=capacity.get("token_cap", NO_CAP),
        alpha_prefill_ns=cost["alpha_p"], beta_prefill_ns=cost["beta_p"],
        alpha_decode_ns=cost["alpha_d"], beta_decode_ns=cost["beta_d"], kv_cache=kv_cache, mixed=mixed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "cost", "recorded"),
    [*recorded_cases("vllm_v1_memory"), *recorded_cases("vllm_v1"), *recorded_cases("vllm_v0_memory")],
)
def test_it_does_what_vllm_does(name, cost, recorded):
    """Row for row: times, tokens read, who decodes, who loses its cache and in which turn. V1 always mixes."""
    case = case_of(name, cost, recorded)
    reference, rows = Reference(case), []
    always = PREFILL if case.mixed is None else MIXED
    gone, alone = [], 0
    while not reference.done:
        it = reference.iteration(always if reference.ready or (case.mixed and reference.reading) else DECODE)
        holders = {i: held.request for i, held in enumerate(reference.running) if held is not None}
        if reference.reading is not None:
            holders[reference.reading.client] = reference.reading.request
        gone += [holders[client] for client in it.gone]
        reads = " ".join(f"{row.request}:{row.tokens}" for row in sorted(it.rows, key=lambda row: row.request))
        decodes = " ".join(map(str, sorted(held.request for held in it.served)))
        start_ns = reference.clock_ns
        reference.step(always)
        rows.append([start_ns, reference.log[-1][1], f"{reads} | {decodes}".strip(), " ".join(map(str, gone))])
        gone = list(reference.preempted) if reference.gave_way_alone > alone else []
        alone = reference.gave_way_alone
    assert rows == recorded["iterations"]
    count = len(recorded["requests"])
    assert [reference.first_token_ns[i] for i in range(count)] == recorded["first_token_ns"]
    assert [reference.completion_ns[i] for i in range(count)] == recorded["completion_ns"]
    assert reference.preemptions == sum(len(row[3].split()) for row in recorded["iterations"])
