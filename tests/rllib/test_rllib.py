"""The environment under RLlib, by way of the example. ``make test-rllib`` runs this in an environment of its own."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from llmsched_env import Scenario
from llmsched_env.cases import build_problem
from llmsched_env.evaluation import evaluate
from llmsched_env.policy import EpisodeContext
from llmsched_env.simulator import Simulator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the markers of conftest do not reach an import
    # A plain ray has the module, but not what it imports.
    pytest.importorskip("ray.rllib", reason="RLlib is not installed: make test-rllib", exc_type=ImportError)
    import ray
    import torch

    from examples import rllib_ppo as example

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "LLMSched/GSM8K-v0"
SMALL = {"num_clients": 20, "num_requests": 100, "assignment": "lpt"}
SCENARIO = Scenario(**SMALL, split="validation")


@pytest.fixture(scope="module", autouse=True)
def runtime():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()
    torch.set_num_threads(before)


@pytest.fixture
def build():
    """``build(seed)``: an algorithm on the small scenario."""
    built = []

    def make(seed):
        built.append(example.configured(ENVIRONMENT, SMALL, seed, batch=512).build_algo())
        return built[-1]

    yield make
    for algorithm in built:
        algorithm.stop()


def sampled(algorithm):
    """One fragment of both copies: cases, observations, actions and rewards."""
    episodes = algorithm.env_runner.sample(num_timesteps=200)
    cases = [int(episode.get_infos(0)["case"]) for episode in episodes]
    columns = [
        np.concatenate([getattr(episode, f"get_{name}")() for episode in episodes])
        for name in ("observations", "actions", "rewards")
    ]
    return cases, *columns


def choices(scenario, case, policy):
    """What ``policy`` does at each choice of an episode that alternates: more than it would see of its own."""
    simulator, taken = Simulator(build_problem(scenario, case)), []
    policy.reset(EpisodeContext(scenario, 100.0, seed=7))
    while not simulator.done:
        action = int(simulator.can_prefill)
        if simulator.can_decode and simulator.can_prefill:
            taken.append(policy.act(simulator.view))
            action = len(taken) % 2
        simulator.step(action)
    assert len(taken) > 20, "hardly a choice was compared"
    return taken


def test_two_iterations_are_finite_and_the_checkpoint_acts_as_the_agent_did(build, tmp_path):
    algorithm = build(0)
    rows = list(example.train(algorithm, 2))
    assert [row["decisions"] for row in rows] == sorted(row["decisions"] for row in rows)
    assert 1024 <= rows[-1]["decisions"] <= 1030
    for row in rows:
        assert all(math.isfinite(value) for value in row.values()), row
        assert row["episode_return_mean"] < 0 < row["gap_to_bound"]

    example.save(algorithm, tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    for drawn in (True, False):
        agent = example.RLlibPolicy(algorithm.get_module(), sampled=drawn)
        loaded = example.RLlibPolicy.load(tmp_path / "checkpoint", sampled=drawn)
        assert choices(SCENARIO, 0, loaded) == choices(SCENARIO, 0, agent)
        assert (set(choices(SCENARIO, 0, agent)) == {0, 1}) or not drawn, "nothing was drawn"
    columns = evaluate(loaded, SCENARIO, 2).columns
    assert np.isfinite(columns["makespan_s"]).all()


def test_rollouts_of_rllib_are_episodes_of_the_environment(build):
    """The metrics of the last info and the sum of rewards belong to the case of the first info."""
    episodes = build(0).env_runner.sample(num_episodes=2)
    assert len(episodes) >= 2
    for episode in episodes:
        case, end = int(episode.get_infos(0)["case"]), episode.get_infos(-1)
        env = gymnasium.make(ENVIRONMENT, **SMALL, skip_forced=True)
        observation, _ = env.reset(options={"case": case})
        total = 0.0
        for action, expected in zip(episode.get_actions(), episode.get_observations()[:-1], strict=True):
            np.testing.assert_array_equal(observation, expected)
            observation, reward, _, _, info = env.step(int(action))
            total += reward
        assert end["makespan_s"] == info["makespan_s"]
        assert episode.get_return() == pytest.approx(total)


def test_a_seed_repeats_the_first_sample_and_the_first_iterations(build):
    first, again, other = (sampled(build(seed)) for seed in (3, 3, 4))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert first[0] != other[0], "every seed draws the same cases"
    assert list(example.train(build(3), 2)) == list(example.train(build(3), 2))


def test_command_line(tmp_path):
    words = ["--iterations", "1", "--clients", "20", "--requests", "100", "--cases", "2", "--seed", "1"]
    command = [sys.executable, str(ROOT / "examples" / "rllib_ppo.py"), *words, "--out", str(tmp_path / "run")]
    run = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run(command, check=False, timeout=1800, **run)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  1  decisions 4\d\d\d  episode_return_mean -0\.\d+  makespan_s [\d.]+", done.stdout, re.M)
    for name in ("lagrangian", "sampled", "most likely"):
        assert re.search(rf"^ *{name}  makespan_s [\d.]+  gap_to_bound 0\.\d+", done.stdout, re.M)
    assert (tmp_path / "run" / "checkpoint" / "rllib_checkpoint.json").is_file()

    done = subprocess.run(command, check=False, timeout=1800, **run)
    assert done.returncode == 2
    assert "exists already: choose another --out" in done.stderr
