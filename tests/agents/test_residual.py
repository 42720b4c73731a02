"""The policy of stable-baselines3 that begins as a rule."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from networks import SCENARIOS, agent_for, views

pytest.importorskip("stable_baselines3")

import stable_baselines3 as sb3
import torch
from sb3_contrib import TRPO

from llmsched_env.agents.export import export, main
from llmsched_env.agents.network import Network, dense
from llmsched_env.agents.sb3_policy import SB3Policy
from llmsched_env.agents.sb3_residual import ResidualPolicy, rule_start
from llmsched_env.agents.vec_env import SB3VecEnv
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.policy import EpisodeContext, features

PLACES = ("client", "serving")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def starts():
    values = {"client": [0.0, 1.0], "serving": [0.4, 0.8]}  # with so few clients the tuned rules hardly wait
    return {place: {**rule_start(SCENARIOS[place]), "base_values": values[place]} for place in PLACES}


def model_of(place, start, kind=sb3.PPO, **settings):
    environments = SB3VecEnv(2, SCENARIOS[place].replace(split="train", skip_forced=True))
    return kind(
        ResidualPolicy, environments, seed=1, device="cpu", policy_kwargs={"start": start, "hidden": 5}, **settings
    )


def actions_of(policy, place, seen):
    policy.reset(EpisodeContext(SCENARIOS[place], 100.0))
    return [policy.act(view) for view in seen]


def not_level(model, seen):
    """Views where the two actions are apart by more than the rounding of 32 bits."""
    with torch.no_grad():
        logits = model.policy.mlp_extractor.forward_actor(torch.tensor(np.stack([features(view) for view in seen])))
    clear = [view for view, logit in zip(seen, logits[:, 0].tolist(), strict=True) if abs(logit) > 1e-3]
    assert len(clear) > 0.95 * len(seen)
    return clear


def set_all(model, draw):
    with torch.no_grad():
        for name, parameter in model.policy.mlp_extractor.named_parameters():
            if name != "log_sharpness":
                draw(parameter)


@pytest.mark.parametrize("place", PLACES)
def test_zeros_are_the_rule(place, starts):
    model, seen = model_of(place, starts[place]), views(place)[:600]
    set_all(model, torch.nn.init.zeros_)
    start = starts[place]
    rule = Network(
        ("active",), (dense([[0.0]], [0.0]),), head="prefill", base=start["base"],
        base_values=tuple(start["base_values"]), base_limit=1.0,
    )  # fmt: skip
    clear = not_level(model, seen)
    said = actions_of(SB3Policy(model), place, clear)
    assert said == actions_of(agent_for(SCENARIOS[place], rule), place, clear)
    assert {*said} == {0, 1}


@pytest.mark.parametrize("place", PLACES)
def test_its_numbers_take_the_same_actions(place, starts):
    model, seen = model_of(place, starts[place]), views(place)[:800]
    torch.manual_seed(3)
    set_all(model, lambda parameter: parameter.normal_(0.0, 0.4))
    network = export(model)
    assert network.base_limit == 1.0
    clear = not_level(model, seen)
    said = actions_of(SB3Policy(model), place, clear)
    assert said == actions_of(agent_for(SCENARIOS[place], network), place, clear)
    assert {*said} == {0, 1}


@pytest.mark.parametrize("kind", [sb3.PPO, sb3.A2C, TRPO])
def test_it_trains_and_is_read_back(kind, starts, tmp_path):
    batch = {} if kind is sb3.A2C else {"batch_size": 64}
    model = model_of("client", starts["client"], kind, n_steps=32, **batch)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(128)
    after = model.policy.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved >= {"mlp_extractor.skip.weight", "mlp_extractor.log_sharpness", "value_net.weight"}
    assert not moved & {"action_net.weight", "action_net.bias", "mlp_extractor.mean", "mlp_extractor.spread"}
    model.save(tmp_path / "model.zip")
    again = kind.load(tmp_path / "model.zip", device="cpu")
    assert not torch.equal(model.policy.mlp_extractor.outer.weight, before["mlp_extractor.outer.weight"])
    seen = np.stack([features(view) for view in views("client")[:200]])
    assert np.array_equal(model.predict(seen, deterministic=True)[0], again.predict(seen, deterministic=True)[0])
    parameters = again.policy._get_constructor_parameters()
    assert (parameters["start"], parameters["hidden"]) == (starts["client"], 5)


def test_from_the_limit_on_it_is_a_prefill(starts):
    model = model_of("client", starts["client"])
    set_all(model, torch.nn.init.zeros_)
    with torch.no_grad():
        model.policy.mlp_extractor.outer.bias.fill_(-50.0)  # never, says the network
    seen = torch.tensor(np.stack([features(view) for view in views("client")[:600]]))
    score = model.policy.mlp_extractor.score(seen)[:, 0]
    said = model.policy.get_distribution(seen).distribution.probs[:, 1]
    assert 10 < (score >= 1).sum() < 590
    assert torch.equal(said > 0.5, score >= 1)


def test_what_it_cannot_be(starts):
    with pytest.raises(ConfigError, match=r'this scenario has 7 actions, .* take "MlpPolicy"'):
        rule_start(SCENARIOS["orders"])
    with pytest.raises(ConfigError, match=r"rule_start takes a Scenario, not 'LLMSched/GSM8K-v0': make_scenario\('"):
        rule_start("LLMSched/GSM8K-v0")
    with pytest.raises(ConfigError, match=r"SB3Policy takes a model, not 'model.zip': SB3Policy.load"):
        SB3Policy("model.zip")
    box, two = spaces.Box(0.0, 1.0, (26,), np.float32), spaces.Discrete(2)

    def make(observations=box, actions=two, **changes):
        return ResidualPolicy(observations, actions, lambda left: 1e-3, start={**starts["client"], **changes})

    make()
    with pytest.raises(ConfigError, match=r'policy_kwargs={"start": rule_start\(scenario\)}'):
        ResidualPolicy(box, two, lambda left: 1e-3)
    with pytest.raises(ConfigError, match=r"the space is Discrete\(3\)"):
        make(actions=spaces.Discrete(3))
    with pytest.raises(ConfigError, match="observations of 5 numbers"):
        make(spaces.Box(0.0, 1.0, (5,), np.float32))
    with pytest.raises(ConfigError, match="have no 'in_time_wait'"):
        make(base="deadline")
    with pytest.raises(UnknownNameError, match=r"unknown rule 'best'.*lagrangian"):
        make(base="best")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"start": {}},
            "start lacks features, mean, spread, base, base_values, and has to be what rule_start returned: give pol",
        ),
        ({"start": "lagrangian"}, "start is 'lagrangian', and has to be what rule_start returned: give policy_kwargs"),
        ({"sharpness": -1}, "sharpness = -1 is out of range: it is above 0"),
        ({"sharpness": 0.0}, r"sharpness = 0\.0 is out of range: it is above 0"),
        ({"sharpness": float("nan")}, "sharpness = nan"),
        ({"hidden": 0}, r"hidden = 0 is out of range: it lies in \[1, "),
        ({"critic": (8, 0)}, r"critic\[1\] = 0 is out of range"),
        ({"limit": "never"}, "limit = 'never' is not a number"),
    ],
)
def test_settings_that_it_cannot_have(starts, settings, words):
    given = {"start": starts["client"], **settings}
    with pytest.raises(ConfigError, match=words):
        ResidualPolicy(spaces.Box(0.0, 1.0, (26,), np.float32), spaces.Discrete(2), lambda left: 1e-3, **given)


def test_its_zip_is_exported_on_the_command_line(starts, tmp_path, capsys):
    model_of("client", starts["client"]).save(tmp_path / "model.zip")
    words = [str(tmp_path / "model.zip"), "--algo", "ppo", "--scenario", "LLMSched/GSM8K-v0", "--out"]
    assert main([*words, str(tmp_path / "agent.npz")]) == 0
    assert "2 actions" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words[:-2], "LLMSched/Serving-v0", "--out", str(tmp_path / "other.npz")])
    assert "the model reads 26 features and has 2 actions, LLMSched/Serving-v0 has 33 and 2" in capsys.readouterr().err
