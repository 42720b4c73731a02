"""Models of the libraries, exported, take the actions that they took."""

from __future__ import annotations

import json

import numpy as np
import pytest
from networks import SCENARIOS, Asked, agent_for, history, scores, views

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import sb3_contrib as contrib
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize

from llmsched_env.agents import load_agent
from llmsched_env.agents.agent import Origin
from llmsched_env.agents.export import export, main
from llmsched_env.agents.files import AgentFile
from llmsched_env.agents.sb3_policy import SB3Policy
from llmsched_env.agents.vec_env import SB3VecEnv
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.policy import EpisodeContext

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small gain nothing from two, and wait for them on a busy machine
    yield
    torch.set_num_threads(before)


MODELS = {
    "ppo": (sb3.PPO, "MlpPolicy", {}),
    "ppo relu": (sb3.PPO, "MlpPolicy", {"activation_fn": torch.nn.ReLU, "net_arch": [32, 16, 8]}),
    "ppo linear": (sb3.PPO, "MlpPolicy", {"net_arch": []}),
    "a2c": (sb3.A2C, "MlpPolicy", {"net_arch": {"pi": [16], "vf": [8, 8]}}),
    "maskable ppo": (contrib.MaskablePPO, "MlpPolicy", {}),
    "trpo": (contrib.TRPO, "MlpPolicy", {}),
    "dqn": (sb3.DQN, "MlpPolicy", {}),
    "qrdqn": (contrib.QRDQN, "MlpPolicy", {"n_quantiles": 5}),
    "ars": (contrib.ARS, "MlpPolicy", {}),
    "ars linear": (contrib.ARS, "LinearPolicy", {}),
}


def model_of(name, scenario, **fields):
    """A model with random weights; those that the libraries begin with leave all actions level."""
    kind, policy, settings = MODELS[name]
    environments = SB3VecEnv(2, scenario.replace(split="train", skip_forced=True))
    model = kind(policy, environments, seed=1, device="cpu", policy_kwargs={**settings, **fields})
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.normal_(0.0, 0.7)
    return model


def compare(model, scenario, seen):
    """Both at each of these views; returns the actions."""
    network = export(model)
    exported, own = agent_for(scenario, network), SB3Policy(model)
    start, level, taken = EpisodeContext(scenario, 100.0), 0, set()
    exported.reset(start)
    own.reset(start)
    for view in seen:
        said = scores(network, view)
        if network.masked and view.active == 0:
            said[0] = -np.inf
        best, second = np.sort(said)[[-1, -2]]
        if best - second < 1e-5:  # the library computes with 24 bits
            level += 1
            continue
        action = exported.act(view)
        assert action == own.act(view)
        taken.add(action)
    assert level <= len(seen) / 100, "too many ties: hardly anything was compared"
    return taken


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_takes_the_same_actions(name):
    taken = {place: compare(model_of(name, SCENARIOS[place]), SCENARIOS[place], views(place)[:1000]) for place in
             ("client", "serving", "orders")}  # fmt: skip
    assert taken["client"] | taken["serving"] == {0, 1}
    assert len(taken["orders"]) > 1, "only one action was ever taken"


@pytest.mark.parametrize("name", ["ppo", "maskable ppo"])
def test_a_trained_model_does_the_same_in_whole_episodes(name):
    scenario = SCENARIOS["orders"].replace(num_requests=20)
    model = model_of(name, scenario)
    model.n_steps, model.rollout_buffer.buffer_size = 64, 64
    model.rollout_buffer.reset()
    model.learn(256)
    compare(model, scenario, views("orders")[-600:])
    if name == "maskable ppo":
        assert export(model).masked
        drained = [view for view in views("orders") if view.active == 0]
        assert len(drained) > 10
        assert 0 not in compare(model, scenario, drained)
    seen = []

    class Watching(Asked):
        def __init__(self, policy):
            super().__init__(policy)
            self.act = lambda view: (seen.append(view.copy()), policy.act(view))[1]

    for case in range(5):
        history(Watching(agent_for(scenario, export(model))), scenario, case)
    assert len(seen) > 20
    compare(model, scenario, seen)


