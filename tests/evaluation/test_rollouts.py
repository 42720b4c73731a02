"""Whole episodes of policies: what they are told, in which order cases are run, what is measured and warned of."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from patient import SMALL, Compiled, Patient
from states import fields

from llmsched_env.baselines.iteration import prefill_first
from llmsched_env.config import Scenario
from llmsched_env.cost import PRESETS
from llmsched_env.errors import ConfigError, InvalidActionError, UnknownNameError
from llmsched_env.evaluation import CoverageWarning, HorizonWarning, begin, decision_times, evaluate, play
from llmsched_env.evaluation.rollout import case_numbers
from llmsched_env.offline import lpt
from llmsched_env.policy import Policy
from llmsched_env.simulator import Simulator


def test_a_policy_with_a_rule_runs_in_the_engine():
    asked, ran = Patient(), Compiled()
    first, second = (evaluate(policy, SMALL, 5) for policy in (asked, ran))
    assert asked.asked > 0
    assert ran.asked == 0
    for name, column in first.columns.items():
        np.testing.assert_array_equal(column, second.columns[name])
    assert isinstance(asked, Policy)


def test_an_evaluation_holds_one_row_a_case():
    ticks = []
    found = evaluate(Patient(), SMALL, (7, 3, 3 + 2), progress=ticks.append)
    assert found.cases.tolist() == [7, 3, 5]
    assert ticks == [1, 1, 1]
    for row, case in enumerate(found.cases):
        episode = play(Patient(), SMALL, int(case))
        assert found.columns["makespan_s"][row] == episode.view.clock_ns / 1e9
        assert found.columns["bound_s"][row] == episode.problem.bound_ns / 1e9
    assert len(set(found.columns["makespan_s"])) == 3
    assert (found.policy, found.kind, found.scenario) == ("patient", "rule", SMALL)
    assert found.estimate("decodes").mean == found.columns["decodes"].mean()


def test_each_case_has_a_seed_of_its_own():
    policy = Patient()
    evaluate(policy, SMALL, (0, 4), seed=10)
    seeds = [start.seed for start in policy.starts]
    evaluate(policy, SMALL, (4, 0), seed=10)
    assert [start.seed for start in policy.starts[2:]] == seeds[::-1]
    evaluate(policy, SMALL, (0, 4), seed=11)
    assert len({start.seed for start in policy.starts}) == 4
    assert {start.mean_output_tokens for start in policy.starts} == {SMALL.source.mean_output_tokens}


@pytest.mark.parametrize("clairvoyant", [False, True])
@pytest.mark.parametrize("kind", [Patient, Compiled])
def test_only_a_clairvoyant_policy_is_given_the_simulator(kind, clairvoyant):
    policy = kind(clairvoyant=clairvoyant)
    evaluate(policy, SMALL, 2)
    decision_times(policy, SMALL)
    assert len(policy.starts) == 4  # one of them to compile what is timed
    for start in policy.starts:
        assert isinstance(start.simulator, Simulator) == clairvoyant
    # Where true lengths are to be seen, in the view or in the order of the queues, any policy is clairvoyant in tables.
    assert evaluate(policy, SMALL, 1).clairvoyant
    hidden = SMALL.replace(order="longest_first", lengths="hidden")
    assert evaluate(policy, hidden, 1).clairvoyant == clairvoyant


QUEUES = SMALL.replace(queue="client", assignment="lpt", stealing=False)


def test_an_assignment_of_ones_own():
    case = QUEUES.source.requests("test", 0)
    own = lpt(case.decodes.astype(np.int64), 5)
    assert fields(play(Patient(), QUEUES, 0, client_of=own).view) == fields(play(Patient(), QUEUES, 0).view)
    # On one client, nothing is decoded beside anything else.
    alone = play(Patient(), QUEUES, 0, client_of=[3] * 30)
    assert alone.view.decodes == case.decodes.sum() > play(Patient(), QUEUES, 0).view.decodes
    assert alone.view.prefills == 30
    assert play(Patient(), QUEUES, 0).view.prefills < 30, "the assignment of a call is kept for the next"


@pytest.mark.parametrize(
    ("scenario", "client_of", "words"),
    [
        (SMALL, [0] * 30, "client_of with queue = 'shared'"),
        (QUEUES, [0] * 29, r"client_of of shape \(29,\) and dtype int64: give 30"),
        (QUEUES, [0.0] * 30, "dtype float64"),
        (QUEUES, [0] * 29 + [5], r"client_of\[29\] = 5 is out of range: clients are numbered from 0 to 4"),
        (QUEUES, [-1] + [0] * 29, r"client_of\[0\] = -1 is out of range"),
    ],
)
def test_what_is_no_assignment(scenario, client_of, words):
    with pytest.raises(ConfigError, match=words):
        play(Patient(), scenario, 0, client_of=client_of)


def test_a_horizon_ends_an_episode():
    scenario = SMALL.replace(max_iterations=9)
    for policy in (Patient(), Compiled()):
        episode = play(policy, scenario, 0)
        assert not episode.done
        assert episode.view.prefills + episode.view.decodes == 9
    assert len(decision_times(Patient(), scenario)) <= 9


def test_an_episode_that_was_cut_has_no_makespan():
    scenario = SMALL.replace(max_iterations=9)
    words = r"patient: 2 of 2 episodes ended at max_iterations = 9, .* makespan is NaN.* leave max_iterations out"
    with pytest.warns(HorizonWarning, match=words):
        found = evaluate(Patient(), scenario, 2)
    assert np.isnan(found.columns["makespan_s"]).all()
    assert np.isnan(found.estimate("makespan_s").mean)
    assert evaluate(Patient(), SMALL.replace(max_iterations=10**6), 2).estimate("makespan_s").mean > 0


def test_an_environment_is_no_scenario():
    env = gymnasium.make("llmsched_env:LLMSched/GSM8K-v0", max_episode_steps=100)
    with pytest.raises(ConfigError, match=r"is an environment.* env\.unwrapped\.scenario.* \(a time limit, say\)"):
        evaluate(Patient(), env, 1)
    with pytest.raises(ConfigError, match=r"make_scenario\('LLMSched/GSM8K-v0'\) makes one"):
        evaluate(Patient(), "LLMSched/GSM8K-v0", 1)


def test_a_time_limit_around_the_environment_gives_no_makespan():
    env = gymnasium.make("llmsched_env:LLMSched/GSM8K-v0", max_episode_steps=20)
    env.reset(seed=0)
    for step in range(20):
        *_, terminated, truncated, info = env.step(1)
        assert (terminated, truncated) == (False, step == 19)
    assert info["makespan_s"] == info["gap_to_bound"] == np.inf
    assert info["elapsed_s"] > 0


def test_decision_times_are_one_a_choice():
    policy = Patient()
    times = decision_times(policy, SMALL, (0, 1))
    assert len(times) == policy.asked - 1 > 0  # the first is not timed: it may have to compile
    assert (times >= 0).all()
    assert len(decision_times(policy, SMALL.replace(num_clients=1))) == 0


def test_an_action_outside_the_space_is_refused():
    class Wild(Patient):
        def act(self, view):
            return 2

    with pytest.raises(InvalidActionError, match=r"action 2 is not in Discrete\(2\)"):
        play(Wild(), SMALL, 0)


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        (0, "names no case"),
        (-3, "names no case"),
        ([], "names no case"),
        ([-1, 2], "start at 0"),
        ([2, 2], "once each"),
        ("20", "is not a whole number"),
        ([0.5], "is not a whole number"),
        (2.0, "is not a whole number"),
    ],
)
def test_cases_that_are_none(cases, words):
    with pytest.raises(ConfigError, match=words):
        evaluate(Patient(), SMALL, cases)


def test_case_numbers():
    assert case_numbers(3).tolist() == case_numbers(np.int64(3)).tolist() == [0, 1, 2]
    assert case_numbers(range(5, 7)).tolist() == case_numbers(np.array([5, 6])).tolist() == [5, 6]
    assert case_numbers((2**40,)).dtype == np.int64


def test_a_negative_seed():
    with pytest.raises(ConfigError, match="seed = -1 is out of range"):
        evaluate(Patient(), SMALL, 1, seed=-1)


def test_leaving_the_range_of_the_cost_model_is_warned_of_once():
    scenario = SMALL.replace(cost=replace(PRESETS["qwen3-8b-h200"]), prefill_token_cap=None)
    with pytest.warns(CoverageWarning, match="patient: cost model 'qwen3-8b-h200' was used outside the range") as seen:
        found = evaluate(Patient(), scenario, 4)
    assert len(seen) == 1
    assert str(seen[0].message) == f"patient: {found.outside}"
    assert evaluate(Patient(), SMALL, 1).outside is None


class WithoutReset:
    name, kind, clairvoyant = "without_reset", "rule", False

    def act(self, view):
        return 1


def test_what_is_not_a_policy_is_told_what_it_lacks():
    for call in (
        lambda policy: evaluate(policy, SMALL, 1),
        lambda policy: play(policy, SMALL, 0),
        lambda policy: decision_times(policy, SMALL),
        lambda policy: begin(policy, None),
    ):
        with pytest.raises(ConfigError, match=r"WithoutReset object .* is not a policy: it lacks reset \(see"):
            call(WithoutReset())
        with pytest.raises(ConfigError, match=r"'hybrid' is not a policy: it lacks name, kind, .*make_policy"):
            call("hybrid")
        with pytest.raises(ConfigError, match=r"Patient'> is a class: give an instance of it, Patient\(\)"):
            call(Patient)
        with pytest.raises(ConfigError, match=r"is a class: .* WithoutReset\(\)\. It lacks reset\."):
            call(WithoutReset)


class Model:
    """As a model of stable-baselines3, or its network, is seen; a network of torch prints a line a layer."""

    def __init__(self, **members):
        self.__dict__.update(members)

    def __call__(self, observations):
        return observations

    def __repr__(self):
        return "Sequential(\n  (0): Linear\n)"


def test_a_network_is_told_what_makes_a_policy_of_it():
    def told(**members):
        with pytest.raises(ConfigError, match="is not a policy: it lacks name, kind") as error:
            evaluate(Model(**members), SMALL, 1)
        text = str(error.value)
        assert text.startswith("the Model object is not a policy")
        assert "\n" not in text
        return text

    wrapped = "llmsched_env.agents.SB3Policy(model)."
    assert f"Wrap the model of stable-baselines3: {wrapped}" in told(predict=None, policy=None)
    assert f"Wrap the model of stable-baselines3, not its network: {wrapped}" in told(predict=None, state_dict=None)
    assert "whose act(view) asks it about llmsched_env.policy.features(view)" in told(state_dict=None)


def test_an_unknown_metric_is_named():
    found = evaluate(prefill_first(), Scenario(num_clients=10, num_requests=20, queue="shared"), 1)
    with pytest.raises(UnknownNameError, match=r"unknown metric 'makespan'\. Did you mean 'makespan_s'"):
        found.estimate("makespan")


@pytest.mark.parametrize("answer", [None, "x", np.array([1, 0]), np.array([1]), 2.5])
def test_a_policy_that_answers_no_action(answer):
    class Odd:
        name, kind, clairvoyant = "odd", "rule", False

        def reset(self, start):
            pass

        def act(self, view):
            return answer

    with pytest.raises(InvalidActionError, match="policy 'odd'"):
        evaluate(Odd(), SMALL, 1)


@pytest.mark.parametrize("answer", [None, "x", [1, 0, 1, 1, 0]])
def test_a_policy_that_answers_about_other_episodes_than_it_was_asked(answer):
    class Odd:
        name, kind, clairvoyant = "odd", "rule", False

        def reset(self, start):
            pass

        def act(self, view):
            return 1

        def together(self, starts):
            return lambda episodes, views: answer

    with pytest.raises(InvalidActionError, match=r"policy 'odd' answered .* about 3 episodes: one action each"):
        evaluate(Odd(), SMALL, 3)
