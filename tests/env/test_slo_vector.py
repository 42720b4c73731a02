"""The vector environment with SLOs: each copy is a single environment, whatever the SLOs beside it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from comparing import assert_same
from test_vector import play_both, synchronous

from llmsched_env.errors import ConfigError, InvalidActionError
from llmsched_env.vector_env import LLMSchedVectorEnv

WITH_SLO: dict[str, dict[str, Any]] = {
    "SLOs": {},
    "late last": {"order": "late_last"},
    "late last by length, known": {"order": "late_last_shortest", "lengths": "known", "skip_forced": True},
    "longest first, horizon": {"order": "longest_first", "max_iterations": 150, "reward": "latency"},
    "twice the load": {"load": 1.8, "num_requests": 70, "uncounted_share": 0.0},
    "its own times": {"load": None, "num_requests": 12, "ttft_s": 0.8, "reward": "makespan"},
}

ORDERED: dict[str, dict[str, Any]] = {
    "orders": {},
    "orders, skipping": {"skip_forced": True, "lengths": "known", "predictor": None},
    "orders, horizon": {"max_iterations": 120, "load": 1.5, "num_requests": 55},
    "orders, nothing known": {"lengths": "hidden", "predictor": None, "num_clients": 9, "reward": "excess"},
}


@pytest.mark.parametrize("name", [*WITH_SLO, *ORDERED])
def test_each_copy_with_slos_is_a_single_environment(with_slo, ordered, name):
    scenario = with_slo.replace(**WITH_SLO[name]) if name in WITH_SLO else ordered.replace(**ORDERED[name])
    native, reference = LLMSchedVectorEnv(3, scenario), synchronous([scenario] * 3)
    assert native.single_observation_space == reference.single_observation_space
    assert native.single_action_space == reference.single_action_space
    assert native.single_observation_space.shape == (33,)
    assert play_both(native, reference, 700) >= 3


@pytest.mark.parametrize("kind", ["SLO", "ordered"])
def test_copies_of_different_slos(with_slo, ordered, kind):
    # Orders by length keep sets of ranks, others do not: a copy that goes from one to the other must follow.
    base, variants = (with_slo, WITH_SLO) if kind == "SLO" else (ordered, ORDERED)
    scenarios = [base.replace(**changes) for changes in variants.values()]
    native = LLMSchedVectorEnv(len(scenarios), scenarios, threads=2)
    assert play_both(native, synchronous(scenarios), 700) >= len(scenarios)
    native.close()


def test_orders_are_masked_alike(ordered):
    env = LLMSchedVectorEnv(4, ordered)
    _, infos = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(200):
        masks = env.action_masks()
        assert masks.shape == (4, 7)
        np.testing.assert_array_equal(masks, infos["action_mask"].astype(bool))
        assert (masks[:, 1:] == masks[:, 1:2]).all()
        infos = env.step(np.where(masks[:, 1], (1 - masks[:, 0] * rng.integers(0, 2, 4)) * rng.integers(1, 7, 4), 0))[
            -1
        ]
        assert not infos["invalid_actions"].any()
    for outside in (7, -1):
        with pytest.raises(InvalidActionError, match=rf"action {outside} of copy 3 .*Discrete\(7\): 0 is decode, 1 is"):
            env.step(np.array([0, 1, 6, outside]))


def test_copies_with_slos_pickled_in_the_middle(with_slo, ordered):
    for scenarios in ([with_slo, with_slo.replace(order="longest_first")], [ordered] * 2):
        env = LLMSchedVectorEnv(2, scenarios, threads=2)
        env.reset(seed=4)
        rng = np.random.default_rng(0)
        for _ in range(60):
            env.step(rng.integers(0, env.single_action_space.n, 2))
        twin, ended = pickle.loads(pickle.dumps(env)), 0
        for _ in range(400):
            actions = rng.integers(0, env.single_action_space.n, 2)
            result = env.step(actions)
            assert_same(twin.step(actions), result)
            ended += int(result[2].sum())
        assert ended >= 2, "no copy began anew after it was pickled"
        env.close()
        twin.close()


def test_scenarios_of_different_sizes(small, with_slo, ordered):
    for scenarios, words in (
        ([small, with_slo], "2 actions and 26 features and 2 actions and 33 features"),
        ([with_slo, ordered], "2 actions and 33 features and 7 actions and 33 features"),
        ([small, with_slo, ordered], "26 features and .* and 7 actions"),
    ):
        with pytest.raises(ConfigError, match=f"{words}.* do not go side by side: give all of them SLOs"):
            LLMSchedVectorEnv(len(scenarios), scenarios)
