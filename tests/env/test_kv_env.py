"""The environments where the KV cache is a budget: each copy of the vector environment is a single one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from test_vector import play_both, synchronous

from llmsched_env import make_scenario
from llmsched_env.engine.features import MEMORY_FEATURES
from llmsched_env.errors import ConfigError, InvalidActionError
from llmsched_env.vector_env import LLMSchedVectorEnv

SMALL = make_scenario("LLMSched/KVMemory-v0", num_clients=24, num_requests=40, kv_budget_tokens=4_000)

MEMORY: dict[str, dict[str, Any]] = {
    "caps": {},
    "one token a block, skipping": {"kv_block_tokens": 1, "skip_forced": True},
    "swapping": {"kv_swap_gb_per_s": 25.0, "reward": "latency"},
    "set aside": {"kv_admission": "reserve", "kv_reserve_tokens": 300, "num_clients": 40},
    "vLLM V0": {"kv_rule": "vllm_v0", "kv_watermark": 0.05, "kv_budget_tokens": 3_000},
    "vLLM V1": {"kv_rule": "vllm_v1", "kv_budget_tokens": 3_000, "reward": "latency"},
    "predicted": {"kv_admission": "predicted", "lengths": "known", "order": "shortest_first"},
    "shortest gives way": {"kv_victim": "least_estimate", "lengths": "known", "kv_budget_tokens": 3_000},
    "another budget, horizon": {"kv_budget_tokens": 1_500, "max_iterations": 400, "kv_watermark": 0.05},
}


@pytest.mark.parametrize("name", MEMORY)
def test_each_copy_is_a_single_environment(name):
    scenario = SMALL.replace(**MEMORY[name])
    native, reference = LLMSchedVectorEnv(3, scenario), synchronous([scenario] * 3)
    assert native.single_observation_space == reference.single_observation_space
    assert native.single_observation_space.shape == (32,)
    assert native.single_action_space == reference.single_action_space == gymnasium.spaces.Discrete(9)
    assert play_both(native, reference, 2500) >= 2


def test_copies_of_different_budgets():
    scenarios = [SMALL.replace(**changes) for changes in MEMORY.values()]
    native = LLMSchedVectorEnv(len(scenarios), scenarios, threads=2)
    assert play_both(native, synchronous(scenarios), 2500) >= len(scenarios)
    native.close()


def test_copies_with_and_without_a_budget_do_not_mix():
    with pytest.raises(ConfigError, match="go side by side: give all of them SLOs, a KV budget"):
        LLMSchedVectorEnv(2, [SMALL.replace(choose_cap=False), make_scenario("LLMSched/GSM8K-Blind-v0")])


def test_the_features_say_what_the_cache_holds():
    env = gymnasium.make("LLMSched/KVMemory-v0", split="test", num_clients=24, num_requests=60, kv_budget_tokens=3_000)
    observation, info = env.reset(options={"case": 0})
    names = [feature.name for feature in MEMORY_FEATURES]
    view = env.unwrapped.simulator.view
    fullest, preempted, over = 0.0, 0.0, False
    while not over:
        said = dict(zip(names, observation[-len(names) :].tolist(), strict=True))
        assert said["kv_used"] == pytest.approx(view.kv_used / 3_000)
        assert said["preempted"] == pytest.approx(view.preempted / (view.preempted + 24))
        assert (said["kv_pace"] == 0) == (view.kv_growth == 0)
        fullest, preempted = max(fullest, said["kv_used"]), max(preempted, said["preempted"])
        observation, _, over, _, info = env.step(int(info["action_mask"][1]))
    assert fullest > 0.95
    assert preempted > 0
    assert info["kv_peak"] >= fullest - 1e-6
    assert info["preemptions"] > 0


def test_actions_are_named():
    env = gymnasium.make("LLMSched/KVMemory-v0", num_clients=24, num_requests=60)
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match="2 is prefill up to 7/8 of the clients"):
        env.unwrapped.step(9)


def test_smaller_caps_keep_fewer_clients_active():
    most = {}
    for action in (1, 4, 8):
        env = gymnasium.make("LLMSched/KVMemory-v0", num_clients=24, num_requests=60, kv_budget_tokens=20_000)
        _, info = env.reset(options={"case": 0})
        active, over = [], False
        while not over:
            can_prefill = info["action_mask"][1] and env.unwrapped.simulator.view.active < 3 * (9 - action)
            _, _, over, _, info = env.step(action if can_prefill else 0)
            active.append(int(env.unwrapped.simulator.view.active))
        most[action] = max(active)
    assert most == {1: 24, 4: 15, 8: 3}
    assert np.isfinite(info["makespan_s"])
