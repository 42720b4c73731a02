"""A limit on steps, and Gymnasium's wrappers of vector environments: as if each copy were wrapped by itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import DictInfoToList, NormalizeReward, RecordEpisodeStatistics
from test_vector import assert_same_step, play_both

from llmsched_env.config import Scenario
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError
from llmsched_env.vector_env import LLMSchedVectorEnv

ID = "LLMSched/GSM8K-v0"
ARGUMENTS: dict[str, Any] = {"num_clients": 5, "num_requests": 20, "assignment": "lpt"}
SAME_STEP = {"autoreset_mode": AutoresetMode.SAME_STEP}


def limited(scenarios: list[Scenario], steps: int) -> SyncVectorEnv:
    """Gymnasium's own loop over single environments, each under Gymnasium's own limit."""
    makers = [lambda scenario=scenario: TimeLimit(LLMSchedEnv(scenario), steps) for scenario in scenarios]
    return SyncVectorEnv(makers, **SAME_STEP)


def length(scenario: Scenario, action_of: Callable[[dict[str, Any]], int]) -> int:
    """Steps of the first episode after seed 5."""
    env = LLMSchedEnv(scenario)
    _, info = env.reset(seed=5)
    steps, over = 0, False
    while not over:
        _, _, over, _, info = env.step(action_of(info))
        steps += 1
    return steps


@pytest.mark.parametrize("steps", [1, 2, 50, 10**6])
@pytest.mark.parametrize(
    "changes",
    [{}, {"skip_forced": True}, {"skip_forced": True, "num_clients": 39, "stealing": False}, {"max_iterations": 60}],
    ids=["every iteration", "forced ones skipped", "mostly without a choice", "a horizon in iterations too"],
)
def test_a_limit_truncates_as_time_limit_does(small, changes, steps):
    scenarios = [small.replace(**changes), small.replace(**changes, reward="makespan")] * 2
    native = LLMSchedVectorEnv(4, scenarios, max_episode_steps=steps)
    assert play_both(native, limited(scenarios, steps), min(600, 80 * steps)) >= 4  # an episode a step is 320 of them


def test_an_episode_that_ends_at_its_limit_is_terminated_and_truncated(small):
    steps = length(small, lambda info: int(info["action_mask"][1]))
    for limit, expected in ((steps - 1, (False, True)), (steps, (True, True)), (steps + 1, (True, False))):
        native, reference = LLMSchedVectorEnv(1, small, max_episode_steps=limit), limited([small], limit)
        (_, infos), _ = native.reset(seed=5), reference.reset(seed=5)
        over = np.zeros(1, np.bool_)
        while not over.any():
            actions = infos["action_mask"][:, 1].astype(np.int64)
            result = native.step(actions)
            assert_same_step(native, result, reference.step(actions))
            _, _, terminated, truncated, infos = result
            over = terminated | truncated
        assert (terminated[0], truncated[0]) == expected


def test_copies_that_began_at_different_times_reach_their_limits_at_different_times(small):
    native, reference = LLMSchedVectorEnv(3, small, max_episode_steps=20), limited([small] * 3, 20)
    assert_same_step(native, native.reset(seed=1), reference.reset(seed=1))
    ends = []
    for step in range(1, 90):
        if step in (8, 45):
            mask = np.array([False, step == 8, step == 45])
            observations, _ = native.reset(options={"reset_mask": mask})
            np.testing.assert_array_equal(observations, reference.reset(options={"reset_mask": mask})[0])
        if step == 30:
            native = pickle.loads(pickle.dumps(native))
        result = native.step(np.ones(3, np.int64))
        assert_same_step(native, result, reference.step(np.ones(3, np.int64)))
        ends += [(step, copy) for copy in np.flatnonzero(result[3]).tolist()]
    assert ends[:5] == [(20, 0), (20, 2), (27, 1), (40, 0), (40, 2)]
    assert (64, 2) in ends, "45 to 64: the second reset"


@pytest.fixture
def registered():
    """An id of a user's own, with a limit."""
    gymnasium.register(
        "Own/Limited-v0",
        entry_point="llmsched_env.env:LLMSchedEnv",
        vector_entry_point="llmsched_env.vector_env:LLMSchedVectorEnv",
        max_episode_steps=50,
        kwargs=ARGUMENTS,
    )
    yield "Own/Limited-v0"
    del gymnasium.registry["Own/Limited-v0"]


