"""The environment in which caches move: each copy of the vector environment is a single one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from test_vector import play_both, synchronous

from llmsched_env import make_scenario
from llmsched_env.cases import build_problem
from llmsched_env.engine.features import FEATURES
from llmsched_env.vector_env import LLMSchedVectorEnv

SMALL = make_scenario(
    "LLMSched/Migration-v0", num_clients=24, num_requests=60, assignment="lpt", lengths="predicted", predictor="noisy"
)

MOVES: dict[str, dict[str, Any]] = {
    "running": {},
    "recomputed, skipping": {"move_gb_per_s": None, "skip_forced": True},
    "waiting": {"steal": "waiting", "cached_share": 0.9, "reward": "latency"},
    "cheaper": {"steal": "cheaper", "cached_share": 0.9, "move_gb_per_s": 12.5},
    "no stealing, horizon": {"stealing": False, "steal": "waiting", "move_gb_per_s": None, "max_iterations": 300},
}


@pytest.mark.parametrize("name", MOVES)
def test_each_copy_is_a_single_environment(name):
    scenario = SMALL.replace(**MOVES[name])
    native, reference = LLMSchedVectorEnv(3, scenario), synchronous([scenario] * 3)
    assert native.single_observation_space == reference.single_observation_space
    assert native.single_observation_space.shape == (len(FEATURES),)
    assert native.single_action_space == reference.single_action_space == gymnasium.spaces.Discrete(2)
    assert play_both(native, reference, 2500) >= 2


def test_copies_with_and_without_moves_go_side_by_side():
    scenarios = [SMALL.replace(**changes) for changes in MOVES.values()]
    scenarios.append(make_scenario("LLMSched/GSM8K-v0", num_clients=24, num_requests=60, assignment="lpt"))
    native = LLMSchedVectorEnv(len(scenarios), scenarios, threads=2)
    assert play_both(native, synchronous(scenarios), 2500) >= len(scenarios)
    native.close()


@pytest.mark.parametrize("name", MOVES)
def test_metrics_at_the_end(name):
    pytest.importorskip("PIL", reason="pillow is an extra")
    scenario = SMALL.replace(**MOVES[name])
    env = gymnasium.make("LLMSched/Migration-v0", **{**arguments(scenario), "split": "test"}, render_mode="rgb_array")
    _, info = env.reset(options={"case": 0})
    over = cut = False
    while not (over or cut):
        _, reward, over, cut, info = env.step(int(info["action_mask"][1]))
        assert reward <= 0
    assert env.render().ndim == 3
    moved = scenario.move_gb_per_s is not None
    assert scenario.steal != "running" or info["migrations"] > 0
    assert scenario.steal != "waiting" or info["migrations"] == 0
    assert (info["moved_tokens"] > 0) == moved
    assert (info["transfer_s"] > 0) == moved
    assert (info["recomputed_tokens"] > 0) == (scenario.stealing and not moved)
    token_ns = env.unwrapped.simulator.episode.queues.migration.token_ns
    assert info["transfer_s"] == pytest.approx(info["moved_tokens"] * token_ns / 1e9)
    if over:
        assert info["gap_to_bound"] >= 0


def arguments(scenario):
    usual = make_scenario("LLMSched/Migration-v0")
    names = ("num_clients", "num_requests", "assignment", "lengths", "predictor", "stealing", "steal", "cached_share",
             "move_gb_per_s", "reward", "skip_forced", "max_iterations")  # fmt: skip
    return {name: getattr(scenario, name) for name in names if getattr(scenario, name) != getattr(usual, name)}


def test_the_bound_counts_what_has_to_be_computed():
    made = {share: build_problem(SMALL.replace(cached_share=share), 0) for share in (0.0, 0.5, 0.9)}
    for bounds in ({share: one.lb1_ns for share, one in made.items()}, {s: one.bound_ns for s, one in made.items()}):
        assert bounds[0.0] > bounds[0.5] > bounds[0.9]
    bare = build_problem(SMALL.replace(cached_share=0.0, steal="waiting", move_gb_per_s=None), 0)
    assert bare.lb1_ns == made[0.0].lb1_ns
    assert bare.bound_ns > made[0.0].bound_ns, "a request that changes clients may be split between them"
    assert "migration" not in bare.options
    assert np.isfinite(bounds[0.9])
