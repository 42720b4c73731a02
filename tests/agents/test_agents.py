from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from small_runs import SMALL

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from llmsched_env import make_scenario
from llmsched_env.agents.libraries import algorithm
from llmsched_env.agents.runs import Run
from llmsched_env.agents.sb3_learner import SB3Learner
from llmsched_env.agents.sb3_policy import SB3Policy
from llmsched_env.agents.training import recorded
from llmsched_env.errors import ConfigError, FileFormatError, MissingExtraError, PathError, UnknownNameError
from llmsched_env.evaluation import play

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algo": "pp0"}, r"unknown algorithm 'pp0'\. Did you mean 'ppo'"),
        ({"scenario": "LLMSched/GSM8K"}, r"unknown scenario .* Did you mean 'LLMSched/GSM8K-v0'"),
        ({"arguments": {"clients": 3}}, r"unexpected keyword argument 'clients'"),
        ({"timesteps": -1}, r"options: timesteps = -1 is out of range: it lies in \[1, .* default, 5000000"),
        ({"copies": -1}, r"options: copies = -1 is out of range"),
        ({"evaluate_every": -1}, r"options: evaluate_every = -1 is out of range"),
        ({"validation_cases": 0}, r"validation_cases = 0 is out of range"),
        ({"seed": -1}, r"seed = -1 is out of range"),
    ],
)
def test_what_cannot_be_trained(small, changes, words):
    with pytest.raises((UnknownNameError, ConfigError), match=words):
        small(**changes)


def test_numbers_that_are_not_given_are_the_settings_own(small):
    training = small(timesteps=0, copies=0, evaluate_every=0, settings={"timesteps": 77})
    assert training.timesteps == training.settings["timesteps"] == 77
    assert training.copies == training.settings["copies"] == 64
    assert small(timesteps=5, settings={"timesteps": 77}).settings["timesteps"] == 5
    assert training.validation == training.training_scenario.replace(split="validation", skip_forced=False)


@pytest.mark.parametrize("prefix", ["", "trace:", "azure:"])
def test_a_run_finds_its_file_from_another_folder(small, tmp_path, monkeypatch, prefix):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(SMALL["workload"], tmp_path / "mine.csv")
    monkeypatch.chdir(tmp_path)
    training = small(arguments={**SMALL, "workload": f"{prefix}mine.csv"})
    assert training.arguments["workload"] == f"{prefix}{tmp_path.resolve() / 'mine.csv'}"
    Run.create(training.out, {"command": "", **training.fingerprint()})
    monkeypatch.chdir(elsewhere)
    assert recorded(training.out) == training


def test_a_workload_of_the_package_is_no_file(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").write_text("")
    assert small(arguments={"workload": "gsm8k"}).arguments == {"workload": "gsm8k"}


def test_an_agent_without_a_safe_form_says_why(small, caplog):
    learner = SB3Learner.begin(small("dqn"))
    assert learner.network() is not None
    assert not caplog.records
    for numbers in learner._model.policy.parameters():
        numbers.data.fill_(float("nan"))
    assert learner.network() is None
    assert "there is no agent.npz: the network has numbers that are not finite: its training has failed" in caplog.text


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MissingExtraError, match=r"needs torch and stable_baselines3 .* install the extra 'agents'"):
        algorithm("ppo")


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(PathError, match="no such file"):
        SB3Policy.load(tmp_path / "absent.zip", "ppo")
    damaged = tmp_path / "model.zip"
    damaged.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(FileFormatError, match="not a saved ppo model"):
        SB3Policy.load(damaged, "ppo")


def test_a_model_for_other_observations():
    class Other:
        observation_space, action_space, policy = np.zeros((7,)), Discrete(2), None

        def predict(self, observation, *, deterministic=False):
            raise NotImplementedError

    with pytest.raises(ConfigError, match=r"observations of shape \(7,\)"):
        SB3Policy(Other(), "other")


class FirstFeasible:
    """A model that takes masks: the last action that is feasible."""

    policy = None

    def __init__(self, features, actions):
        self.observation_space, self.action_space = Box(0, 1, (features,)), Discrete(actions)
        self.masks = []

    def predict(self, observation, *, deterministic=False, action_masks=None):
        assert all(self.observation_space.contains(one) for one in observation)
        self.masks.extend(action_masks)
        return np.array([np.flatnonzero(mask)[-1] for mask in action_masks]), None


ORDERED = make_scenario("LLMSched/ServingOrder-v0", num_clients=4, num_requests=30)


def test_an_agent_that_takes_masks_is_given_them():
    agent = SB3Policy(FirstFeasible(33, 7), "fake")
    episode = play(agent, ORDERED, 0)
    assert episode.done
    assert episode.totals.invalid_actions == 0
    masks = np.array(agent._model.masks)
    assert masks.shape[1] == 7
    assert masks[:, 1:].all(), "it is asked only where a prefill is feasible"
    assert masks[:, 0].any()


@pytest.mark.parametrize(
    ("features", "actions", "words"),
    [
        (33, 2, "'fake' has learnt 2 actions, this scenario has 7: .* choose_order=True"),
        (26, 7, r"'fake' was trained on observations of shape \(26,\), this scenario gives \(33,\).* with SLOs"),
    ],
)
def test_an_agent_of_another_space_is_refused(features, actions, words):
    with pytest.raises(ConfigError, match=words):
        play(SB3Policy(FirstFeasible(features, actions), "fake"), ORDERED, 0)


def test_what_has_no_distribution_is_not_drawn_from():
    class Model:
        observation_space, action_space, policy = np.zeros((26,)), type("Space", (), {"n": 2}), None

        def predict(self, observation, *, deterministic=False):
            raise AssertionError

    with pytest.raises(ConfigError, match=r"agent 'dqn' has learnt no distribution to draw from: .*deterministic=True"):
        SB3Policy(Model(), "dqn", deterministic=False)
    with pytest.raises(ConfigError, match="deterministic = 'no' is neither True nor False"):
        SB3Policy(Model(), "dqn", deterministic="no")
