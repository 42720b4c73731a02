"""The environments whose iterations do not last what they say: each copy of the vector environment is a single one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from test_vector import play_both, synchronous

from llmsched_env import make_scenario
from llmsched_env.vector_env import LLMSchedVectorEnv

SMALL = make_scenario("LLMSched/Jitter-v0", num_clients=24, num_requests=60)

JITTER: dict[str, dict[str, Any]] = {
    "as it is": {},
    "noise only, skipping": {"straggler_probability": 0.0, "straggler_factor": 1.0, "skip_forced": True},
    "stragglers only": {"noise_sd": 0.0, "straggler_probability": 0.1, "reward": "latency"},
    "another belief": {"believed_cost": "qwen3-8b-h200", "prefill_token_cap": 2048, "max_iterations": 400},
    "in memory": {"kv_budget_tokens": 4_000, "kv_swap_gb_per_s": 25.0},
    "quiet": {"noise_sd": 0.0, "straggler_probability": 0.0, "straggler_factor": 1.0},
}


@pytest.mark.parametrize("name", JITTER)
def test_each_copy_is_a_single_environment(name):
    scenario = SMALL.replace(**JITTER[name])
    native, reference = LLMSchedVectorEnv(3, scenario), synchronous([scenario] * 3)
    assert native.single_observation_space == reference.single_observation_space
    assert play_both(native, reference, 2500) >= 2


def test_copies_of_different_worlds():
    scenarios = [SMALL.replace(**changes) for name, changes in JITTER.items() if name != "in memory"]
    native = LLMSchedVectorEnv(len(scenarios), scenarios, threads=2)
    assert play_both(native, synchronous(scenarios), 2500) >= len(scenarios)
    native.close()


def test_the_same_case_has_the_same_noise_under_every_seed():
    ends = []
    for seed in (1, 2):
        env = gymnasium.make("LLMSched/Jitter-v0", num_clients=24, num_requests=60)
        _, info = env.reset(seed=seed, options={"case": 4})
        over, total = False, 0.0
        while not over:
            _, reward, over, _, info = env.step(int(info["action_mask"][1]))
            total += float(reward)
        ends.append(info["makespan_s"])
        assert total == pytest.approx(info["goodput"] - 1)
    assert ends[0] == ends[1]


def test_the_observation_says_what_is_believed():
    """Before the first iteration nothing has happened: noise and truth are not to be seen."""
    quiet = SMALL.replace(**JITTER["quiet"])
    first = [LLMSchedVectorEnv(1, one).reset(seed=0)[0] for one in (SMALL, quiet)]
    assert np.array_equal(first[0], first[1])
