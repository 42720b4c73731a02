"""Planners where iterations do not last what schedulers believe: what will come of their actions they only believe."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from playing import COST, WORLDS, asked, history, start_of, world

from llmsched_env.baselines import lookahead, plan_cache, planners
from llmsched_env.baselines.iteration import eb_threshold, min_batch
from llmsched_env.baselines.lookahead import Lookahead
from llmsched_env.baselines.planners import AlwaysWorst, Beam, Rollout
from llmsched_env.baselines.rule import settings
from llmsched_env.cases import build_problem
from llmsched_env.evaluation import play
from llmsched_env.evaluation.rollout import start
from llmsched_env.simulator import Futures, Simulator

NOISE = {"noise_sd": 0.6, "straggler_probability": 0.05, "straggler_factor": 8.0}
WITH_SLO = WORLDS["SLO"].replace(**NOISE)
OVER_TIME = WORLDS["client, arrivals"].replace(**NOISE)
WRONG = replace(COST, name="wrong", alpha_prefill_ns=300, beta_decode_ns=8)


@pytest.fixture(autouse=True)
def plans(tmp_path, monkeypatch):
    """Plans are searched for anew in each test."""
    monkeypatch.setattr(plan_cache, "cache_dir", lambda: tmp_path)


def other_noise(scenario, case, key):
    """The case with other factors, in all else the same."""
    made = build_problem(scenario, case)
    noise = made.options["noise"]
    return replace(made, options={**made.options, "noise": {**noise, "key": noise["key"] ^ key}})


def moments(scenario, case, steps):
    """The same moment of an episode, with different noise from there on."""
    past = Simulator(build_problem(scenario, case))
    for _ in range(steps):
        if past.done:
            return
        past.step(int(past.can_prefill and past.view.clock_ns % 3 > 0))
    while not past.done and not past.has_choice:
        past.step(int(past.can_prefill))
    if past.done:
        return
    for key in (0, 0x5A5A5A, 0x123456):
        here = Simulator(other_noise(scenario, case, key))
        here.episode.restart(past.episode)
        yield here


def first_foreseen(scenario, simulator):
    policy = Lookahead(min_batch(2))
    return int(policy.compiled(start(policy, scenario, simulator, 0)).plan[0])


def first_rolled_out(scenario, simulator, futures=Futures):
    policy = Rollout()
    policy.reset(start_of(scenario, futures=futures(simulator, known=True)))
    return policy.act(simulator.view)


class Peeking(Futures):
    """An futures that shows what iterations will last."""

    def future(self, into=None):
        return self._simulator.fork()


def choices(scenario, first):
    """The choice at some moments, under each of three ways to go on."""
    found = [
        [first(scenario, here) for here in moments(scenario, case, steps)]
        for case, steps in itertools.product(range(4), (3, 15, 40))
    ]
    return [alternatives for alternatives in found if alternatives]


def test_foresight_does_not_know_the_noise_to_come(monkeypatch):
    for scenario in (WITH_SLO, WITH_SLO.replace(choose_order=True)):
        found = choices(scenario, first_foreseen)
        assert len(found) > 8
        assert all(len(set(alternatives)) == 1 for alternatives in found)
        monkeypatch.setattr(lookahead, "_tried_in", lambda simulator: simulator.problem.episode())
        assert any(len(set(alternatives)) > 1 for alternatives in choices(scenario, first_foreseen)), "nothing to see"
        monkeypatch.undo()


def test_rollout_does_not_know_the_noise_to_come():
    found = choices(OVER_TIME, first_rolled_out)
    assert len(found) > 8
    assert all(len(set(alternatives)) == 1 for alternatives in found)
    peeked = choices(OVER_TIME, lambda scenario, here: first_rolled_out(scenario, here, Peeking))
    assert any(len(set(alternatives)) > 1 for alternatives in peeked), "nothing to see"


def test_rollout_in_drawn_futures_does_not_know_it_either():
    hidden = OVER_TIME.replace(lengths="hidden", order="fcfs")

    def first(scenario, here):
        policy = Rollout(futures=3, caution=0.0)
        policy.reset(start_of(scenario, futures=Futures(here, known=False)))
        return policy.act(here.view)

    assert all(len(set(alternatives)) == 1 for alternatives in choices(hidden, first))


@pytest.mark.parametrize("policy", [Beam(4), AlwaysWorst()])
def test_plans_of_whole_episodes_are_those_of_the_believed_world(policy):
    noisy, quiet = OVER_TIME, WORLDS["client, arrivals"]
    for key in (0, 77):
        given = start_of(noisy, simulator=Simulator(other_noise(noisy, 1, key)))
        there = start_of(quiet, simulator=Simulator(build_problem(quiet, 1)))
        assert settings(policy.compiled(given)) == settings(policy.compiled(there))


def test_planners_that_believe_in_another_model_do_what_it_says():
    """In a batch a plan of prefills and decodes can be played anywhere, and beam's is that of the believed world."""
    there = world(queue="shared", order="longest_first", cost=WRONG)
    deceived = world(queue="shared", order="longest_first", believed_cost=WRONG)
    right = world(queue="shared", order="longest_first")
    differs = 0
    for policy, case in itertools.product((Rollout(), Beam(4)), range(4)):
        wrong, believed, true = (play(policy, scenario, case, record=True) for scenario in (there, deceived, right))
        assert (wrong.log["prefill"] == believed.log["prefill"]).all()
        differs += len(true.log) != len(believed.log) or (true.log["prefill"] != believed.log["prefill"]).any()
    assert differs, "the wrong model was too good"


