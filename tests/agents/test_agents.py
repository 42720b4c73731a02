from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from agents.libraries import ALGORITHMS
from agents.policy import SB3Policy
from agents.training import Training, train
from baselines.registry import entry
from llmsched_env import ENVIRONMENTS
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, FileFormatError, MissingExtraError, PathError, UnknownNameError
from llmsched_env.evaluation import play
from llmsched_env.instances import instance
from llmsched_env.policy import Start, features
from llmsched_env.simulator import Simulator

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]

SMALL = {"num_clients": 4, "num_requests": 12, "queue": "shared"}


def small(out, algo="ppo", **changes):
    return Training(
        **{
            "algo": algo,
            "scenario": "LLMSched/GSM8K-Smooth-v0",
            "timesteps": 512,
            "seed": 3,
            "out": out,
            "copies": 2,
            "validation_cases": 2,
            "arguments": SMALL,
            **changes,
        }
    )


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_train_writes_a_model_that_acts_as_it_did(tmp_path, algo):
    training = small(tmp_path / "run", algo)
    rivals = [entry(name, training.validation) for name in ("lagrangian", "prefill_first")]
    record = train(training, rivals, command="the command")

    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written == json.loads(json.dumps(record))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["model.zip", "run.json"]
    assert written["command"] == "the command"
    assert 512 <= written["timesteps_done"] <= 520
    assert written["config"]["seed"] == 3
    assert written["scenario"]["split"] == "validation"
    policies = written["validation"]["policies"]
    assert list(policies) == [algo, f"{algo}_sampled", "lagrangian", "prefill_first"]
    assert policies[algo]["kind"] == "agent"
    for rival in ("lagrangian", "prefill_first"):
        low, high = written["validation"]["agent_minus_rival"][algo][rival]["ci95"]
        mean = written["validation"]["agent_minus_rival"][algo][rival]["mean"]
        assert low <= mean <= high
        assert mean == pytest.approx(policies[algo]["makespan_s"]["mean"] - policies[rival]["makespan_s"]["mean"])

    policy = SB3Policy.load(tmp_path / "run" / "model.zip", algo)
    simulator = Simulator(instance(Scenario(workload="gsm8k-smooth", **SMALL), 0))
    choices = 0
    while not simulator.done:
        action = int(simulator.can_prefill)
        if simulator.can_decode and simulator.can_prefill:
            choices += 1
            action = policy.act(simulator.view)
            observation = features(simulator.view)
            assert action == int(policy._model.predict(observation, deterministic=True)[0])
            action = choices % 2  # visit more than one policy would
        simulator.step(action)
    assert choices > 5, "no choice was compared"


def test_sampled_actions_repeat_with_the_seed_and_vary_without(tmp_path):
    train(small(tmp_path / "run"))
    model = SB3Policy.load(tmp_path / "run" / "model.zip", "ppo")._model
    scenario = Scenario(workload="gsm8k-smooth", **SMALL)
    view = Simulator(instance(scenario, 0)).view
    drawn = []
    for seed in (1, 1, 2):
        policy = SB3Policy(model, sampled=True)
        policy.reset(Start(scenario, 100.0, seed))
        drawn.append([policy.act(view) for _ in range(40)])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert set(drawn[0]) == {0, 1}, "nothing was drawn"


def test_the_same_seed_trains_the_same_agent(tmp_path):
    first, second = (train(small(tmp_path / name))["validation"] for name in ("a", "b"))
    assert first == second


def test_a_folder_with_a_run_is_left_alone(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run already: choose another folder"):
        train(small(tmp_path))
    assert (tmp_path / "run.json").read_text() == "{}"


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match=r"cannot write .*file"):
        train(small(tmp_path / "file"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algo": "pp0"}, r"unknown algorithm 'pp0'\. Did you mean 'ppo'"),
        ({"scenario": "LLMSched/GSM8K"}, r"unknown scenario .* Did you mean 'LLMSched/GSM8K-v0'"),
        ({"arguments": {"clients": 3}}, r"unknown scenario argument 'clients'"),
        ({"timesteps": 0}, r"timesteps = 0 is out of range: it lies in \[1, "),
        ({"copies": 0}, r"copies = 0 is out of range"),
        ({"validation_cases": 0}, r"validation_cases = 0 is out of range"),
        ({"seed": -1}, r"seed = -1 is out of range"),
    ],
)
def test_what_cannot_be_trained(tmp_path, changes, words):
    with pytest.raises((UnknownNameError, ConfigError), match=words):
        small(tmp_path, **changes)


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MissingExtraError, match=r"needs torch and stable_baselines3 .* install the extra 'agents'"):
        small(tmp_path)


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(PathError, match="no such file"):
        SB3Policy.load(tmp_path / "absent.zip", "ppo")
    damaged = tmp_path / "model.zip"
    damaged.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(FileFormatError, match="not a saved ppo model"):
        SB3Policy.load(damaged, "ppo")


def test_a_model_for_other_observations():
    class Other:
        observation_space = np.zeros((7,))

        def predict(self, observation, *, deterministic=False):
            raise NotImplementedError

    with pytest.raises(ConfigError, match=r"observations of shape \(7,\)"):
        SB3Policy(Other(), "other")


def test_command_line(tmp_path, capsys):
    import train as command

    small_words = "--scenario LLMSched/GSM8K-Smooth-v0 --timesteps 64 --copies 2 --cases 2 --clients 4 --requests 12"
    words = [*small_words.split(), "--queue", "shared", "--out", str(tmp_path / "run")]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    assert "lagrangian_tuned" in said
    assert (tmp_path / "run" / "model.zip").stat().st_size > 1000
    assert command.main(["--timesteps", "0", "--out", str(tmp_path / "none")]) == 2
    assert "timesteps = 0" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


class FirstFeasible:
    """A model that takes masks: the last action that is feasible."""

    def __init__(self, features, actions):
        self.observation_space, self.action_space = Box(0, 1, (features,)), Discrete(actions)
        self.masks = []

    def predict(self, observation, *, deterministic=False, action_masks=None):
        assert self.observation_space.contains(observation)
        self.masks.append(action_masks)
        return int(np.flatnonzero(action_masks)[-1]), None


ORDERED = Scenario(**{**ENVIRONMENTS["LLMSched/ServingOrder-v0"], "num_clients": 4, "num_requests": 30})


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
        (26, 7, r"'fake' was trained on observations of shape \(26,\), this scenario gives \(33,\).* with promises"),
    ],
)
def test_an_agent_of_another_space_is_refused(features, actions, words):
    with pytest.raises(ConfigError, match=words):
        play(SB3Policy(FirstFeasible(features, actions), "fake"), ORDERED, 0)
