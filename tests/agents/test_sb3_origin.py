"""Models of stable-baselines3 that learned from other observations, or in another scenario, than they are judged in."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from networks import SCENARIOS, views

pytest.importorskip("stable_baselines3")

import torch
from gymnasium.wrappers import NormalizeObservation
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from llmsched_env.agents.export import export, main
from llmsched_env.agents.sb3_origin import OriginWarning
from llmsched_env.agents.sb3_policy import SB3Policy
from llmsched_env.agents.sb3_residual import ResidualPolicy, rule_start
from llmsched_env.agents.vec_env import SB3VecEnv
from llmsched_env.env import LLMSchedEnv
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import evaluate
from llmsched_env.policy import EpisodeContext, features

HOME = SCENARIOS["client"].replace(num_requests=30)
QUICK = {"n_steps": 64, "batch_size": 64, "n_epochs": 2, "seed": 1, "device": "cpu"}

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:stable_baselines3"),
]


def copies(scenario=HOME, **norm):
    plain = SB3VecEnv(2, scenario.replace(split="train", skip_forced=True))
    return VecNormalize(plain, **norm) if norm else plain


def trained(policy="MlpPolicy", env=None, **settings):
    model = PPO(policy, copies() if env is None else env, **QUICK, **settings)
    model.learn(256)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if "mlp_extractor.policy_net" in name or "action_net" in name:
                parameter.normal_(0.0, 0.7)  # decisions that depend on more than one feature
    return model


@pytest.fixture(scope="module")
def start():
    return rule_start(HOME)


@pytest.fixture(scope="module")
def normalised():
    return trained(env=copies(norm_obs=True))


def asked(policy, seen):
    policy.reset(EpisodeContext(HOME, 100.0))
    return [policy.act(view) for view in seen]


def test_statistics_of_vec_normalize_are_used(normalised, tmp_path):
    seen = views("client")[:300]
    observations = np.stack([features(view) for view in seen])
    wrapper = normalised.get_vec_normalize_env()
    expected = normalised.predict(wrapper.normalize_obs(observations), deterministic=True)[0].tolist()
    assert expected != normalised.predict(observations, deterministic=True)[0].tolist(), "the statistics change nothing"
    assert asked(SB3Policy(normalised), seen) == expected

    normalised.save(tmp_path / "model.zip")
    wrapper.save(tmp_path / "statistics.pkl")
    with pytest.raises(ConfigError, match=r"agent 'ppo' was trained on normalised .*VecNormalize\.load\(statistics,"):
        SB3Policy.load(tmp_path / "model.zip", "ppo")
    env = VecNormalize.load(tmp_path / "statistics.pkl", SB3VecEnv(1, HOME))
    assert asked(SB3Policy(PPO.load(tmp_path / "model.zip", env=env)), seen) == expected
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model.zip"), "--algo", "ppo", "--scenario", "LLMSched/GSM8K-v0", "--out", "x.npz"])


def test_statistics_go_with_the_policy_to_workers(normalised):
    plain, shared = (evaluate(SB3Policy(normalised), HOME, 4, workers=workers, chunk=2) for workers in (1, 2))
    np.testing.assert_array_equal(plain.columns["makespan_s"], shared.columns["makespan_s"])


def test_normalised_rewards_alone_are_no_concern(start, tmp_path):
    for model in (
        trained(env=copies(norm_obs=False)),
        trained(ResidualPolicy, copies(norm_obs=False), policy_kwargs={"start": start}),
    ):
        model.save(tmp_path / "model.zip")
        seen = views("client")[:50]
        assert asked(SB3Policy.load(tmp_path / "model.zip", "ppo"), seen) == asked(SB3Policy(model), seen)
        export(model)


def test_a_residual_refuses_normalised_observations(start):
    model = PPO(ResidualPolicy, copies(norm_obs=True), **QUICK, policy_kwargs={"start": start})
    with pytest.raises(ConfigError, match=r"ResidualPolicy was given an observation of -.*norm_obs=False"):
        model.learn(64)
    with pytest.raises(ConfigError, match=r"agent 'sb3' is a residual on a rule and was trained under VecNormalize"):
        SB3Policy(model)
    with pytest.raises(ConfigError, match=r"is a residual on a rule .*norm_obs=False"):
        export(model)


def test_observations_that_another_wrapper_changed_are_refused(start):
    env = DummyVecEnv([lambda: NormalizeObservation(LLMSchedEnv(HOME))])
    with pytest.raises(
        ConfigError, match=r"agent 'sb3' reads observations in \[-inf, inf\].* Train without that wrapp"
    ):
        SB3Policy(PPO("MlpPolicy", env, **QUICK))
    with pytest.raises(ConfigError, match="ResidualPolicy reads observations in"):
        PPO(ResidualPolicy, env, **QUICK, policy_kwargs={"start": start})


def silently(action):
    with warnings.catch_warnings():
        warnings.simplefilter("error", OriginWarning)
        return action()


def test_another_scenario_than_the_one_trained_in_is_said(tmp_path):
    model = trained()
    agent = silently(lambda: SB3Policy(model))
    silently(lambda: evaluate(agent, HOME.replace(split="validation", reward="idle"), 2))
    other = HOME.replace(workload="gsm8k-smooth")
    with pytest.warns(
        OriginWarning, match=r"agent 'sb3' was trained in another .* \(workload = 'gsm8k', now 'gsm8k-smooth'"
    ) as said:
        evaluate(agent, other, 3)
    assert len(said) == 1
    with pytest.warns(OriginWarning, match=r"\(cost: name = 'llama-65b-paper', now 'llama-65b-paper-mid'\)"):
        evaluate(agent, HOME.replace(cost="llama-65b-paper-mid"), 1)
    model.save(tmp_path / "model.zip")
    silently(lambda: evaluate(SB3Policy.load(tmp_path / "model.zip", "ppo"), other, 1))  # it does not know


def test_a_residual_knows_whose_rule_it_began_as(start, tmp_path, capsys):
    model = trained(ResidualPolicy, policy_kwargs={"start": start})
    silently(lambda: evaluate(SB3Policy(model), HOME.replace(split="validation"), 1))
    model.save(tmp_path / "model.zip")
    loaded = SB3Policy.load(tmp_path / "model.zip", "ppo")
    silently(lambda: evaluate(loaded, HOME.replace(split="test"), 1))
    with pytest.warns(OriginWarning, match=r"agent 'ppo' was trained in another .* \(num_clients = "):
        evaluate(loaded, HOME.replace(num_clients=11), 1)
    words = ["--algo", "ppo", "--scenario", "LLMSched/GSM8K-v0", "--out", str(tmp_path / "agent.npz")]
    assert main([str(tmp_path / "model.zip"), *words]) == 0
    assert (
        "warning: the model began as the rule of another scenario (num_requests = 30, now None)"
        in capsys.readouterr().err
    )


def test_a_residual_on_the_rule_of_another_scenario_is_said(start):
    model = trained(ResidualPolicy, copies(HOME.replace(num_clients=11)), policy_kwargs={"start": start})
    with pytest.warns(OriginWarning, match=r"in one scenario and began as the rule of another \(num_clients = 11, now"):
        SB3Policy(model)
    unnamed = {name: value for name, value in start.items() if name != "scenario"}
    model = trained(ResidualPolicy, policy_kwargs={"start": unnamed})
    silently(lambda: evaluate(SB3Policy(model), HOME, 1))
