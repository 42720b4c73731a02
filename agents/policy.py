"""A trained stable-baselines3 model as a policy of this project."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agents.libraries import algorithm
from llmsched_env.core.features import feature_table
from llmsched_env.errors import ConfigError, FileFormatError, PathError
from llmsched_env.policy import Start, View, features

__all__ = ["Model", "SB3Policy"]

SHAPES = tuple((len(feature_table(promises)),) for promises in (False, True))
"""Of observations, without and with promises."""


class Model(Protocol):
    """The part of a stable-baselines3 model that a policy needs."""

    observation_space: Any
    action_space: Any

    def predict(self, observation: Any, *, deterministic: bool = False, **masks: Any) -> tuple[Any, Any]:
        """Action for an observation, and the state of a recurrent network."""
        ...

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed what sampling draws from."""
        ...


class SB3Policy:
    """Takes the model's most likely action at each choice, or one drawn from its distribution.

    The two may be far apart. A wait of a dozen decodes is learned as a small chance of a prefill at each of them, and
    the most likely action is then always a decode.

    Args:
        model: trained on an environment of this project.
        name: what tables call it.
        sampled: draw the action, seeded by the episode's seed.

    Raises:
        ConfigError: a model for observations of another size.
    """

    kind = "agent"
    clairvoyant = False

    def __init__(self, model: Model, name: str = "sb3", *, sampled: bool = False) -> None:
        shape = tuple(model.observation_space.shape)
        if shape not in SHAPES:
            raise ConfigError(
                f"agent {name!r} was trained on observations of shape {shape}, this version gives "
                f"{' or '.join(map(str, SHAPES))}: train it again."
            )
        self.name = name
        self._model = model
        self._sampled = sampled
        self._masked = "action_masks" in inspect.signature(model.predict).parameters

    @classmethod
    def load(cls, path: Path | str, algo: str, name: str | None = None) -> SB3Policy:
        """Read a model that was saved as a zip. Such a file can run code when read: open only what you trust.

        Args:
            path: the file.
            algo: the algorithm that made it, one of `agents.libraries.ALGORITHMS`.
            name: what tables call it; by default the algorithm's name.

        Raises:
            UnknownNameError: no such algorithm.
            PathError: no such file.
            FileFormatError: not a model of that algorithm.
        """
        kind = algorithm(algo)
        if not Path(path).is_file():
            raise PathError(f"cannot read {path}: no such file. Give the model.zip of a training run.")
        try:
            model = kind.load(path, device="cpu")
        except Exception as error:  # the library raises whatever the damaged part raises
            raise FileFormatError(path, f"not a saved {algo} model ({type(error).__name__}: {error}).") from error
        return cls(model, name or algo)

    def reset(self, start: Start) -> None:
        """Begin an episode.

        Raises:
            ConfigError: the agent was trained without promises and the scenario makes them, or the other way round; or
                on another number of actions.
        """
        shape, actions = (len(feature_table(start.scenario.serving)),), start.scenario.num_actions
        if self._model.action_space.n != actions:
            raise ConfigError(
                f"agent {self.name!r} has learnt {self._model.action_space.n} actions, this scenario has {actions}: "
                f"take one that was trained with choose_order={start.scenario.choose_order}."
            )
        if tuple(self._model.observation_space.shape) != shape:
            raise ConfigError(
                f"agent {self.name!r} was trained on observations of shape {self._model.observation_space.shape}, this "
                f"scenario gives {shape}: take one that was trained {'with' if start.scenario.serving else 'without'} "
                "promises."
            )
        if self._sampled:
            self._model.set_random_seed(start.seed % 2**32)  # all that the library takes

    def act(self, view: View) -> int:
        """The model's action for this view's features."""
        masks = {}
        if self._masked:
            prefills = [view.ready > 0] * (self._model.action_space.n - 1)
            masks["action_masks"] = np.array([view.active > 0, *prefills])
        action, _ = self._model.predict(features(view), deterministic=not self._sampled, **masks)
        return int(action)
