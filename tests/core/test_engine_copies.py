"""Copies of an episode: every field goes along, and what follows is the same."""

from __future__ import annotations

import random

import numpy as np
import pytest
from adapter import engine_of
from episodes import CASES

from llmsched_env.engine.episode import Episode
from llmsched_env.snapshot import restore, snapshot

SCRATCH = {"chosen", "recorder", "ending_context", "batch", "batch_growth", "batch_reserved", "company"}
SCRATCH |= {"this_growth", "next_growth", "later", "client"}
"""What an iteration writes before it reads it, and recordings, which begin anew."""


def flat(state, path=()):
    for name, value in state.items():
        if name in SCRATCH or (name == "ending" and path and path[-1] == "kv"):
            continue
        if isinstance(value, dict):
            yield from flat(value, (*path, name))
        else:
            yield (*path, name), np.array(value)


def assert_same(one, other):
    mine, theirs = dict(flat(snapshot(one))), dict(flat(snapshot(other)))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if name[-1] in ("position", "tokens") and name[0].startswith("next_"):  # rows beyond the last are left over
            rows = int(mine[name[0], "rows"])
            assert value[:rows].tolist() == theirs[name][:rows].tolist(), name
        else:
            assert value.tolist() == theirs[name].tolist(), name


def play_on(episode: Episode, seed: int) -> None:
    rng = random.Random(seed)
    while episode.feasible_now():
        episode.step(rng.randrange(episode.problem.num_actions))


@pytest.mark.parametrize("kind", CASES)
def test_a_copy_is_the_same_and_goes_on_alike(kind):
    moved = 0
    for seed in range(60):
        case = CASES[kind](seed)
        episode, twin, third = (engine_of(case.instance(), case) for _ in range(3))
        rng = random.Random(seed)
        for _ in range(rng.randrange(80)):
            if not episode.feasible_now():
                break
            episode.step(rng.randrange(episode.problem.num_actions))
            if rng.randrange(3) == 0:
                third.restart(episode)
                assert_same(episode, third)
            twin.step(rng.randrange(twin.problem.num_actions)) if twin.feasible_now() else None
        if seed % 2:
            play_on(twin, seed)
        moved += episode.view.completed > 0
        twin.restart(episode)  # over another state of its own
        restore(third, snapshot(episode))
        for copy in (twin, third):
            assert_same(episode, copy)
            assert copy.chunked.client == episode.chunked.client
        for one in (episode, twin, third):
            play_on(one, seed)
        assert_same(episode, twin)
        assert_same(episode, third)
    assert moved > 25
