"""The algorithms of stable-baselines3 and sb3-contrib, stopped and gone on with at any time."""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper

from llmsched_env.agents.agent import Agent
from llmsched_env.agents.export import export
from llmsched_env.agents.hyperparameters import Check, flag, one_of, real_number, whole_number, widths
from llmsched_env.agents.learner import Task
from llmsched_env.agents.libraries import LIBRARIES, algorithm
from llmsched_env.agents.network import Network
from llmsched_env.agents.sb3_policy import SB3Policy
from llmsched_env.agents.sb3_residual import ResidualPolicy, rule_start
from llmsched_env.agents.vec_env import SB3VecEnv
from llmsched_env.config import REWARDS, Scenario
from llmsched_env.errors import ConfigError, FileFormatError
from llmsched_env.policy import Policy

__all__ = ["SB3Learner"]

_log = logging.getLogger(__name__)

MODEL, STATE, REPLAY = "model.zip", "state.pkl", "replay.pkl"

POLICIES = ("auto", "rule", "mlp")
"""A residual on a rule (:mod:`llmsched_env.agents.sb3_residual`), a plain network, or the former where there is one."""

USUAL_SCALE = 1000.0


ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}

FOR_RULES = ("reward", "policy", "hidden", "sharpness", "anneal")
"""Settings that only some algorithms have: those of a residual on a rule, and what goes with it."""

OURS = ("timesteps", "evaluate_every", "copies", "reward_scale", "net_arch", "activation", *FOR_RULES)
"""Settings that are not arguments of the library's class."""


