"""Models of stable-baselines3 that learned from other observations, or in another scenario, than they are judged in."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from networks import SCENARIOS, views

pytest.importorskip("stable_baselines3")

import torch
from gymnasium import Env
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.wrappers import NormalizeObservation
from sb3_contrib import RecurrentPPO
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


def test_statistics_are_asked_for_where_a_model_is_given_other_environments(normalised, tmp_path):
    normalised.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=copies())
    given = PPO.load(tmp_path / "model.zip")
    given.set_env(copies())
    for model in (loaded, given):
        for take in (SB3Policy, export):
            with pytest.raises(ConfigError, match=r"under VecNormalize, .*VecNormalize\.load\(.* norm_obs=False\)\)\."):
                take(model)
    fresh = PPO.load(tmp_path / "model.zip", env=copies(norm_obs=True))
    for take in (SB3Policy, export):
        with pytest.raises(ConfigError, match=r"has a VecNormalize that has seen no observation.*VecNormalize\.load\("):
            take(fresh)
    # The way out that the message names, where rewards alone were normalised.
    trained(env=copies(norm_obs=False)).save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match="If it normalised rewards only, say so"):
        SB3Policy(PPO.load(tmp_path / "model.zip", env=copies()))
    SB3Policy(PPO.load(tmp_path / "model.zip", env=copies(norm_obs=False)))


def test_the_statistics_of_two_wrappers_are_refused():
    with pytest.raises(ConfigError, match="that 2 VecNormalize change one after another: train with one"):
        SB3Policy(PPO("MlpPolicy", VecNormalize(copies(norm_obs=True)), **QUICK))
    # One of them may normalise rewards.
    seen = views("client")[:100]
    for inner, outer in ((True, False), (False, True)):
        model = trained(env=VecNormalize(copies(norm_obs=inner), norm_obs=outer))
        wrapper = model.env if outer else model.env.venv
        observations = wrapper.normalize_obs(np.stack([features(view) for view in seen]))
        assert asked(SB3Policy(model), seen) == model.predict(observations, deterministic=True)[0].tolist()


def test_a_network_and_a_recurrent_model_are_refused(normalised):
    with pytest.raises(ConfigError, match=r"ActorCriticPolicy of one: give the model, not its network \(model\.policy"):
        SB3Policy(normalised.policy)
    recurrent = RecurrentPPO("MlpLstmPolicy", copies(), **QUICK)
    with pytest.raises(ConfigError, match=r"is recurrent \(RecurrentPPO\), and SB3Policy keeps no state"):
        SB3Policy(recurrent)


BOX, TWO = Box(0.0, 1.0, (26,), np.float32), Discrete(2)


@pytest.mark.parametrize(
    ("observations", "actions", "words"),
    [
        (BOX, Box(-1.0, 1.0, (1,)), r"agent 'sb3' chooses from Box\(.* as in Discrete\(2\): train it on"),
        (BOX, MultiDiscrete([2, 2]), r"chooses from MultiDiscrete\("),
        (BOX, MultiBinary(1), r"chooses from MultiBinary\(1\)"),
        (BOX, Discrete(2, start=5), r"chooses from Discrete\(2, start=5\)"),
        (Dict(a=BOX), TWO, r"agent 'sb3' reads observations of Dict\(.* one list of numbers, a Box: train it on"),
        (Discrete(4), TWO, r"was trained on observations of shape \(\)"),
    ],
)
def test_models_of_other_spaces_are_refused(observations, actions, words):
    class Other(Env):
        observation_space, action_space = observations, actions

    policy = "MultiInputPolicy" if isinstance(observations, Dict) else "MlpPolicy"
    model = PPO(policy, DummyVecEnv([Other]), **QUICK)
    with pytest.raises(ConfigError, match=words):
        SB3Policy(model)
    with pytest.raises(ConfigError, match=r"cannot be exported|chooses from|reads observations of Dict"):
        export(model)


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
