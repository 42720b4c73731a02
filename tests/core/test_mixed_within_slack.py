"""Mixed iterations within the slack of those who decode. Prefill 100 + 10 a token, decode 50 + 1 a client, in ns."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from reference import Reference
from strategies import DECODE, MIXED, MIXED_ACTIONS, PREFILL, REPEATABLE, Case, mixed_cases
from test_mixed_iterations import log_of, play

from llmsched_env.config import Mixed, Noise, Scenario
from llmsched_env.cost import CostModel, MixedCost
from llmsched_env.engine.view import FIELDS
from llmsched_env.errors import ConfigError
from llmsched_env.simulator import Simulator

SUM = MixedCost(alpha_ns=100, beta_prompt_ns=10, beta_active_ns=1)


def paper(cost=SUM, tokens=40, counts_active=False, **changes):
    """A request of 2 prompt tokens; one of 30 comes while it is read. One of 3 comes later."""
    mixed = Mixed(tokens, counts_active, False, cost, within_slack=True)
    case = Case((2, 30, 3), (9, 2, 2), 2, releases_ns=(0, 1, 400), ttft_ns=10_000, tpot_ns=200, mixed=mixed)
    return replace(case, **changes)


def ends(simulator):
    return [int(row[1]) for row in log_of(simulator)]


def test_on_paper():
    """The first request has its first token at 120, and is due at 320, 520, 720, 920.

    Beside it c tokens take 100 + 10 c + 1: 9 in the 200 ns until 320, which are over at 311; 10 in the 209 until 520;
    10 in the 208 from 512 until 720; and from 713 the one token that is left, in 111.
    """
    simulator = play(paper(), [MIXED])
    assert (simulator.view.clock_ns, simulator.view.chunk_tokens, simulator.view.mixed_ns) == (120, 9, 191)
    simulator = play(paper(), [MIXED] * 5)
    assert ends(simulator) == [120, 311, 512, 713, 824]
    assert simulator.served["first_token_ns"].tolist()[:2] == [120, 824]


def test_nobody_who_decodes_is_no_limit():
    """No limit for two prompts at once, 32 tokens; without the option the same."""
    case = paper(releases_ns=(0, 0, 400), tpot_ns=1)
    assert ends(play(case, [MIXED])) == [100 + 320]
    assert play(case, [MIXED]).view.active == 2


def test_nothing_is_read_beside_somebody_who_is_behind():
    """A prefill of 30 tokens lasts from 120 to 520, 200 ns past what was due: the mixed iteration is a decode."""
    simulator = play(paper(num_clients=3), [MIXED, PREFILL])
    assert (simulator.view.clock_ns, simulator.view.active, simulator.view.waiting) == (520, 2, 1)
    assert (simulator.view.chunk_tokens, simulator.view.mixed_ns) == (0, 52)
    simulator.step(MIXED)
    assert log_of(simulator)[-1] == (520, 572, 0, 2, 0)
    assert simulator.totals.invalid_actions == 0
    # It catches up by 148 ns a decode: 120 + 2 * 200 - 572 = -52, then 96 ns, which not even 102 + 10 fit into.
    simulator.step(DECODE)
    assert (simulator.view.clock_ns, simulator.view.chunk_tokens) == (623, 0)
    simulator.step(DECODE)  # the second is complete: 120 + 4 * 200 - 674 = 246 >= 101 + 3 * 10
    assert (simulator.view.clock_ns, simulator.view.active, simulator.view.chunk_tokens) == (674, 1, 3)


def test_the_budget_is_a_limit_as_before():
    assert play(paper(tokens=6), [MIXED]).view.chunk_tokens == 6
    assert play(paper(tokens=6, counts_active=True), [MIXED]).view.chunk_tokens == 5


def test_interference_counts_as_beside_no_tokens():
    """30 ns of it for one client: 100 + 10 c + 1 + 30 <= 200 from 6 tokens down; they last 165, since 30 // 7 = 4."""
    simulator = play(paper(replace(SUM, interference_ns=30)), [MIXED])
    assert (simulator.view.chunk_tokens, simulator.view.mixed_ns) == (6, 165)


