"""The adapter against stable-baselines3's own loop over single environments."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import torch
from gymnasium import Wrapper
from gymnasium.wrappers import TimeLimit
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from llmsched_env import ENVIRONMENTS
from llmsched_env.agents.vec_env import SB3VecEnv
from llmsched_env.config import Scenario
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError, EpisodeOverError, InvalidActionError
from llmsched_env.metrics import info_metrics

SMALL = Scenario(workload="lognormal", num_requests=20, num_clients=4, assignment="lpt")
SHORT = SMALL.replace(max_iterations=300)
ORDERED = Scenario(
    **{**ENVIRONMENTS["LLMSched/ServingOrder-v0"], "num_requests": 25, "num_clients": 5, "ttft_s": 1.0, "tpot_s": 0.03}
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def reference(scenarios: list[Scenario], wrapped: type = Monitor) -> DummyVecEnv:
    return DummyVecEnv([lambda scenario=scenario: wrapped(LLMSchedEnv(scenario)) for scenario in scenarios])


def same_episode(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """As SB3's Monitor reports it, which rounds the return."""
    assert ours["l"] == theirs["l"]
    assert ours["r"] == pytest.approx(theirs["r"], abs=1e-6)
    assert ours["t"] >= 0


def test_the_same_as_dummy_vec_env() -> None:
    ours, theirs = SB3VecEnv(3, [SMALL, SMALL, SHORT]), reference([SMALL, SMALL, SHORT])
    for env in (ours, theirs):
        env.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    assert [info["case"] for info in ours.reset_infos] == [info["case"] for info in theirs.reset_infos]
    rng = np.random.default_rng(0)
    ends = {False: 0, True: 0}
    for _ in range(6000):
        actions = (rng.random(3) < 0.5).astype(np.int64)
        (*arrays, infos), (*expected, expected_infos) = ours.step(actions), theirs.step(actions)
        for one, other in zip(arrays, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(np.stack(ours.env_method("action_masks")), theirs.env_method("action_masks"))
        for done, info, full in zip(arrays[2], infos, expected_infos, strict=True):
            if not done:
                assert info == {}
                continue
            ends[info["TimeLimit.truncated"]] += 1
            np.testing.assert_array_equal(info.pop("terminal_observation"), full.pop("terminal_observation"))
            same_episode(info.pop("episode"), full.pop("episode"))
            full.pop("action_mask")
            np.testing.assert_equal(info, full)
        assert [info["case"] for info in ours.reset_infos] == [info["case"] for info in theirs.reset_infos]
    assert min(ends.values()) >= 2, ends


def first_length() -> int:
    """Steps of the first episode after seed 5."""
    env, steps, over = LLMSchedEnv(SMALL), 0, False
    env.reset(seed=5)
    while not over:
        over, steps = env.step(1)[2], steps + 1
    return steps


@pytest.mark.parametrize("steps", [30, 61, first_length()], ids=["30", "61", "where it ends"])
def test_a_limit_on_steps_the_same_as_dummy_vec_env(steps: int) -> None:
    ours = SB3VecEnv(2, SMALL, max_episode_steps=steps)
    theirs = DummyVecEnv([lambda: TimeLimit(LLMSchedEnv(SMALL), steps) for _ in range(2)])
    for env in (ours, theirs):
        env.seed(5)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    ends = []
    for _ in range(3 * steps + 200):
        (*arrays, infos), (*expected, expected_infos) = ours.step(np.ones(2, int)), theirs.step(np.ones(2, int))
        for one, other in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        for done, info, full in zip(arrays[2], infos, expected_infos, strict=True):
            if done:
                ends.append(info["TimeLimit.truncated"])
                assert info["TimeLimit.truncated"] == full["TimeLimit.truncated"]
                assert info["makespan_s"] == full["makespan_s"]
    assert len(ends) >= 6
    assert (not ends[0]) == (steps > 61), "an episode that ends at its limit is not cut short"


def test_with_orders_the_same_as_dummy_vec_env() -> None:
    scenarios = [ORDERED, ORDERED.replace(max_iterations=200), ORDERED.replace(load=2.0, reward="latency")]
    ours, theirs = SB3VecEnv(3, scenarios), reference(scenarios)
    assert ours.action_space == theirs.action_space
    assert ours.action_space.n == 7
    assert ours.observation_space == theirs.observation_space
    for env in (ours, theirs):
        env.seed(2)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng, ends = np.random.default_rng(0), {False: 0, True: 0}
    for _ in range(2500):
        actions = (rng.random(3) < 0.4) * rng.integers(1, 7, 3)
        (*arrays, infos), (*expected, expected_infos) = ours.step(actions), theirs.step(actions)
        for one, other in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        masks = np.stack(ours.env_method("action_masks"))
        assert masks.shape == (3, 7)
        np.testing.assert_array_equal(masks, theirs.env_method("action_masks"))
        for done, info, full in zip(arrays[2], infos, expected_infos, strict=True):
            if done:
                ends[info["TimeLimit.truncated"]] += 1
                assert info["terminal_observation"].shape == (33,)
                np.testing.assert_equal(info["goodput"], full["goodput"])
    assert min(ends.values()) >= 2, ends


def test_wrappers() -> None:
    def wrapped(env: Any) -> VecNormalize:
        return VecNormalize(VecMonitor(env))

    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        ours = wrapped(SB3VecEnv(2, SHORT))
    theirs = wrapped(reference([SHORT] * 2, Wrapper))
    for env in (ours, theirs):
        env.seed(1)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    episodes = 0
    for step in range(2000):
        (*arrays, infos), (*expected, expected_infos) = (env.step(np.array([1, step % 3 == 0]).astype(int))
                                                         for env in (ours, theirs))  # fmt: skip
        for one, other in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        for info, full in zip(infos, expected_infos, strict=True):
            assert ("episode" in info) == ("episode" in full)
            if "episode" in info:
                episodes += 1
                assert (info["episode"]["r"], info["episode"]["l"]) == (full["episode"]["r"], full["episode"]["l"])
                np.testing.assert_array_equal(info["terminal_observation"], full["terminal_observation"])
                assert info.keys() >= set(info_metrics(SHORT))
    assert episodes > 2


@pytest.mark.parametrize("kind", [PPO, MaskablePPO])
def test_learning_is_the_same_as_on_dummy_vec_env(kind: Any) -> None:
    def learned(env: Any) -> list[np.ndarray]:
        model = kind("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=3, device="cpu")
        model.learn(512)
        return [parameter.detach().numpy() for parameter in model.policy.parameters()]

    scenario = SMALL.replace(skip_forced=True)
    monitored = DummyVecEnv([lambda: Monitor(LLMSchedEnv(scenario)) for _ in range(2)])
    for one, other in zip(learned(SB3VecEnv(2, scenario)), learned(monitored), strict=True):
        np.testing.assert_array_equal(one, other)


def test_evaluate_policy_of_the_library_finds_the_same_episodes() -> None:
    """And warns of no missing Monitor: warnings are errors here."""
    scenarios = [SMALL, SMALL, SHORT]
    ours, theirs = SB3VecEnv(3, scenarios), reference(scenarios)
    model = PPO("MlpPolicy", ours, n_steps=64, batch_size=64, seed=3, device="cpu")
    ended: list[float] = []

    def note(found: dict[str, Any], _: dict[str, Any]) -> None:
        if found["done"]:
            ended.append(found["info"]["episode"]["l"])

    found = []
    for env, callback in ((ours, note), (theirs, None)):
        env.seed(5)
        options = {"deterministic": False, "return_episode_rewards": True, "callback": callback}
        torch.manual_seed(0)
        found.append(evaluate_policy(model, env, 4, **options))
    (returns, lengths), (expected, expected_lengths) = found
    assert lengths == expected_lengths == ended
    assert len(set(lengths)) > 1
    assert returns == pytest.approx(expected, abs=1e-6)
    for i, scenario in enumerate(scenarios[::2]):  # an episode by hand, as a sum of its rewards
        env, total, over = LLMSchedEnv(scenario), 0.0, False
        env.reset(seed=i)
        while not over:
            _, reward, terminated, truncated, _ = env.step(1)
            total, over = total + reward, terminated or truncated
        copies = SB3VecEnv(1, scenario)
        copies.seed(i)
        assert evaluate_policy(AlwaysPrefill(), copies, 1) == (pytest.approx(total), 0.0)


class AlwaysPrefill:
    def predict(self, observation: Any, **_: Any) -> tuple[np.ndarray, None]:
        return np.ones(len(observation), np.int64), None


def test_maskable_ppo_learns_to_choose_orders() -> None:
    class Counted(SB3VecEnv):
        taken: ClassVar[list[int]] = []

        def step_async(self, actions: Any) -> None:
            masks = self.action_masks()
            assert masks[np.arange(self.num_envs), actions].all(), "a masked action was taken"
            self.taken.extend(actions.tolist())
            super().step_async(actions)

    env = Counted(2, ORDERED.replace(skip_forced=True))
    model = MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(256)
    assert model.num_timesteps == 256
    assert set(env.taken) == set(range(7))
    assert model.policy.action_net.out_features == 7
    assert model.policy.observation_space.shape == (33,)
    action, _ = model.predict(env.reset(), action_masks=np.stack(env.env_method("action_masks")), deterministic=True)
    assert (action > 0).all(), "at the start there is nothing to decode"


def test_masks_as_sb3_contrib_asks_for_them() -> None:
    env = SB3VecEnv(3, SMALL)
    env.reset()
    assert is_masking_supported(env)
    np.testing.assert_array_equal(get_action_masks(env), [[False, True]] * 3)
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[2]), [[False, True]])
    np.testing.assert_array_equal(env.get_attr("action_masks", indices=1)[0](), [False, True])


