"""Python functions that decide inside the engine's loop."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from combinations import combined_case
from states import fields, state_of
from strategies import seeded_case

from llmsched_env.engine.plans import FollowActions
from llmsched_env.engine.rule import FunctionRule, PythonRule
from llmsched_env.engine.rules import ReadyThreshold
from llmsched_env.errors import InvalidActionError

CASE = next(
    case
    for seed in range(100)
    if (case := combined_case(seed)).num_clients > 2 and case.kv_cache is None and case.mixed is None
)


def test_a_function_plays_as_the_compiled_rule_does():
    compiled, asked = CASE.problem().episode(record=True), CASE.problem().episode(record=True)
    decisions = []

    def threshold(view):
        decisions.append(view.ready)
        return int(view.ready >= 2)

    assert asked.run(PythonRule(threshold)) == compiled.run(ReadyThreshold(2)) > 0
    assert asked.view.clock_ns == compiled.view.clock_ns > 0
    assert len(decisions) > 3


def test_what_a_function_keeps_begins_anew_with_each_episode():
    def every_third(view, parameters, memory):
        memory[0] += 1
        return int(memory[0] % parameters[0] == 0)

    rule, problem, clocks = FunctionRule(every_third, (3,), (1,)), CASE.problem(), []
    for _ in range(3):
        episode = problem.episode()
        episode.run(rule)
        clocks.append(episode.view.clock_ns)
        assert rule.memory[0] % 3 != 1  # else the next episode would begin alike in any case
    assert len(set(clocks)) == 1


def test_an_error_ends_the_episode_there_and_is_raised():
    def fails(view):
        if view.prefills == 1:
            raise LookupError("no idea")
        return 1

    episode = CASE.problem().episode()
    with pytest.raises(LookupError, match="no idea"):
        episode.run(PythonRule(fails))
    assert episode.view.prefills == 1
    assert episode.view.completed < len(CASE.prompts)
    episode.run(ReadyThreshold(1))  # it can be gone on with
    assert episode.view.completed == len(CASE.prompts)


def test_a_twin_goes_on_from_what_the_rule_has_kept_and_a_pickle_begins_anew():
    def count(view, parameters, memory):
        memory[0] += 1
        return 1

    rule = FunctionRule(count, (), (5,))
    view = CASE.problem().start.view
    rule.decide(view)
    twin = rule.twin()
    assert (rule.memory, twin.memory) == ([6], [6])
    twin.decide(view)
    assert (rule.memory, twin.memory) == ([6], [7])
    for given, kept in ((FunctionRule(every_time, (2.0,), (5,)), [5]), (PythonRule(always), None)):
        given.decide(view)
        again = pickle.loads(pickle.dumps(given))
        assert again.decide(view) == 1
        assert type(again) is type(given)
        assert kept is None or (again.parameters, again.first, again.memory) == ((2.0,), (5,), [6])


@pytest.mark.parametrize("answer", [None, "x", [1], np.array([1, 0]), 1j])
def test_an_answer_that_is_no_number(answer):
    episode = CASE.problem().episode()
    with pytest.raises(InvalidActionError, match="an action is a whole number"):
        episode.run(PythonRule(lambda view: answer))


def test_a_twin_of_planned_actions_goes_on_with_the_next():
    view = CASE.problem().start.view
    rule = FollowActions([0, 1, 1, 0])
    assert [rule.decide(view), rule.decide(view)] == [0, 1]
    assert rule.twin().decide(view) == 1
    assert [rule.decide(view), rule.decide(view)] == [1, 0]
    rule.begin()
    assert rule.twin().decide(view) == 0


def every_time(view, parameters, memory):
    memory[0] += 1
    return 1


def always(view):
    return 1


@pytest.mark.parametrize("iterations", [3, 8, 13, 0])
def test_whether_the_forecast_is_kept_makes_no_difference_to_who_looks_later(iterations):
    problem = seeded_case(4).problem(max_iterations=iterations)
    kept, left = problem.episode(), problem.episode()
    for episode, reads in ((kept, True), (left, False)):
        rule = PythonRule(lambda view: int(view.ready >= 2))
        rule.reads_forecast = reads
        episode.run(rule)
    assert fields(kept.view) == fields(left.view)
    assert state_of(kept, order=False) == state_of(left, order=False)
    assert kept.view.remaining > 0 or not iterations
