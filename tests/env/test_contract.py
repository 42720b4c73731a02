"""The contract of Gymnasium and of the libraries that train on it, for every registered id."""

from __future__ import annotations

import pickle
import warnings

import gymnasium
import numpy as np
import pytest
from comparing import assert_same
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics

from llmsched_env import ENVIRONMENTS, register_environments
from llmsched_env.engine.measure import COUNTS
from llmsched_env.env import LLMSchedEnv
from llmsched_env.metrics import EPISODE_METRICS, final_metrics, info_metrics

IDS = sorted(ENVIRONMENTS)
FEW = {"num_requests": 400, "num_clients": 30}
"""For episodes to the end where a case of the id has thousands of requests."""


@pytest.fixture(params=IDS)
def env(request):
    made = gymnasium.make(request.param)
    yield made
    made.close()


@pytest.fixture(params=IDS)
def short(request):
    made = gymnasium.make(request.param, **(FEW if "ttft_s" in ENVIRONMENTS[request.param] else {}))
    yield made
    made.close()


def random_feasible(info, rng):
    return int(rng.choice(np.flatnonzero(info["action_mask"])))


def test_check_env(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


def test_stable_baselines_check_env(env):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="stable-baselines3 is an extra")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(env.unwrapped, warn=True, skip_render_check=True)


def test_made_by_name_with_the_package_named():
    made = gymnasium.make(f"llmsched_env:{IDS[0]}")
    assert isinstance(made.unwrapped, LLMSchedEnv)


def test_registering_again_is_harmless():
    before = {name: gymnasium.registry[name] for name in IDS}
    register_environments()
    assert {name: gymnasium.registry[name] for name in IDS} == before


def test_two_environments_in_lock_step(env):
    twin = gymnasium.make(env.spec)
    rng = np.random.default_rng(0)
    for seed in (3, None, None):
        result = env.reset(seed=seed)
        assert_same(result, twin.reset(seed=seed))
        info = result[1]
        for _ in range(300):
            action = random_feasible(info, rng)
            result = env.step(action)
            assert_same(result, twin.step(action))
            info = result[-1]
            if result[2]:
                break  # one with ``skip_forced`` takes few steps


def test_a_seed_repeats_the_episode(env):
    first = env.reset(seed=11)
    cases = [env.reset()[1]["case"] for _ in range(5)]
    assert_same(env.reset(seed=11), first)
    assert [env.reset()[1]["case"] for _ in range(5)] == cases
    assert len({first[1]["case"], *cases}) > 1, "every reset draws the same case"


def test_pickled_in_the_middle_of_an_episode(short):
    env = short
    rng = np.random.default_rng(1)
    _, info = env.reset(seed=5)
    for _ in range(40 if env.unwrapped.scenario.skip_forced else 200):
        info = env.step(random_feasible(info, rng))[-1]
    twin = pickle.loads(pickle.dumps(env))
    terminated = False
    while not terminated:
        action = random_feasible(info, rng)
        result = env.step(action)
        assert_same(result, twin.step(action))
        terminated, info = result[2], result[-1]
    assert_same(env.reset(), twin.reset())


def test_every_info_has_the_same_keys_and_an_episode_ends_with_its_metrics(short):
    rng = np.random.default_rng(2)
    env = RecordEpisodeStatistics(short)
    _, info = env.reset(seed=0, options={"case": 7})
    scenario, simulator = env.unwrapped.scenario, env.unwrapped.simulator
    numbers = {"invalid_actions", "case", *info_metrics(scenario)}
    total, steps, terminated = 0.0, 0, False
    while True:
        assert info.keys() - {"episode"} == {"action_mask", *numbers}
        assert info["case"] == 7
        for key in numbers:
            kind = int if key in {"invalid_actions", "case", *COUNTS} else float
            assert type(info[key]) is kind, key
            assert not np.isnan(info[key]), key
        iterations = info["prefills"] + info["decodes"]
        assert iterations >= steps if scenario.skip_forced else iterations == steps
        if terminated:
            break
        assert (info["makespan_s"], info["gap_to_bound"]) == (np.inf, np.inf)
        assert info["elapsed_s"] == simulator.view.clock_ns / 1e9
        assert info["completed"] == simulator.view.completed
        if scenario.serving:
            assert (info["ttft_s"], info["tpot_s"]) == (np.inf, np.inf)
            if scenario.reward == "goodput":
                assert info["goodput"] == pytest.approx(1 + total)
        _, reward, terminated, truncated, info = env.step(random_feasible(info, rng))
        assert not truncated
        total += reward
        steps += 1
    assert {key: info[key] for key in numbers & set(EPISODE_METRICS)} == {
        key: value for key, value in final_metrics(simulator).items() if key in numbers & set(EPISODE_METRICS)
    }
    assert ("goodput" in info, "kv_peak" in info) == (scenario.serving, scenario.kv_limited)
    assert info["completed"] == simulator.problem.num_requests
    assert info["invalid_actions"] == 0
    assert info["gap_to_bound"] == pytest.approx(info["makespan_s"] / info["bound_s"] - 1)
    assert 0 < info["utilization"] < 1
    assert info["episode"]["r"] == pytest.approx(total)
    if scenario.reward == "goodput":
        assert total == pytest.approx(info["goodput"] - 1)
    assert info["episode"]["l"] == steps


def test_ppo_learns_on_it(small):
    sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is an extra")
    model = sb3.PPO("MlpPolicy", LLMSchedEnv(small), n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.learn(256)
    assert model.num_timesteps == 256
    observation, _ = model.get_env().envs[0].reset()
    action, _ = model.predict(observation)
    model.get_env().envs[0].step(action)


def test_maskable_ppo_finds_the_masks(small):
    contrib = pytest.importorskip("sb3_contrib", reason="sb3-contrib is an extra")
    env = RecordEpisodeStatistics(LLMSchedEnv(small))
    model = contrib.MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.learn(256)
    # With masks nothing infeasible is ever tried.
    assert env.unwrapped.simulator.totals.invalid_actions == 0
