"""Training with stable-baselines3: environment, progress, comparison on validation cases, a run folder."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from tqdm import tqdm

from agents.libraries import algorithm
from agents.policy import SB3Policy
from llmsched_env import ENVIRONMENTS
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import Evaluation, evaluate, mean_estimate
from llmsched_env.evaluation.comparison import Contestant
from llmsched_env.policy import Policy
from llmsched_env.storage import output_folder, write_whole

__all__ = ["Training", "train"]

PACKAGES = ("llmsched-env", "stable-baselines3", "sb3-contrib", "torch", "gymnasium", "numpy", "numba")
METRICS = ("makespan_s", "utilization", "gap_to_bound", "prefills", "decodes")
ROLLOUT_STEPS = 2048
"""Steps between two updates of PPO, over all copies: stable-baselines3's default with one copy."""


@dataclass(frozen=True)
class Training:
    """What to train on what.

    Attributes:
        algo: one of `agents.libraries.ALGORITHMS`.
        scenario: environment id.
        timesteps: decisions to train for, at least 1.
        seed: of the network, the exploration and the order of cases.
        out: folder for the model and the record of the run.
        copies: environments stepped side by side.
        validation_cases: cases that the trained agent and its rivals are compared on.
        arguments: what to change of the scenario.

    Raises:
        UnknownNameError: no such algorithm, environment or argument.
        ConfigError: a number out of range.
        MissingExtraError: the extra `agents` is not installed.
    """

    algo: str
    scenario: str
    timesteps: int
    seed: int
    out: Path
    copies: int = 8
    validation_cases: int = 20
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        algorithm(self.algo)
        if self.scenario not in ENVIRONMENTS:
            raise UnknownNameError("scenario", self.scenario, ENVIRONMENTS)
        for name, most in (("timesteps", 2**62), ("copies", 4096), ("validation_cases", 2**20)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} = {getattr(self, name)} is out of range: it lies in [1, {most}].")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed = {self.seed} is out of range: it lies in [0, {2**32 - 1}].")
        self.validation  # noqa: B018  # checks the arguments now

    @property
    def validation(self) -> Scenario:
        """Where the agent is compared."""
        kwargs = gymnasium.spec(self.scenario).kwargs
        return Scenario(**kwargs).replace(**{**self.arguments, "split": "validation"})


def train(training: Training, rivals: Sequence[Contestant] = (), *, command: str = "") -> dict[str, Any]:
    """Train, compare, and write ``model.zip`` and ``run.json`` to ``training.out``, each whole or not at all.

    Args:
        training: what to do.
        rivals: policies to compare with, on the same validation cases, each in the scenario that it brings.
        command: what repeats the run, for the record.

    Returns:
        What ``run.json`` holds.

    Raises:
        PathError: the folder cannot be written.
        ConfigError: the folder holds a run.
    """
    out = output_folder(training.out)
    if (out / "run.json").exists():
        raise ConfigError(f"{out} holds a run already: choose another folder, or move that one away.")
    model = _learn(training)
    with write_whole(out / "model.zip") as path:
        model.save(path)
    record = {
        "config": {**dataclasses.asdict(training), "out": str(training.out)},
        "scenario": training.validation.describe(),
        "command": command,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "timesteps_done": int(model.num_timesteps),
        "validation": _compare(training, _agents(training.algo, model), rivals),
    }
    with write_whole(out / "run.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _learn(training: Training) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecMonitor

    from agents.vec_env import SB3VecEnv

    class Progress(BaseCallback):
        """A bar over the steps of all copies."""

        def _on_training_start(self) -> None:
            self.bar = tqdm(total=training.timesteps, desc=f"training {training.algo}", unit="step")

        def _on_step(self) -> bool:
            self.bar.update(min(self.num_timesteps, training.timesteps) - self.bar.n)
            return True

        def _on_training_end(self) -> None:
            self.bar.close()

    scenario = training.validation.replace(split="train", skip_forced=True)
    environments = VecMonitor(SB3VecEnv(training.copies, scenario))
    settings: dict[str, Any] = {}
    if training.algo in ("ppo", "maskable_ppo"):
        steps = min(ROLLOUT_STEPS, training.timesteps)
        settings["n_steps"] = max(2, -(-steps // training.copies))
        settings["batch_size"] = min(64, settings["n_steps"] * training.copies)
    try:
        model = algorithm(training.algo)(
            "MlpPolicy", environments, seed=training.seed, device="cpu", verbose=0, **settings
        )
        return model.learn(training.timesteps, callback=Progress())
    finally:
        environments.close()


def _agents(algo: str, model: Any) -> list[Policy]:
    return [SB3Policy(model, algo), SB3Policy(model, f"{algo}_sampled", sampled=True)]


def _compare(training: Training, agents: Sequence[Policy], rivals: Sequence[Contestant]) -> dict[str, Any]:
    """Every policy on the same cases, and by how much each agent is slower than each rival, case by case."""
    played = [(agent.name, agent, training.validation) for agent in agents]
    played += [(rival.name, rival.policy, rival.scenario) for rival in rivals]
    found: dict[str, Evaluation] = {}
    with tqdm(total=len(played) * training.validation_cases, desc="validation", unit="episode") as bar:
        for name, policy, scenario in played:
            found[name] = evaluate(policy, scenario, training.validation_cases, seed=training.seed, progress=bar.update)
    objective = training.validation.objective
    reached = {name: evaluation.columns[objective] for name, evaluation in found.items()}
    return {
        "cases": training.validation_cases,
        "objective": objective,
        "policies": {
            name: {
                "kind": evaluation.kind,
                "clairvoyant": evaluation.clairvoyant,
                **{metric: evaluation.estimate(metric).as_json() for metric in dict.fromkeys((objective, *METRICS))},
            }
            for name, evaluation in found.items()
        },
        "agent_minus_rival": {
            agent.name: {
                rival.name: mean_estimate(np.subtract(reached[agent.name], reached[rival.name])).as_json()
                for rival in rivals
            }
            for agent in agents
        },
    }
