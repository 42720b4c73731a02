"""Iterations that do not last what schedulers believe: the plain simulator, laws, instances on paper, bad input."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from reference import Reference, factors, mixed
from states import fields
from strategies import ORDERED_ACTIONS, REPEATABLE, Case, cases, noisy_cases
from test_equivalence import assert_same_history, assert_same_state
from test_slo import assert_same_slo

from llmsched_env.baselines.lagrangian import lagrangian, lagrangian_lookahead
from llmsched_env.baselines.registry import make_policy
from llmsched_env.cases import build_problem
from llmsched_env.config import KVCache, Noise, Scenario
from llmsched_env.cost import CostModel
from llmsched_env.engine.noise import ONE, QUANTILES, factor_table
from llmsched_env.errors import ConfigError, LLMSchedError, UnknownNameError, WorkloadError
from llmsched_env.evaluation import play
from llmsched_env.metrics import final_metrics
from llmsched_env.offline import lb1_ns
from llmsched_env.simulator import Simulator

BELIEVED = CostModel("believed", 150, 20, 40, 2, 0, 1000)


def in_space(simulator, action):
    return min(action, simulator.problem.num_actions - 1)


def test_it_equals_the_reference_after_every_iteration():
    seen = Counter()

    @settings(REPEATABLE, max_examples=500)
    @given(case=noisy_cases(), actions=ORDERED_ACTIONS)
    def check(case, actions):
        simulator, reference = Simulator(case.problem(), record=True), Reference(case)
        assert_same_state(simulator, reference)
        for action in itertools.cycle(actions):
            if reference.done:
                break
            simulator.step(in_space(simulator, action))
            reference.step(in_space(simulator, action))
            assert_same_state(simulator, reference)
            if case.ttft_ns:
                assert_same_slo(simulator, reference)
        assert_same_history(simulator, reference)
        noise, kind = case.noise, "SLO" if case.ttft_ns else "plain"
        for name in ("kv_cache", "mixed", "migration"):
            kind = name if getattr(case, name) else kind
        seen["noise", kind] += noise.noise_sd > 0
        seen["stragglers", kind] += reference.stragglers > 0
        if not case.mixed:
            seen["belief", kind] += noise.believed is not None
        seen["belief in levels"] += bool(case.believed.levels) and not case.levels
        seen["levels, belief in none"] += bool(case.levels) and not case.believed.levels
        seen["levels, belief in others"] += bool(case.levels) and case.believed.levels not in ((), case.levels)
        seen["context"] += case.believed.gamma_decode_ns != case.gamma_decode_ns
        seen["first decode"] += case.believed.first_decode_ns != case.first_decode_ns
        seen["client queues"] += case.queues is not None

    check()
    rare = {name: count for name, count in seen.items() if count < 5}
    assert not rare, f"hardly tested: {rare}"
    assert len(seen) == 20


def run(simulator, actions):
    for action in itertools.cycle(actions):
        if simulator.done:
            return simulator
        simulator.step(min(action, simulator.problem.num_actions - 1))


@settings(REPEATABLE, max_examples=60)
@given(case=noisy_cases(), actions=ORDERED_ACTIONS)
def test_a_belief_in_the_truth_without_noise_changes_no_iteration(case, actions):
    """But for who is late, which is not counted before the first token: nothing else differs."""
    plain = Simulator(replace(case, noise=None).problem(), record=True)
    believed = Simulator(replace(case, noise=Noise(case.cost)).problem(), record=True)
    run(plain, actions)
    run(believed, actions)
    assert (plain.log == believed.log).all()
    assert (plain.served == believed.served).all()
    assert fields(plain.view) == fields(believed.view)
    assert plain.totals.violations == believed.totals.violations


@settings(REPEATABLE, max_examples=60)
@given(case=noisy_cases(), actions=ORDERED_ACTIONS)
def test_the_believed_world_is_the_one_without_noise(case, actions):
    """Its problem is that of the believed cost model, bound apart; and a fork goes on in it."""
    there = case.problem().believed
    believed = replace(case.believed, noise=None)
    assert there.digest() == believed_with_bounds(believed, there).digest()
    assert there.believed is there
    forked = run(Simulator(case.problem(), record=True).fork(record=True, believed=True), actions)
    plain = run(Simulator(believed_with_bounds(believed, there), record=True), actions)
    assert (forked.log == plain.log).all()
    assert (forked.served == plain.served).all()


def believed_with_bounds(case, there):
    made = case.problem()
    return replace(made.with_bound(there.bound_ns), lb1_ns=there.lb1_ns)


@settings(REPEATABLE, max_examples=40)
@given(case=noisy_cases(), actions=ORDERED_ACTIONS)
def test_forks_go_on_as_the_episode_does(case, actions):
    simulator = Simulator(case.problem())
    for step, action in enumerate(actions):
        if simulator.done:
            return
        if step == len(actions) // 2:
            twins = [simulator.fork(), simulator.fork(outputs=np.array(case.outputs))]
            twins.append(pickle.loads(pickle.dumps(simulator)))
            for one in (simulator, *twins):
                run(one, actions)
            assert all(fields(twin.view) == fields(simulator.view) for twin in twins)
            return
        simulator.step(in_space(simulator, action))


@pytest.mark.parametrize("sd", [0.05, 0.3, 0.5, 2.0])
def test_factors_have_mean_1_and_the_spread_asked_for(sd):
    table = factor_table(sd)
    assert len(table) == QUANTILES
    assert table.mean() / ONE == pytest.approx(1.0, abs=1e-6)
    assert (np.diff(table) > 0).all()
    assert np.log(table / ONE).std() == pytest.approx(sd, rel=0.005)
    assert table.tolist() == factors(sd), "the same by other means"


def test_the_hash_is_a_permutation_and_looks_uniform():
    words = [mixed(99 ^ mixed(count)) for count in range(20_000)]
    assert len(set(words)) == len(words)
    counts = np.bincount(np.array(words) >> 28, minlength=16)
    assert np.abs(counts - 1250).max() < 5 * np.sqrt(1250)
    again = np.array([mixed(word ^ 0x3C6EF372) for word in words]) < 0.1 * 2**32
    assert again.mean() == pytest.approx(0.1, abs=0.01)
    assert again[np.array(words) < 2**31].mean() == pytest.approx(0.1, abs=0.015), "stragglers depend on the factor"


def test_on_paper():
    """Two clients, requests of 3 + 2 and 4 + 3 tokens; a prefill lasts 100 + 10 a token, a decode 50 + 1 a client.

    One prefill of 170 ns, decodes of 52 and 51 ns; every one a straggler (nearly), of 3 times as long. Schedulers
    believe in 150 + 20 a token and 40 + 2 a client.
    """
    always = 1 - 2**-33
    case = Case((3, 4), (2, 3), 2, noise=Noise(BELIEVED, 0.0, always, 3.0))
    simulator = Simulator(case.problem(), record=True)
    view = simulator.view
    assert (view.alpha_prefill_ns, view.alpha_decode_ns, view.beta_decode_ns) == (150, 40, 2)
    assert view.prefill_ns == 150 + 20 * 7
    simulator.step(1)
    assert (view.clock_ns, view.last_prefill_ns, view.decode_ns) == (510, 510, 44)
    simulator.step(0)
    assert (view.clock_ns, view.decode_ns) == (510 + 156, 42)
    simulator.step(0)
    assert view.clock_ns == 510 + 156 + 153
    assert simulator.totals.busy_client_ns == 2 * 510 + 2 * 156 + 153
    assert simulator.charge == 2 * 819, "excess is the makespan where costs are not what schedulers believe"


def test_copying_of_the_cache_is_stretched_like_the_rest():
    case = Case((3, 3), (6, 6), 2, kv_cache=KVCache(10, swap_token_ns=2))
    always = 1 - 2**-33
    stretched = Simulator(replace(case, noise=Noise(None, 0.0, always, 2.0)).problem(), record=True)
    plain = Simulator(case.problem(), record=True)
    for one in (stretched, plain):
        run(one, (1, 0))
    lasted = [one.log["end_ns"] - one.log["start_ns"] for one in (stretched, plain)]
    assert (lasted[0] == 2 * lasted[1]).all()
    assert plain.totals.swapped_tokens > 0


def test_factors_belong_to_kind_and_count_not_to_the_policy():
    case = Case((3,) * 30, (20,) * 30, 5, noise=Noise(None, 0.5, 0.1, 5.0, 7))
    plain = replace(case, noise=None)
    found = {}
    for actions in ((1,), (0,), (0, 0, 1), (0,) * 9 + (1,)):
        noisy, quiet = (run(Simulator(one.problem(), record=True), actions).log for one in (case, plain))
        assert (noisy["prefill"] == quiet["prefill"]).all()
        for kind in (0, 1):
            ratios = np.round(
                (noisy["end_ns"] - noisy["start_ns"])[noisy["prefill"] == kind]
                / (quiet["end_ns"] - quiet["start_ns"])[noisy["prefill"] == kind],
                1,
            )
            known = found.setdefault(kind, ratios)
            both = min(len(known), len(ratios))
            assert np.abs(known[:both] - ratios[:both]).max() < 0.2, "durations are whole, so only nearly"
    assert not np.array_equal(found[0][:6], found[1][:6])


COUNTING = (
    "prefill_first",
    "decode_first",
    "threshold",
    "eb_threshold",
    "max_wait",
    "lightllm",
    "tgi",
    "cadence",
    "interleave",
)


@pytest.mark.parametrize("queue", ["client", "shared"])
def test_without_arrivals_noise_changes_no_decision_of_rules_that_count(queue):
    """Lagrangian rules compare sums of counts with prices that are believed: they count, too."""
    order = {"order": "longest_first", "queue": queue, "assignment": "lpt"}
    plain = Scenario(split="test", num_clients=20, num_requests=130, **order)
    noisy = plain.replace(noise_sd=0.5, straggler_probability=0.02, straggler_factor=20.0)
    for rule in (*map(make_policy, COUNTING), lagrangian(), lagrangian(0.3), lagrangian_lookahead()):
        one, other = (play(rule, scenario, 0, record=True) for scenario in (plain, noisy))
        assert (one.log["prefill"] == other.log["prefill"]).all(), rule.name
        assert (one.log["clients"] == other.log["clients"]).all(), rule.name
        assert (one.served["client"] == other.served["client"]).all(), rule.name
        assert one.view.clock_ns != other.view.clock_ns


def test_lb1_holds_in_the_mean_and_not_case_by_case():
    case = Case((3,) * 4, (30,) * 4, 4)
    bound = lb1_ns(case.requests, 4, case.cost)
    gaps = []
    for key in range(400):
        noisy = replace(case, noise=Noise(None, 0.5, 0.0, 1.0, 1000 + key))
        gaps.append(final_metrics(run(Simulator(noisy.problem()), (1,)))["gap_to_bound"])
    assert min(gaps) < 0 < max(gaps)
    assert np.mean(gaps) == pytest.approx(run(Simulator(case.problem()), (1,)).view.clock_ns / bound - 1, abs=0.03)


@settings(REPEATABLE, max_examples=30)
@given(case=cases(affine=True), actions=ORDERED_ACTIONS)
def test_a_longer_world_of_the_same_shape_is_no_noise(case, actions):
    """Every iteration twice as long (a straggler in all but one of 2^33) is the world of twice the coefficients."""
    case = replace(case, releases_ns=(0,) * len(case.prompts))
    always = Noise(None, 0.0, 1 - 2**-33, 2.0)
    one = run(Simulator(replace(case, noise=always).problem()), actions)
    twice = {name: 2 * getattr(case, name) for name in CASE_COEFFICIENTS}
    other = run(Simulator(replace(case, **twice).problem()), actions)
    assert one.view.clock_ns == other.view.clock_ns


CASE_COEFFICIENTS = ("alpha_prefill_ns", "beta_prefill_ns", "alpha_decode_ns", "beta_decode_ns")


def test_a_case_fixes_its_noise():
    scenario = Scenario(split="test", num_clients=20, num_requests=60, assignment="lpt", noise_sd=0.3)
    keys = [build_problem(scenario, case).options["noise"]["key"] for case in range(20)]
    assert len(set(keys)) == 20
    assert keys[3] == build_problem(scenario.replace(noise_sd=0.5, num_clients=10), 3).options["noise"]["key"]
    assert keys[3] != build_problem(scenario.replace(split="train"), 3).options["noise"]["key"]
    digests = {build_problem(scenario.replace(noise_sd=sd), 0).digest() for sd in (0.0, 0.1, 0.3)}
    assert len(digests) == 3
    plain = build_problem(scenario.replace(noise_sd=0.0), 0)
    assert build_problem(scenario, 0).believed.digest() == plain.digest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_sd": -0.1}, r"noise_sd = -0.1 is out of range: it lies in \[0, 2\]"),
        ({"noise_sd": 30}, r"it lies in \[0, 2\]\. As a share, 30 % is 0\.3\."),
        ({"straggler_probability": 5, "straggler_factor": 2.0}, r"\. As a share, 5 % is 0\.05\."),
        ({"noise_sd": 2.5}, r"noise_sd = 2.5 is out of range"),
        ({"noise_sd": float("nan")}, "noise_sd = nan is out of range"),
        ({"noise_sd": "much"}, "noise_sd = 'much' is not a number"),
        ({"noise_sd": None}, "noise_sd = None is not a number"),
        ({"straggler_probability": 1.0, "straggler_factor": 2.0}, r"it lies in \[0, 1\)"),
        ({"straggler_probability": -0.1, "straggler_factor": 2.0}, r"straggler_probability = -0.1 is out of range"),
        ({"straggler_probability": 0.1, "straggler_factor": 0.5}, r"straggler_factor = 0.5 is out of range"),
        ({"straggler_probability": 0.1, "straggler_factor": 1e5}, r"straggler_factor = 100000.0 is out of range"),
        ({"straggler_probability": 0.1}, "Give both, or leave both out"),
        ({"straggler_factor": 10.0}, "Give both, or leave both out"),
        ({"believed_cost": "llama-65b-paper-mid"}, "has a prefill_token_cap of 4096, the cost model one of 2048"),
        ({"believed_cost": 3}, "unknown cost preset"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(LLMSchedError, match=message):
        Scenario(**arguments)


def test_a_cap_that_is_given_holds_for_both():
    scenario = Scenario(believed_cost="llama-65b-paper-mid", prefill_token_cap=1000)
    assert scenario.believed_model.prefill_token_cap == scenario.cost_model.prefill_token_cap == 1000
    assert scenario.describe()["believed_cost"]["name"] == "llama-65b-paper-mid"
    with pytest.raises(UnknownNameError, match="Did you mean"):
        Scenario(believed_cost="llama-65b-papers")


def test_what_the_clock_or_the_levels_do_not_hold_is_refused():
    large = 10**12
    case = Case((3, 4), (300, 300), 2, alpha_prefill_ns=large, beta_decode_ns=large)
    case.problem()
    with pytest.raises(WorkloadError, match="beyond the 4e\\+09 s of the clock"):
        replace(case, noise=Noise(None, 0.0, 0.1, 1e4, 0), alpha_decode_ns=large).problem()
    short = CostModel("short", 1, 1, 1, 1, 0, 3, ((3, 10),))
    with pytest.raises(ConfigError, match="a prompt of 4 tokens exceeds the largest prefill level, 3"):
        Case((3, 4), (2, 2), 2, token_cap=3, noise=Noise(short)).problem()