@pytest.mark.parametrize("given", [True, False], ids=["given to make_vec", "registered"])
@pytest.mark.parametrize("wrap", [lambda env: env, RecordEpisodeStatistics], ids=["bare", "wrapped"])
def test_make_vec_truncates_alike_however_it_vectorizes(registered, given, wrap):
    name, arguments = (ID, {"max_episode_steps": 50, **ARGUMENTS}) if given else (registered, {})
    native = gymnasium.make_vec(name, num_envs=2, **arguments)
    assert isinstance(native, LLMSchedVectorEnv)
    reference = gymnasium.make_vec(name, num_envs=2, vectorization_mode="sync", vector_kwargs=SAME_STEP, **arguments)
    envs = wrap(native), wrap(reference)
    assert_same_step(native, *(env.reset(seed=3) for env in envs))
    truncations = 0
    for _ in range(120):
        results = [env.step(np.ones(2, np.int64)) for env in envs]
        for *_, infos in results:
            infos.get("episode", {}).pop("t", None)  # a time of the clock on the wall
        assert_same_step(native, *results)
        truncations += int(results[0][3].sum())
    assert truncations == 4


def test_minus_one_is_no_limit_as_in_make(registered):
    env = gymnasium.make_vec(registered, num_envs=1, max_episode_steps=-1)
    env.reset(seed=0)
    assert not any(env.step(np.ones(1, np.int64))[3].any() for _ in range(60))


@pytest.mark.parametrize("limit", [0, -2, 2.5, True, "50"])
def test_a_limit_that_is_none(small, limit):
    with pytest.raises(ConfigError, match="max_episode_steps"):
        LLMSchedVectorEnv(2, small, max_episode_steps=limit)


def test_what_running_episodes_have_achieved_is_told_when_asked(small):
    env, single = LLMSchedVectorEnv(2, small), LLMSchedEnv(small)
    env.reset(seed=0)
    single.reset(seed=1)
    for _ in range(30):
        env.step(np.ones(2, np.int64))
        info = single.step(1)[-1]
    measured = env.metrics()
    assert {name: column[1].item() for name, column in measured.items()} == {name: info[name] for name in measured}
    assert 0 < info["elapsed_s"] < info["makespan_s"] == np.inf


SKIPS_A_STEP = pytest.mark.xfail(
    tuple(map(int, gymnasium.__version__.split(".")[:2])) < (1, 4),
    reason="before Gymnasium 1.4, these wrappers do not begin an episode anew in the step of its autoreset",
    strict=True,
)


@SKIPS_A_STEP
def test_episode_statistics_of_later_episodes(small):
    env = RecordEpisodeStatistics(LLMSchedVectorEnv(2, small.replace(max_iterations=20)))
    env.reset(seed=0)
    for _ in range(3):
        total = np.zeros(2)
        for _ in range(20):
            _, rewards, _, truncated, infos = env.step(np.ones(2, np.int64))
            total += rewards
        assert truncated.all()
        np.testing.assert_allclose(infos["episode"]["r"], total)
        np.testing.assert_array_equal(infos["episode"]["l"], [20, 20])


@SKIPS_A_STEP
def test_normalized_rewards_of_later_episodes(small):
    scenario = small.replace(max_iterations=20)
    env, plain = NormalizeReward(LLMSchedVectorEnv(2, scenario), gamma=0.9), LLMSchedVectorEnv(2, scenario)
    env.reset(seed=0)
    plain.reset(seed=0)
    for step in range(41):
        env.step(np.ones(2, np.int64))
        rewards = plain.step(np.ones(2, np.int64))[1]
        if step % 20 == 0:
            assert rewards.all()
            np.testing.assert_allclose(env.accumulated_reward, rewards, rtol=1e-6)  # kept in half the digits


def test_gymnasium_wrappers(small):
    env = RecordEpisodeStatistics(LLMSchedVectorEnv(2, small.replace(max_iterations=20)))
    env.reset(seed=0)
    total = np.zeros(2)
    for _ in range(20):
        _, rewards, _, truncated, infos = env.step(np.ones(2, np.int64))
        total += rewards
    assert truncated.all()
    np.testing.assert_allclose(infos["episode"]["r"], total)
    np.testing.assert_array_equal(infos["episode"]["l"], [20, 20])
    listed = DictInfoToList(LLMSchedVectorEnv(2, small))
    _, infos = listed.reset(seed=0)
    assert [sorted(info) for info in infos] == [["action_mask", "case", "invalid_actions"]] * 2