def test_what_copies_have() -> None:
    env = SB3VecEnv(2, [SMALL, SMALL.replace(queue="shared")])
    assert [scenario.queue for scenario in env.get_attr("scenario")] == ["client", "shared"]
    assert env.env_is_wrapped(Monitor) == [True, True], "it does what Monitor does"
    assert env.env_is_wrapped(TimeLimit, 1) == [False]
    assert env.render_mode is None
    for call in (lambda: env.get_attr("simulator"), lambda: env.set_attr("scenario", 1), lambda: env.env_method("go")):
        with pytest.raises(AttributeError, match=r"scenario|simulator|go"):
            call()


def test_options_and_bad_input() -> None:
    env = SB3VecEnv(2, SMALL)
    with pytest.raises(EpisodeOverError, match="not begun"):
        env.step(np.zeros(2, int))
    env.set_options({"case": 4})
    env.reset()
    assert env.reset_infos == [{"case": 4}] * 2
    env.set_options([{"case": 4}, {}])
    with pytest.raises(ConfigError, match="a 'case' for every copy"):
        env.reset()
    with pytest.raises(InvalidActionError, match="shape"):
        env.step(np.zeros(3, int))
    env.close()
    with pytest.raises(EpisodeOverError, match="closed"):
        env.step(np.zeros(2, int))