class Doubled(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 26)

    def forward(self, observation):
        return 2 * observation


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"activation_fn": torch.nn.ELU},
            r"\(PPO with ActorCriticPolicy\) cannot be .* layers are Linear, ELU, Linear",
        ),
        ({"features_extractor_class": Doubled}, r"observations of shape \(26,\) through Doubled"),
    ],
)
def test_architectures_that_cannot_be_exported(fields, words):
    with pytest.raises(ConfigError, match=words):
        export(model_of("ppo", SCENARIOS["client"], **fields))


def test_policies_that_cannot_be_exported():
    model = model_of("ppo", SCENARIOS["client"])

    class Own(type(model.policy)):
        pass

    model.policy.__class__ = Own
    with pytest.raises(ConfigError, match=r"PPO with Own. cannot be exported: its policy has to be one of ActorCritic"):
        export(model)


def test_normalised_observations_cannot_be_exported():
    environments = VecNormalize(SB3VecEnv(2, SCENARIOS["client"]))
    environments.reset()
    with pytest.raises(ConfigError, match="its observations are normalised"):
        export(sb3.PPO("MlpPolicy", environments, device="cpu"))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.zip"
    model_of("ppo", SCENARIOS["client"]).save(path)
    return path


def test_the_command_writes_an_agent(model, tmp_path, capsys):
    out = tmp_path / "agent.npz"
    words = [str(model), "--algo", "ppo", "--scenario", "LLMSched/GSM8K-v0", "--out", str(out)]
    assert main(words) == 0
    assert f"Written to {out}: 2 actions" in capsys.readouterr().out
    scenario = SCENARIOS["client"]
    assert history(load_agent(out), scenario) == history(SB3Policy.load(model, "ppo"), scenario)
    file = AgentFile.read(out)
    assert file.trained[0].origin == Origin.of(Scenario())
    assert file.made_by == f"python -m llmsched_env.agents.export {' '.join(words)}"
    assert file.seeds == ()


def test_a_run_says_where_its_model_was_trained(model, tmp_path, capsys):
    """Or the agent would be taken for one of the bare id: of client queues, with lengths told."""
    where = {"queue": "shared", "lengths": "hidden", "order": "fcfs"}
    folder = tmp_path / "run" / "checkpoints" / "2000"
    folder.mkdir(parents=True)
    inside, out = model.rename(folder / "model.zip"), tmp_path / "agent.npz"
    said = {"training": {"scenario": "LLMSched/GSM8K-v0", "arguments": where}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(said))
    assert main([str(inside), "--algo", "ppo", "--out", str(out)]) == 0
    assert AgentFile.read(out).trained[0].origin == Origin.of(Scenario(**where))
    contradicting = [str(inside), "--algo", "ppo", "--scenario", "LLMSched/GSM8K-Smooth-v0", "--out", str(out)]
    for words, text in (
        (contradicting, "was on LLMSched/GSM8K-v0. Leave it out"),
        ([str(inside.rename(tmp_path / "alone.zip")), *contradicting[1:3], "--out", str(out)], "lies in no run"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--algo": "pp0"}, "unknown algorithm 'pp0'. Did you mean 'ppo'"),
        ({"--algo": "dqn"}, "not a saved dqn model"),
        ({"--out": "agent.zip"}, "agent.zip: its name has to end in .npz"),
        ({"--scenario": "LLMSched/GSM8K"}, "unknown scenario 'LLMSched/GSM8K'. Did you mean"),
        ({"model": "absent.zip"}, "cannot read absent.zip: no such file"),
        (
            {"--scenario": "LLMSched/Serving-v0"},
            "reads 26 features and has 2 actions, LLMSched/Serving-v0 has 33 and 2",
        ),
    ],
)
def test_unusable_command_lines(model, tmp_path, capsys, changes, words):
    options = {"--algo": "ppo", "--scenario": "LLMSched/GSM8K-v0", "--out": str(tmp_path / "agent.npz")}
    options |= {name: value for name, value in changes.items() if name.startswith("--")}
    with pytest.raises(SystemExit) as end:
        main([changes.get("model", str(model)), *(word for pair in options.items() for word in pair)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert words in said
    assert not (tmp_path / "agent.npz").exists()


def test_the_command_says_that_a_zip_can_run_code(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "can run code" in capsys.readouterr().out
