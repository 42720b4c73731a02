"""Copies of an episode: every field goes along, and what follows is the same."""

from __future__ import annotations

import random

import pytest
from episodes import CASES
from states import state_of

from llmsched_env.engine.episode import Episode
from llmsched_env.snapshot import restore, snapshot


def play_on(episode: Episode, seed: int) -> None:
    rng = random.Random(seed)
    while episode.feasible_now():
        episode.step(rng.randrange(episode.problem.num_actions))


@pytest.mark.parametrize("kind", CASES)
def test_a_copy_is_the_same_and_goes_on_alike(kind):
    moved = 0
    for seed in range(60):
        problem = CASES[kind](seed).problem()
        episode, twin, third = (problem.episode() for _ in range(3))
        rng = random.Random(seed)
        for _ in range(rng.randrange(80)):
            if not episode.feasible_now():
                break
            episode.step(rng.randrange(episode.problem.num_actions))
            if rng.randrange(3) == 0:
                third.restart(episode)
                assert state_of(episode) == state_of(third)
            twin.step(rng.randrange(twin.problem.num_actions)) if twin.feasible_now() else None
        if seed % 2:
            play_on(twin, seed)
        moved += episode.view.completed > 0
        twin.restart(episode)  # over another state of its own
        restore(third, snapshot(episode))
        for copy in (twin, third):
            assert state_of(episode) == state_of(copy)
        for one in (episode, twin, third):
            play_on(one, seed)
        assert state_of(episode) == state_of(twin) == state_of(third)
    assert moved > 25
