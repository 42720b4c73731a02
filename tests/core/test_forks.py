"""Forks go on as the episode does, in every kind of world."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from states import fields
from strategies import (
    ORDERED_ACTIONS,
    REPEATABLE,
    cases,
    memory_cases,
    mixed_cases,
    moving_cases,
    noisy_cases,
    slo_cases,
)

from llmsched_env.simulator import Simulator

WORLDS = {
    "plain": cases(),
    "SLO": slo_cases(),
    "memory": memory_cases(),
    "mixed": mixed_cases(),
    "moving": moving_cases(),
    "noisy": noisy_cases(),
}


@pytest.mark.parametrize("world", WORLDS)
def test_forks_go_on_as_the_episode_does(world):
    """At any moment: copied, or moved to a case with the same lengths, which fills the ring anew."""
    forked = []

    @settings(REPEATABLE, max_examples=60)
    @given(case=WORLDS[world], actions=ORDERED_ACTIONS)
    def check(case, actions):
        simulator = Simulator(case.problem())
        last = simulator.problem.num_actions - 1
        for action in actions[: len(actions) // 2]:
            if not simulator.done:
                simulator.step(min(action, last))
        twins = [simulator.fork(), simulator.fork(outputs=np.array(case.outputs))]
        forked.append(not simulator.done and len(actions) > 1)
        for action in itertools.cycle(actions):
            if simulator.done:
                return
            for one in (simulator, *twins):
                one.step(min(action, last))
            for twin in twins:
                assert fields(twin.view) == fields(simulator.view)

    check()
    assert sum(forked) > 20
