"""Mixed iterations: the engine against the plain simulator, laws, instances done on paper, bad input."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from reference import Reference
from strategies import ACTIONS, DECODE, MIXED, MIXED_ACTIONS, PREFILL, REPEATABLE, Case, mixed_cases
from test_equivalence import assert_same_history, assert_same_state
from test_slo import assert_same_slo

from llmsched_env.config import Mixed, Scenario
from llmsched_env.cost import MIXED_FITS, PRESETS, MixedCost, mixed_cost
from llmsched_env.engine.view import FIELDS, TOTALS
from llmsched_env.errors import ConfigError, LLMSchedError, WorkloadError
from llmsched_env.metrics import final_metrics, worst_token_gaps_ns
from llmsched_env.offline import mixed_bound_ns
from llmsched_env.simulator import Simulator

SUM = MixedCost(alpha_ns=100, beta_prompt_ns=10, beta_active_ns=1)
OVERLAP = MixedCost(overlaps=True)


def test_it_equals_the_reference_after_every_iteration():
    seen = Counter()

    @settings(REPEATABLE, max_examples=200)
    @given(case=mixed_cases(), actions=MIXED_ACTIONS)
    def check(case, actions):
        simulator, reference = Simulator(case.problem(), record=True), Reference(case)
        assert_same_state(simulator, reference)
        for action in itertools.cycle(actions):
            if reference.done:
                break
            seen["a prefill goes on with a part"] += action == PREFILL and reference.reading is not None
            seen["a decode while a prefill is chunked"] += action == DECODE and reference.reading is not None
            seen["nothing to read"] += action == MIXED and reference.ready > 0 and not reference.parts(MIXED)
            simulator.step(action)
            reference.step(action)
            assert_same_state(simulator, reference)
            if case.ttft_ns:
                assert_same_slo(simulator, reference)
            emitted = {held.request: held.emitted for held in reference.active}
            done = {i: case.outputs[i] for i in reference.completion_ns}
            assert simulator.emitted.tolist() == [{**emitted, **done}.get(i, 0) for i in range(len(case.outputs))]
        assert_same_history(simulator, reference)
        cost = case.mixed.cost
        seen["chunked"] += reference.chunked_prefills > 0
        seen["chunked under SLOs"] += reference.chunked_prefills > 0 and case.ttft_ns > 0
        seen["beside", "overlap" if cost.overlaps else "sum"] += reference.read_beside > 0
        seen["interference"] += reference.read_beside > 0 and cost.interference_ns > 0
        seen["budget for all tokens"] += reference.read_beside > 0 and case.mixed.counts_active
        seen["whole prompts"] += reference.read_beside > 0 and case.mixed.whole_prompts
        seen["context"] += reference.read_beside > 0 and case.gamma_decode_ns > 0
        seen["one token"] += reference.read_beside > 0 and 1 in case.outputs
        seen["by length"] += reference.read_beside > 0 and case.order != "fcfs"

    check()
    rare = {name: count for name, count in seen.items() if count < 5}
    assert not rare, f"hardly tested: {rare}"
    assert len(seen) == 13, sorted(map(str, seen))


def paper(mixed, **changes):
    """Three clients; prompts of 4, 7 and 2 tokens, outputs of 3, 2 and 1."""
    return replace(Case((4, 7, 2), (3, 2, 1), 3, mixed=mixed), **changes)


def log_of(simulator):
    return [tuple(int(x) for x in entry) for entry in simulator.log]


def play(case, actions):
    simulator = Simulator(case.problem(), record=True)
    for action in actions:
        simulator.step(action)
    return simulator


def test_chunks_on_paper():
    """Alpha and beta of a prefill are 100 and 10 ns, of a decode 50 and 1; of a mixed iteration 100, 10 and 1.

    Five tokens a chunk, A active clients: 4 + 1 of the first two prompts, nobody active (counts as a prefill); then 5
    beside A = 1; then 1 + 2 beside A = 1, which ends the first request and, with its first token, the third. One decode
    ends the second.
    """
    simulator = play(paper(Mixed(5, False, False, SUM)), [MIXED, MIXED])
    view = simulator.view
    assert (view.active, view.idle, view.waiting, view.ready) == (1, 2, 1, 2)
    assert (view.reading_tokens, view.chunk_tokens, view.batch_tokens, view.batch_requests) == (1, 3, 3, 2)
    assert (view.prefills, view.decodes, view.mixed) == (1, 1, 2)
    assert simulator.emitted.tolist() == [2, 0, 0]
    for action in (MIXED, DECODE):
        simulator.step(action)
    assert simulator.done
    assert log_of(simulator) == [(0, 150, 1, 1, 1), (150, 301, 0, 1, 1), (301, 432, 0, 3, 1), (432, 483, 0, 1, 0)]
    served = simulator.served
    assert served["prefill_start_ns"].tolist() == [0, 0, 301]
    assert served["first_token_ns"].tolist() == [150, 432, 432]
    assert served["completion_ns"].tolist() == [432, 483, 432]
    assert served["client"].tolist() == [0, 1, 2]
    assert worst_token_gaps_ns(simulator, np.array([3, 2, 1])).tolist() == [151, 51, 0]
    found = final_metrics(simulator)
    assert found["throughput_tokens_per_s"] == pytest.approx(6 / 483e-9)
    assert found["utilization"] == pytest.approx((150 * 2 + 151 * 2 + 131 * 3 + 51) / (3 * 483))


def test_a_budget_for_all_tokens_on_paper():
    """Five tokens in all: 4 + 1; then 4 beside one active client; then 2 + 2 beside it."""
    simulator = play(paper(Mixed(5, True, False, SUM)), [MIXED] * 3)
    assert [int(end - start) for start, end, *_ in log_of(simulator)] == [150, 141, 141]
    crowded = Case((1,) * 4, (9,) * 4, 4, mixed=Mixed(2, True, False, SUM))
    simulator = play(crowded, [MIXED, MIXED])
    assert (simulator.view.active, simulator.view.ready, simulator.view.chunk_tokens) == (2, 2, 0)
    before = simulator.view.mixed
    simulator.step(MIXED)
    assert simulator.view.mixed == before, "nothing is left of the budget: a decode"
    assert log_of(simulator)[-1][2:] == (0, 2, 0)
    assert simulator.totals.invalid_actions == 0


def test_whole_prompts_on_paper():
    """Orca: the first prompt in any case, then what fits."""
    case = paper(Mixed(6, False, True, SUM))
    simulator = play(case, [MIXED])
    assert (simulator.view.active, simulator.view.reading_tokens) == (1, 0)
    simulator.step(MIXED)  # seven tokens, more than six: alone
    assert log_of(simulator)[-1] == (140, 140 + 100 + 70 + 1, 0, 2, 1)


def test_overlap_on_paper():
    """A decode of one client lasts 51 ns, a prefill of 5 tokens 150, of 3 130."""
    simulator = play(paper(Mixed(5, False, False, OVERLAP)), [MIXED, MIXED, MIXED, DECODE])
    assert [int(end - start) for start, end, *_ in log_of(simulator)] == [150, 150, 130, 51]


def test_a_prefill_goes_on_with_what_was_begun():
    simulator = play(paper(Mixed(5, False, False, SUM)), [MIXED, PREFILL])
    assert log_of(simulator)[-1] == (150, 150 + 100 + 80, 1, 2, 0)
    assert simulator.served["prefill_start_ns"].tolist() == [0, 0, 150]


def test_interference_on_paper():
    """30 ns of it: 30 * 1 * 1 // (1 + 5)."""
    cost = replace(SUM, interference_ns=30)
    simulator = play(paper(Mixed(5, False, False, cost)), [MIXED, MIXED])
    assert log_of(simulator)[-1][:2] == (150, 150 + 100 + 50 + 1 + 5)