@pytest.mark.parametrize("coefficient", ["beta_prefill_ns", "beta_decode_ns"])
def test_in_a_batch_wrong_betas_change_no_plan(coefficient):
    """They are spent whatever the policy does; nor does a unit of time change anything."""
    right = world(queue="shared", order="longest_first")
    doubled = replace(COST, name="doubled", **{coefficient: 2 * getattr(COST, coefficient)})
    slower = replace(
        COST, name="slower", **{name: 3 * getattr(COST, name) for name in ("alpha_prefill_ns", "alpha_decode_ns")}
    )
    for policy, case in itertools.product((Rollout(), Beam(4)), range(4)):
        usual = history(play(policy, right, case, record=True))
        for model in (doubled, slower):
            assert history(play(policy, right.replace(believed_cost=model), case, record=True)) == usual


def test_rules_are_told_the_believed_model():
    scenario = world(queue="shared", order="longest_first", believed_cost=WRONG)
    there, right = scenario.replace(cost=WRONG, believed_cost=None), scenario.replace(believed_cost=None)
    said = [eb_threshold().compiled(start_of(one)).count for one in (scenario, there, right)]
    assert said[0] == said[1] > said[2]


def test_foresight_sees_what_has_happened():
    """Its trials begin from the true clock: in a world of stragglers it does better than a plan made before."""
    violations = {"believed": 0, "blind": 0}
    for case in range(6):
        policy = Lookahead(min_batch(2))
        violations["believed"] += int(play(policy, WITH_SLO, case).totals.violations)
        quiet = Simulator(build_problem(WORLDS["SLO"], case))
        plan = policy.compiled(start(policy, WORLDS["SLO"], quiet, 0))
        noisy = Simulator(build_problem(WITH_SLO, case))
        noisy.run(plan)
        violations["blind"] += int(noisy.totals.violations)
    assert violations["believed"] < violations["blind"]


def test_a_belief_in_the_truth_changes_no_choice():
    """Nor that lateness is not counted before the first token: it is the same for all that lookahead compares."""
    for base, case in itertools.product(("SLO", "SLO, late last"), range(3)):
        believed = WORLDS[base].replace(believed_cost=COST)
        for policy in (Lookahead(min_batch(2)), min_batch(2)):
            one, other = (play(policy, scenario, case, record=True) for scenario in (believed, WORLDS[base]))
            assert history(one) == history(other)
            assert one.totals.violations == other.totals.violations


def test_asked_and_compiled_foresight_does_the_same():
    simulator = Simulator(build_problem(WITH_SLO, 0), record=True)
    policy = Lookahead(min_batch(2))
    policy.reset(start(policy, WITH_SLO, simulator, 0))
    assert history(asked(policy, simulator)) == history(play(Lookahead(min_batch(2)), WITH_SLO, 0, record=True))


def test_planners_module_forks_only_where_it_must():
    policy, plain = Beam(4), Simulator(build_problem(WORLDS["shared"], 0))
    assert planners._simulator(policy, start_of(WORLDS["shared"], simulator=plain)) is plain