def test_overlap():
    """A prefill of 10 tokens lasts 200; a decode is shorter. With a limit of 50 the decode of 51 alone is too long."""
    overlap = MixedCost(overlaps=True)
    assert play(paper(overlap), [MIXED]).view.chunk_tokens == 10
    assert play(paper(overlap, tpot_ns=50, alpha_prefill_ns=0), [MIXED]).view.chunk_tokens == 0


def test_context_counts():
    """3 ns a token of context, 2 + 1 of them: 100 + 10 c + 1 + 9 <= 200."""
    assert play(paper(gamma_decode_ns=3), [MIXED]).view.chunk_tokens == 9
    assert play(paper(gamma_decode_ns=4), [MIXED]).view.chunk_tokens == 8


def test_durations_are_those_that_schedulers_believe():
    believed = CostModel("believed", 100, 20, 50, 1, prefill_token_cap=1000)
    case = paper(noise=Noise(believed), believed_mixed=replace(SUM, beta_prompt_ns=20))
    simulator = play(case, [MIXED])
    assert simulator.view.clock_ns == 120
    assert simulator.view.chunk_tokens == 4  # 101 + 20 c <= 200


@settings(REPEATABLE, max_examples=100)
@given(case=mixed_cases(), actions=MIXED_ACTIONS)
def test_limits_that_bind_nobody_change_nothing(case, actions):
    case = replace(case, ttft_ns=10**6, tpot_ns=10**9, mixed=replace(case.mixed, whole_prompts=False))
    one, other = (
        Simulator(replace(case, mixed=replace(case.mixed, within_slack=on)).problem()) for on in (True, False)
    )
    for action in itertools.cycle(actions):
        for name in FIELDS:
            assert getattr(one.view, name) == getattr(other.view, name), name
        if one.done:
            break
        one.step(action)
        other.step(action)


READ = []


@settings(REPEATABLE, max_examples=200)
@given(case=mixed_cases(), actions=MIXED_ACTIONS)
def test_whoever_is_in_time_stays_so(case, actions):
    """A mixed iteration that reads makes nobody late for a token that is due after its beginning."""
    mixed = replace(case.mixed, whole_prompts=False, within_slack=True)
    case = replace(case, ttft_ns=case.ttft_ns or 300, tpot_ns=case.tpot_ns or 90, mixed=mixed)
    simulator, reference = Simulator(case.problem()), Reference(case)
    for action in itertools.cycle(actions):
        if simulator.done:
            break
        view = simulator.view
        due_ns = [reference.first_token_ns[held.request] + case.tpot_ns * held.emitted for held in reference.active]
        reads = action == MIXED and view.chunk_tokens > 0 and view.active > 0
        simulator.step(action)
        reference.step(action)
        if reads:
            READ.append(case)
            assert simulator.view.clock_ns <= min(due_ns)


def test_some_were_read_beside_others():
    assert len(READ) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixed_within_slack": True}, "mixed_within_slack = True without mixed iterations: nobody would read it"),
        ({"mixed_tokens": 64, "mixed_within_slack": 1}, "mixed_within_slack = 1 is neither True nor False"),
        (
            {"mixed_tokens": 64, "mixed_within_slack": True},
            "mixed_within_slack = True needs SLOs, which say when tokens are due: give ttft_s and tpot_s",
        ),
        (
            {
                "mixed_tokens": 64,
                "mixed_within_slack": True,
                "mixed_whole_prompts": True,
                "ttft_s": 2.0,
                "tpot_s": 0.1,
            },
            "with mixed_whole_prompts = True: the first prompt may exceed any number of tokens",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Scenario(**{"queue": "shared", "order": "fcfs", **arguments})


def test_digests_from_before_it_stay():
    off = Mixed(8, True, False, SUM)
    assert "within_slack" not in off.engine_options(None)
    assert replace(off, within_slack=True).engine_options(None)["within_slack"]