@settings(REPEATABLE, max_examples=150)
@given(case=mixed_cases(), actions=MIXED_ACTIONS)
def test_laws(case, actions):
    """Clients, prompt tokens and output tokens are conserved; no schedule is faster than the bound."""
    simulator = Simulator(case.problem(), record=True)
    cost, mixed = case.cost, case.mixed
    for action in itertools.cycle(actions):
        view = simulator.view
        reading = view.reading_tokens > 0
        assert view.active + view.idle == case.num_clients
        assert view.idle >= reading
        released = sum(release <= view.clock_ns for release in case.releases_ns)
        assert view.completed + view.active + view.waiting + reading == released
        assert 0 <= view.chunk_tokens <= max(mixed.tokens, max(case.prompts) if mixed.whole_prompts else 0)
        assert view.mixed <= view.prefills + view.decodes
        if simulator.done:
            break
        assert simulator.can_decode or simulator.can_prefill
        simulator.step(action)
    decodes = sum(case.outputs) - len(case.outputs)
    assert view.decodes * case.num_clients - simulator.totals.idle_client_decodes == decodes
    assert simulator.log["clients"].sum() == sum(case.outputs)
    bound = mixed_bound_ns(case.requests, case.num_clients, cost, mixed.cost)
    assert view.clock_ns - case.releases_ns[0] >= bound


@settings(REPEATABLE, max_examples=100)
@given(case=mixed_cases(), actions=ACTIONS)
def test_without_a_mixed_iteration_nothing_is_different(case, actions):
    mixed, plain = Simulator(case.problem()), Simulator(replace(case, mixed=None).problem())
    own = {"mixed_tokens", "mixed", "chunk_tokens", "mixed_ns", "late", "in_time_release_ns"}  # least times differ
    of_somebody = {"prefill_ns": "batch_requests", "oldest_release_ns": "waiting"}
    for action in itertools.cycle(actions):
        for name in set(FIELDS) - own:
            if name not in of_somebody or getattr(plain.view, of_somebody[name]) > 0:
                assert getattr(mixed.view, name) == getattr(plain.view, name), name
        if plain.done:
            break
        mixed.step(action)
        plain.step(action)


