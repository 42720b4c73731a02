"""Environments in which mechanisms meet: objectives, a KV budget and mixed iterations at once."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from test_vector import play_both, synchronous

from llmsched_env.config import Scenario
from llmsched_env.engine import codes
from llmsched_env.engine.features import TABLES, feature_table, features_of
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError
from llmsched_env.vector_env import LLMSchedVectorEnv
from llmsched_env.workload import GammaWorkload, ServingWorkload

SHORT = GammaWorkload(name="short", num_requests=20, output_mean_tokens=40.0, output_sd_tokens=20.0)
SMALL = Scenario(
    ServingWorkload("short", SHORT, num_requests=20), load=1.1, num_clients=12, queue="shared", order="fcfs"
)
SLO: dict[str, Any] = {"ttft_s": 0.2, "tpot_s": 0.025}
KV: dict[str, Any] = {"kv_budget_tokens": 700, "kv_rule": "vllm_v1", "kv_block_tokens": 16}
MIXED: dict[str, Any] = {"mixed_tokens": 16}
ALL = SMALL.replace(**SLO, **KV, **MIXED)

TOGETHER = {
    "all": ALL,
    "all, room is kept": ALL.replace(kv_rule="keep_growth", kv_block_tokens=1),
    "KV budget and mixed iterations": SMALL.replace(**KV, **MIXED),
    "caps": SMALL.replace(**KV, **MIXED, choose_cap=True),
    "orders, skipping": ALL.replace(choose_order=True, skip_forced=True),
    "noise": ALL.replace(noise_sd=0.3, straggler_probability=0.05, straggler_factor=3.0),
    "first decodes": ALL.replace(cost=replace(ALL.cost_model, first_decode_ns=10**7), noise_sd=0.3),
    "first decodes, shown": SMALL.replace(**SLO, cost=replace(ALL.cost_model, first_decode_ns=10**7), skip_forced=True),
    "client queues with objectives": SMALL.replace(**SLO, queue="client", assignment="lpt"),
}


@pytest.mark.parametrize(("slo", "memory", "mixed"), [*product((False, True), repeat=3)])
def test_every_observation(slo, memory, mixed):
    scenario = SMALL.replace(**(SLO if slo else {}), **(KV if memory else {}), **(MIXED if mixed else {}))
    env = LLMSchedEnv(scenario)
    assert features_of(scenario) == feature_table(slo, memory, mixed)
    assert env.observation_space.shape == (len(feature_table(slo, memory, mixed)),)
    rng, over = np.random.default_rng(0), False
    observation, _ = env.reset(seed=0)
    while not over:
        assert env.observation_space.contains(observation)
        observation, _, over, _, _ = env.step(int(rng.integers(env.action_space.n)))


def test_no_two_observations_are_as_long():
    """A model of another library says how long its observation is and no more: `agents.export` goes by that."""
    assert len({len(table) for table in TABLES}) == len(set(TABLES)) == 8


@pytest.mark.parametrize("name", TOGETHER)
def test_each_copy_is_a_single_environment(name):
    native, reference = LLMSchedVectorEnv(3, TOGETHER[name]), synchronous([TOGETHER[name]] * 3)
    assert play_both(native, reference, 700) >= 3


@pytest.mark.parametrize("name", ["all", "caps", "orders, skipping"])
def test_actions_are_masked_by_their_kind(name):
    env = LLMSchedEnv(TOGETHER[name].replace(num_requests=40))
    _, info = env.reset(seed=0)
    kinds = np.asarray(env.simulator.problem.data.kinds)
    assert set(kinds) == {codes.DECODE, codes.PREFILL, codes.MIXED}
    rng, over, told_apart = np.random.default_rng(0), False, 0
    while not over:
        view, mask = env.simulator.view, info["action_mask"]
        assert mask.tolist() == env.action_masks().tolist()
        feasible = (view.active > 0, view.ready > 0, view.ready > 0 or view.reading_tokens > 0)
        assert mask.tolist() == [int(feasible[kind]) for kind in kinds]
        told_apart += feasible[1] != feasible[2]
        before = info["invalid_actions"]
        feasible_actions = np.flatnonzero(mask)
        action = int(feasible_actions[-1] if rng.random() < 0.8 else rng.choice(feasible_actions))
        _, _, over, _, info = env.step(action)
        assert info["invalid_actions"] == before
    assert told_apart or name != "all", "no mixed iteration was feasible where a prefill was not"


def rereading(env):
    """Whether the recomputation of a preempted request is chunked and under way."""
    episode = env.simulator.episode
    return episode.chunked.position >= 0 and episode.kv.emitted[episode.chunked.position] > 0


@pytest.mark.parametrize("name", ["all", "all, room is kept", "KV budget and mixed iterations"])
def test_throughput_counts_the_tokens_that_were_emitted(name):
    env = LLMSchedEnv(TOGETHER[name])
    env.reset(seed=0)
    rng, over, preemptions, again = np.random.default_rng(1), False, 0, 0
    while not over:
        _, _, over, _, info = env.step(int(rng.integers(env.action_space.n)))
        emitted = int(env.simulator.emitted.sum())
        assert info["throughput_tokens_per_s"] * info["elapsed_s"] == pytest.approx(emitted)
        preemptions, again = info["preemptions"], again + rereading(env)
    assert preemptions > 0
    assert again > 0, "nobody was partly prefilled again"


def test_scenarios_with_other_actions_or_features_are_no_copies_of_one():
    for other in (SMALL.replace(**SLO, **KV), SMALL.replace(**MIXED), ALL.replace(choose_order=True)):
        with pytest.raises(ConfigError, match="do not go side by side"):
            LLMSchedVectorEnv(2, [ALL, other])
