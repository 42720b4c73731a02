"""The environments with mixed iterations: each copy of the vector environment is a single one."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest
from test_vector import play_both, synchronous

from llmsched_env import make_scenario
from llmsched_env.engine.features import MIXED_FEATURES
from llmsched_env.errors import ConfigError, InvalidActionError
from llmsched_env.vector_env import LLMSchedVectorEnv

SMALL = make_scenario("LLMSched/Mixed-v0", num_clients=12, num_requests=40, mixed_tokens=64)

MIXED: dict[str, dict[str, Any]] = {
    "budget": {},
    "chunk, skipping": {"mixed_counts_active": False, "skip_forced": True},
    "whole prompts": {"mixed_whole_prompts": True, "reward": "latency"},
    "overlap": {"mixed_cost": "overlap", "load": 0.5},
    "late last": {"order": "late_last", "lengths": "known"},
    "horizon": {"max_iterations": 300, "mixed_tokens": 7},
}


@pytest.mark.parametrize("name", MIXED)
def test_each_copy_is_a_single_environment(name):
    scenario = SMALL.replace(**MIXED[name])
    native, reference = LLMSchedVectorEnv(3, scenario), synchronous([scenario] * 3)
    assert native.single_observation_space == reference.single_observation_space
    assert native.single_observation_space.shape == (38,)
    assert native.single_action_space == reference.single_action_space == gymnasium.spaces.Discrete(3)
    assert play_both(native, reference, 2500) >= 2


def test_copies_with_and_without_mixed_iterations_do_not_mix():
    with pytest.raises(ConfigError, match="choose_cap and mixed_tokens, or none"):
        LLMSchedVectorEnv(2, [SMALL, make_scenario("LLMSched/Serving-v0")])


def test_the_features_say_what_would_be_read():
    env = gymnasium.make("LLMSched/Mixed-v0", split="test", num_clients=12, num_requests=60, mixed_tokens=50)
    observation, info = env.reset(options={"case": 0})
    names = [feature.name for feature in MIXED_FEATURES]
    view, over, reading, chunked = env.unwrapped.simulator.view, False, 0, 0
    while not over:
        said = dict(zip(names, observation[-len(names) :].tolist(), strict=True))
        assert said["chunk"] == pytest.approx(view.chunk_tokens / 50)
        assert said["reading"] == pytest.approx(view.reading_tokens / (view.reading_tokens + 50))
        decode_ns = view.decode_ns if view.active else 0
        if view.chunk_tokens:
            assert said["mixed_price"] == pytest.approx(view.mixed_ns / (view.mixed_ns + decode_ns))
            both = view.mixed_ns + view.prefill_ns + decode_ns
            assert said["mixed_saving"] == pytest.approx(view.mixed_ns / both)
            assert said["chunk_share"] == pytest.approx(view.chunk_tokens / view.batch_tokens)
            chunked += said["chunk_share"] < 1
        else:
            assert said["mixed_price"] == said["mixed_saving"] == said["chunk_share"] == 0
        reading += said["reading"] > 0
        observation, _, over, _, info = env.step(2 if info["action_mask"][2] else 0)
    assert reading > 10
    assert chunked > 10
    assert info["goodput"] > 0


def test_an_action_beyond_the_third_is_refused():
    env = gymnasium.make("LLMSched/Mixed-v0", num_requests=20, num_clients=4).unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=r"0 is decode, 1 is prefill, 2 is mixed"):
        env.step(3)
