"""Arrays that a vector environment hands out: what is held is never overwritten, what nobody holds is used again."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from comparing import assert_same

from llmsched_env.vector_env import LLMSchedVectorEnv


def test_what_is_returned_is_never_overwritten(small):
    env = LLMSchedVectorEnv(3, small.replace(max_iterations=40))
    kept = [env.reset(seed=2)]
    rng = np.random.default_rng(3)
    kept += [env.step(rng.integers(0, 2, 3)) for _ in range(60)]
    before = pickle.loads(pickle.dumps(kept))
    for _ in range(60):
        env.step(rng.integers(0, 2, 3))
    for one, other in zip(kept, before, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    "keep",
    [lambda array: array, lambda array: array[1:], lambda array: array[1:].T, memoryview],
    ids=["itself", "slice", "slice of a slice", "memoryview"],
)
@pytest.mark.parametrize("part", ["observations", "rewards", "terminations", "truncations", "masks", "invalid"])
def test_a_part_that_is_kept_is_never_overwritten(small, part, keep):
    """Memory that nobody holds is used again: a part of one array must be enough to keep it."""
    env = LLMSchedVectorEnv(3, small)
    env.reset(seed=0)
    kept = []
    for actions in np.random.default_rng(0).integers(0, 2, (40, 3)):
        *arrays, infos = env.step(actions)
        parts = ("observations", "rewards", "terminations", "truncations", "masks", "invalid")
        found = dict(zip(parts, (*arrays, infos["action_mask"], infos["invalid_actions"]), strict=True))[part]
        kept.append((keep(found), np.array(keep(found))))
        del arrays, infos, found
    for held, then in kept:
        np.testing.assert_array_equal(np.asarray(held), then)


def test_what_became_of_an_array_does_not_come_back(small):
    env = LLMSchedVectorEnv(3, small)
    env.reset(seed=0)
    for _ in range(6):
        observations, rewards, terminated, _, infos = env.step(np.ones(3, np.int64))
        assert observations.shape == (3, 26)
        assert rewards.shape == terminated.shape == (3,)
        assert rewards.flags.writeable
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            observations.shape, rewards.shape, infos["action_mask"].shape = (26, 3), (3, 1), (6,)
        rewards.setflags(write=False)
        terminated.setflags(write=False)


def test_memory_that_nobody_holds_is_used_again(small):
    env = LLMSchedVectorEnv(3, small)
    env.reset(seed=0)
    places = set()
    for _ in range(20):
        observations, *_ = env.step(np.ones(3, np.int64))
        places.add(observations.ctypes.data)
    assert len(places) == 2


def test_writing_to_what_is_returned_changes_nothing(small):
    env, untouched = (LLMSchedVectorEnv(3, small.replace(max_iterations=40)) for _ in range(2))
    env.reset(seed=2)[0][:] = -1
    untouched.reset(seed=2)
    rng = np.random.default_rng(3)
    for _ in range(100):
        actions = rng.integers(0, 2, 3)
        assert_same(env.step(actions.copy()), untouched.step(actions))
        observations, rewards, _, _, infos = env.step(actions)
        observations[:], rewards[:], infos["action_mask"][:] = -1, -1, 7
        untouched.step(actions)
        np.testing.assert_array_equal(env.action_masks(), untouched.action_masks())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"queue": "shared"},
        {"queue": "shared", "kv_budget_tokens": 2_000},
        {"stealing": True, "max_iterations": 7},
    ],
)
def test_many_copies_that_look_ahead_give_what_fewer_do(small, changes):
    """From 1,024 copies on, what a step reads is read ahead: that changes nothing, whatever ends or begins in it."""
    scenario = small.replace(**changes)
    many = LLMSchedVectorEnv(1_033, scenario)
    parts = [LLMSchedVectorEnv(count, scenario) for count in (700, 333)]
    rng = np.random.default_rng(0)
    begun = [part.reset(seed=5 + first)[0] for part, first in zip(parts, (0, 700), strict=True)]
    assert_same(many.reset(seed=5)[0], np.concatenate(begun))
    ended = 0
    for _ in range(300):
        actions = (rng.random(1_033) < 0.3).astype(np.int64)
        result = many.step(actions)
        others = [part.step(mine) for part, mine in zip(parts, np.split(actions, [700]), strict=True)]
        for i in range(4):
            assert_same(result[i], np.concatenate([other[i] for other in others]))
        ended += int((result[2] | result[3]).sum())
    assert ended > 100