def test_one_chunk_for_everything_is_a_prefill():
    """With the price of a prefill and nobody active, a chunk that holds all prompts is one."""
    cost = MixedCost(alpha_ns=100, beta_prompt_ns=10)
    case = paper(Mixed(1000, False, False, cost))
    one, other = play(case, [MIXED]), play(case, [PREFILL])
    for name in set(FIELDS) - {"mixed"}:
        assert getattr(one.view, name) == getattr(other.view, name), name
    assert [getattr(one.totals, name) for name in TOTALS] == [getattr(other.totals, name) for name in TOTALS]


@pytest.mark.parametrize("name", MIXED_FITS)
def test_the_published_fit_is_the_sum_form(name):
    """alpha + (a + b r + c r^2) (A + c) of arXiv 2606.00516 at some points, to the nanosecond a token.

    A mixed iteration reads a prompt of so many tokens beside so many clients that decode, and lasts that long.
    """
    model = PRESETS[name]
    a, b, c = MIXED_FITS[name]
    for active, tokens in ((1, 2000), (64, 64), (200, 1), (512, 300)):
        case = Case(
            (1,) * active + (tokens,), (3,) * (active + 1), active + 1, releases_ns=(0,) * active + (1,),
            token_cap=2**20, mixed=Mixed(tokens, False, False, mixed_cost("fitted", model)),
        )  # fmt: skip
        simulator = play(case, [PREFILL])
        assert (simulator.view.active, simulator.view.chunk_tokens) == (active, tokens)
        before = int(simulator.view.clock_ns)
        simulator.step(MIXED)
        share = active / (active + tokens)
        expected = model.alpha_prefill_ns + 1e9 * (a + b * share + c * share**2) * (active + tokens)
        assert simulator.view.clock_ns - before == pytest.approx(expected, abs=active + tokens + 1)


def test_costs_by_name():
    model = PRESETS["llama-65b-paper"]
    assert mixed_cost("sum", model) == MixedCost(False, 23_240_000, 155_700, 275_300)
    assert mixed_cost("overlap", model).overlaps
    with pytest.raises(ConfigError, match="for which nothing was measured: take qwen3-8b-h200 or"):
        mixed_cost("fitted", model)
    with pytest.raises(LLMSchedError, match="unknown mixed_cost 'max'"):
        mixed_cost("max", model)
    levels = replace(model, prefill_levels=((4096, 10**6),))
    with pytest.raises(ConfigError, match="whose prefills have levels: take an affine one"):
        mixed_cost("sum", levels)
    with pytest.raises(ConfigError, match="alpha_ns = 5 beside overlaps=True, which has no numbers"):
        MixedCost(True, 5)
    with pytest.raises(ConfigError, match="must take at least 1 ns"):
        MixedCost(beta_active_ns=3)
    with pytest.raises(ConfigError, match="interference_ns = -1 is out of range"):
        MixedCost(alpha_ns=1, interference_ns=-1)
    with pytest.raises(ConfigError, match=r"alpha_ns = 0.5 is not a whole number of nanoseconds"):
        MixedCost(alpha_ns=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixed_tokens": 0}, "mixed_tokens = 0 is out of range"),
        ({"mixed_tokens": 2.5}, "mixed_tokens = 2.5 is not a whole number"),
        ({"mixed_tokens": 64, "queue": "client"}, "mixed_tokens = 64 with queue = 'client': it needs queue='shared'"),
        (
            {"mixed_tokens": 64, "kv_budget_tokens": 9000, "kv_rule": "vllm_v0"},
            "with kv_rule = 'vllm_v0': vLLM's V0 scheduler runs a prefill or a decode, never both",
        ),
        ({"mixed_counts_active": True}, "mixed_counts_active = True without mixed iterations: nobody would read it"),
        ({"mixed_tokens": 64, "mixed_counts_active": 1}, "mixed_counts_active = 1 is neither True nor False"),
        ({"mixed_cost": "overlap"}, "mixed_cost = 'overlap' without mixed iterations"),
        ({"mixed_tokens": 64, "mixed_cost": "cheap"}, "unknown mixed_cost 'cheap'"),
        ({"mixed_tokens": 64, "mixed_cost": "fitted"}, "for which nothing was measured"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(LLMSchedError, match=message):
        Scenario(**{"queue": "shared", "order": "fcfs", **arguments})


def test_a_clock_that_chunks_could_overflow_is_refused():
    cost = MixedCost(alpha_ns=10**12)
    case = Case((10**7,) * 2, (1, 1), 1, token_cap=10**8, mixed=Mixed(1, False, False, cost))
    with pytest.raises(WorkloadError, match="beyond the 4e"):
        case.problem()


def test_interference_beyond_the_clock_is_refused():
    cost = MixedCost(alpha_ns=1, interference_ns=10**12)
    case = Case((1,) * 5, (2,) * 5, 4000, mixed=Mixed(4, False, False, cost))
    with pytest.raises(ConfigError, match="interference_ns = 1000000000000 with 4000 clients leaves the clock"):
        case.problem()