class SB3Learner:
    """An algorithm of stable-baselines3 on copies of a scenario, on the CPU.

    Between two updates, of on-policy algorithms and of DQN and its kin, a saved learner goes on to the last bit as one
    that was never stopped: the episodes in flight and the streams of random numbers are saved with it. ARS has no such
    moment: what it has tried of an update that is not done is tried anew, in other directions.

    Args:
        algo: its name.
        scenario: where it learns.
        model: of the library.
        copies: what it learns on.
        figures: what the model's logger said last.
    """

    checks: ClassVar[Mapping[str, Check]] = {
        "activation": one_of(*ACTIVATIONS),
        "anneal": flag,
        "batch_size": whole_number(2, 2**20),
        "buffer_size": whole_number(1, 2**26),
        "clip_range": real_number(1e-6, 10.0),
        "delta_std": real_number(1e-9, 1e3),
        "ent_coef": real_number(0.0, 10.0),
        "exploration_final_eps": real_number(0.0, 1.0),
        "exploration_fraction": real_number(1e-9, 1.0),
        "exploration_initial_eps": real_number(0.0, 1.0),
        "gae_lambda": real_number(0.0, 1.0),
        "gamma": real_number(0.0, 1.0),
        "gradient_steps": whole_number(1, 2**20),
        "hidden": whole_number(1, 1024),
        "learning_rate": real_number(1e-12, 10.0),
        "learning_starts": whole_number(0, 2**40),
        "max_grad_norm": real_number(1e-9, 1e9),
        "n_critic_updates": whole_number(1, 2**16),
        "n_delta": whole_number(1, 2**16),
        "n_epochs": whole_number(1, 2**16),
        "n_eval_episodes": whole_number(1, 2**16),
        "n_steps": whole_number(1, 2**24),
        "n_top": whole_number(1, 2**16),
        "net_arch": widths,
        "normalize_advantage": flag,
        "policy": one_of(*POLICIES),
        "reward": one_of("auto", "own", *REWARDS),
        "reward_scale": real_number(0.0, 1e12),
        "sharpness": real_number(1e-3, 1e3),
        "target_kl": real_number(1e-9, 1e3),
        "target_update_interval": whole_number(1, 2**40),
        "train_freq": whole_number(1, 2**20),
        "vf_coef": real_number(0.0, 1e3),
    }

    def __init__(self, algo: str, scenario: Scenario, model: Any, copies: SB3VecEnv, figures: dict[str, float]) -> None:
        self._algo = algo
        self._scenario = scenario
        self._model = model
        self._copies = copies
        self._latest = _Latest(figures)
        model.set_logger(Logger(None, [self._latest]))

    @classmethod
    def begin(cls, training: Task) -> SB3Learner:
        """An untrained network.

        Raises:
            ConfigError: settings that contradict each other.
            MissingExtraError: the library is not installed.
        """
        settings, scenario = training.settings, _paid(training)
        _check(settings)
        if scenario.serving and scenario.reward == "differential":
            _log.warning(
                "reward differential adds up to the makespan, which says little of goodput where requests arrive over "
                "time, and the agent is chosen by its goodput: take reward goodput."
            )
        policy, its = _policy(settings, scenario)
        copies = SB3VecEnv(settings["copies"], scenario)
        theirs = {name: value for name, value in settings.items() if name not in OURS}
        if settings.get("anneal"):
            theirs["learning_rate"] = _Falling(settings["learning_rate"])
            rollout = settings["n_steps"] * settings["copies"]
            if settings["timesteps"] <= rollout:
                _log.warning(
                    "nothing will be learned: an update is %s decisions, and with anneal the learning rate falls to 0 "
                    "at timestep %s. Give more timesteps, or settings with fewer n_steps.",
                    f"{rollout:,}",
                    f"{settings['timesteps']:,}",
                )
        model = algorithm(training.algo)(
            policy,
            _Scaled(copies, _scale(settings, scenario)),
            seed=training.seed,
            device="cpu",
            verbose=0,
            policy_kwargs=its,
            **theirs,
        )
        return cls(training.algo, training.training_scenario, model, copies, {})

    @classmethod
    def resume(cls, training: Task, folder: Path) -> SB3Learner:
        """A learner as it was when :meth:`save` wrote ``folder``.

        Raises:
            FileFormatError: files of other versions of the libraries.
        """
        try:
            model = algorithm(training.algo).load(folder / MODEL, device="cpu")
            if isinstance(model, OffPolicyAlgorithm):
                model.load_replay_buffer(folder / REPLAY)
            state = pickle.loads((folder / STATE).read_bytes())
            copies = state["copies"]
            model.set_env(_Scaled(copies, _scale(training.settings, _paid(training))), force_reset=False)
            model.action_space = state["action_space"]
            learner = cls(training.algo, training.training_scenario, model, copies, state["figures"])
            _set_streams(state["streams"])
        except Exception as error:  # the files are whole, but whatever another version of a library may raise
            raise FileFormatError(
                folder,
                f"cannot be gone on with ({type(error).__name__}: {error}): use the versions that config.json lists.",
            ) from error
        return learner

    @property
    def timesteps(self) -> int:
        """Decisions of all copies."""
        return int(self._model.num_timesteps)

    def ends_at(self, timesteps: int) -> int:
        """Rounded up to whole updates of an on-policy algorithm."""
        if not isinstance(self._model, OnPolicyAlgorithm):
            return timesteps
        update = self._model.n_steps * self._model.n_envs
        return -(-timesteps // update) * update

    def learn(self, until: int, report: Callable[[], None]) -> None:
        """Train until ``timesteps`` reaches ``until``; ``report`` is called before each rollout."""
        left = until - self.timesteps
        if left > 0:
            first = self.timesteps == 0
            self._model.learn(left, callback=_Reporter(report), log_interval=1, reset_num_timesteps=first)

    def policies(self) -> list[Policy]:
        """The most likely actions, and where a distribution is learnt those drawn from it.

        Of a residual on a rule the most likely ones alone, as plain numbers, which decide a hundred times as fast.
        """
        if isinstance(self._model.policy, ResidualPolicy):
            return [Agent.of(self._algo, self._model.policy.network(), self._scenario)]
        greedy = SB3Policy(self._model, self._algo)
        if not LIBRARIES[self._algo].sampled:
            return [greedy]
        return [greedy, SB3Policy(self._model, f"{self._algo}_sampled", deterministic=False)]

    def network(self) -> Network | None:
        """The most likely actions in plain numbers; where they cannot be had, a warning says why."""
        try:
            return export(self._model)
        except ConfigError as error:
            _log.warning("the agent has no safe form, so there is no agent.npz: %s", error)
            return None

    def figures(self) -> dict[str, float]:
        """What the library logs, but for times: returns of finished episodes, losses, ..."""
        pending = _numbers(self._model.logger.name_to_value)
        return {**self._latest.values, **pending}

    def save(self, folder: Path) -> None:
        """Write model, replay buffer, episodes in flight and streams of random numbers."""
        self._model.save(folder / MODEL)
        if isinstance(self._model, OffPolicyAlgorithm):
            self._model.save_replay_buffer(folder / REPLAY)
        state = {
            "copies": self._copies,
            "action_space": self._model.action_space,
            "figures": self.figures(),
            "streams": _streams(),
        }
        (folder / STATE).write_bytes(pickle.dumps(state))


def _paid(training: Task) -> Scenario:
    """Where it learns, with the reward that it learns from: its settings' where nobody named one for the scenario."""
    scenario, reward = training.training_scenario, training.settings.get("reward", "own")
    if "reward" in training.arguments or reward == "own" or (reward == "auto" and scenario.serving):
        return scenario
    return scenario.replace(reward="differential" if reward == "auto" else reward)


def _scale(settings: Mapping[str, Any], scenario: Scenario) -> float:
    """What rewards are multiplied by; differential ones are of a good size as they are."""
    return settings["reward_scale"] or (1.0 if scenario.reward == "differential" else USUAL_SCALE)


def _policy(settings: Mapping[str, Any], scenario: Scenario) -> tuple[Any, dict[str, Any]]:
    """The class of the network, and its arguments."""
    kind = settings.get("policy", "mlp")
    if kind == "rule" or (kind == "auto" and scenario.num_actions == 2):
        names = {"hidden": "hidden", "critic": "net_arch", "sharpness": "sharpness"}
        own = {name: settings[setting] for name, setting in names.items()}
        return ResidualPolicy, {"start": rule_start(scenario), **own}
    return "MlpPolicy", {"net_arch": settings["net_arch"], "activation_fn": ACTIVATIONS[settings["activation"]]}


@dataclass(frozen=True)
class _Falling:
    """A learning rate that falls to 0 at the last timestep; the last update ends beyond it."""

    first: float

    def __call__(self, left: float) -> float:
        return self.first * max(left, 0.0)


class _Scaled(VecEnvWrapper):
    """Rewards times a number: those of the environments are a few millionths, far below what a fresh network says."""

    def __init__(self, venv: Any, scale: float) -> None:
        super().__init__(venv)
        self._scale = np.float32(scale)

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards * self._scale, dones, infos


class _Reporter(BaseCallback):
    """Reports before each rollout: what came before it is learnt, and nothing of it has begun."""

    def __init__(self, report: Callable[[], None]) -> None:
        super().__init__()
        self._report = report

    def _on_rollout_start(self) -> None:
        self._report()

    def _on_step(self) -> bool:
        return True


class _Latest(KVWriter):
    """Keeps the last value of everything that is logged."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values = dict(values)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.values.update(_numbers(key_values))

    def close(self) -> None:
        pass


def _numbers(logged: Mapping[str, Any]) -> dict[str, float]:
    """What does not depend on the clock on the wall."""
    return {name: float(value) for name, value in logged.items() if not name.startswith("time/")}


def _check(settings: Mapping[str, Any]) -> None:
    """Settings that are in range but not together; a rollout is cut into whole batches."""
    copies = settings["copies"]
    rollout = settings.get("n_steps", 0) * copies
    for name, most, what in (
        ("n_top", settings.get("n_delta"), "n_delta"),
        ("copies", settings.get("target_update_interval"), "target_update_interval"),
        ("copies", settings.get("buffer_size"), "buffer_size"),
    ):
        if most is not None and settings[name] > most:
            raise ConfigError(f"{name} = {settings[name]} is more than {what} = {most}: lower it, or raise {what}.")
    if rollout and "batch_size" in settings and rollout % settings["batch_size"]:
        raise ConfigError(
            f"batch_size = {settings['batch_size']} does not divide a rollout of n_steps x copies = "
            f"{settings['n_steps']} x {copies} = {rollout} decisions: choose one that does."
        )


def _streams() -> tuple[Any, ...]:
    """The library draws from global streams."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _set_streams(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])
