"""Python functions that decide inside the engine's loop."""

from __future__ import annotations

import pytest
from combinations import combined_case

from llmsched_env.engine.rule import FunctionRule, PythonRule
from llmsched_env.engine.rules import ReadyThreshold

CASE = next(
    case
    for seed in range(100)
    if (case := combined_case(seed)).num_clients > 2 and case.kv_cache is None and case.mixed is None
)


def test_a_function_plays_as_the_compiled_rule_does():
    compiled, asked = CASE.instance().episode(record=True), CASE.instance().episode(record=True)
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

    rule, instance, clocks = FunctionRule(every_third, (3,), (1,)), CASE.instance(), []
    for _ in range(3):
        episode = instance.episode()
        episode.run(rule)
        clocks.append(episode.view.clock_ns)
        assert rule.memory[0] % 3 != 1  # else the next episode would begin alike in any case
    assert len(set(clocks)) == 1


def test_an_error_ends_the_episode_there_and_is_raised():
    def fails(view):
        if view.prefills == 1:
            raise LookupError("no idea")
        return 1

    episode = CASE.instance().episode()
    with pytest.raises(LookupError, match="no idea"):
        episode.run(PythonRule(fails))
    assert episode.view.prefills == 1
    assert episode.view.completed < len(CASE.prompts)
    episode.run(ReadyThreshold(1))  # it can be gone on with
    assert episode.view.completed == len(CASE.prompts)
