"""A trained stable-baselines3 model as a policy of this project."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmsched_env.agents.libraries import algorithm
from llmsched_env.agents.sb3_origin import OriginWarning, began_in, check_spaces, normaliser, other_origin, trained_in
from llmsched_env.agents.scores import Scores, scores_of
from llmsched_env.config import flag
from llmsched_env.engine.features import TABLES, features_of
from llmsched_env.errors import ConfigError, FileFormatError, InvalidViewError, PathError
from llmsched_env.policy import EpisodeContext, View, features

__all__ = ["Model", "SB3Policy", "load_model"]

SHAPES = tuple((len(table),) for table in TABLES)
"""Of observations."""

Actions = NDArray[np.int64]


class Model(Protocol):
    """The part of a stable-baselines3 model that a policy needs.

    Attributes:
        observation_space: what it was trained on.
        action_space: what it chooses among.
        policy: its network, whose ``get_distribution`` is asked where actions are drawn.
    """

    observation_space: Any
    action_space: Any
    policy: Any

    def predict(self, observation: Any, *, deterministic: bool = False, **masks: Any) -> tuple[Any, Any]:
        """Actions for observations, and the state of a recurrent network."""
        ...


class SB3Policy:
    """Takes the model's most likely action at each choice, or one drawn from its distribution.

    The two may be far apart. A wait of a dozen decodes is learned as a small chance of a prefill at each of them, and
    the most likely action is then always a decode.

    A model that was trained under ``VecNormalize`` is given observations normalised by the same statistics, as long as
    it has its environments: ``PPO.load(path, env=VecNormalize.load(statistics, SB3VecEnv(1, scenario)))``. In another
    scenario than the one that it was trained in, where that can be seen, an `OriginWarning` says so.

    Args:
        model: trained on an environment of this project.
        name: what tables call it.
        deterministic: take the most likely action, as ``predict`` of stable-baselines3 does; ``False`` to draw it,
            seeded by the episode's seed, for algorithms that learn a distribution.

    Raises:
        ConfigError: no model, or its network alone; a model for other spaces or observations of another size, a
            recurrent one, one that draws without a distribution, or one whose observations were changed in a way that
            is not known here.
    """

    kind = "agent"
    clairvoyant = False

    def __init__(self, model: Model, name: str = "sb3", *, deterministic: bool = True) -> None:
        if not hasattr(model, "observation_space"):
            raise ConfigError(
                f"SB3Policy takes a model, not {model!r}: SB3Policy.load(path, algo) reads one from a zip."
            )
        if not (hasattr(model, "policy") and hasattr(model, "predict")):
            raise ConfigError(
                f"SB3Policy takes a model, not the {type(model).__name__} of one: give the model, not its network "
                "(model.policy), which does not know how its observations were normalised."
            )
        check_spaces(model, f"agent {name!r}")
        if hasattr(model.policy, "lstm_actor"):
            raise ConfigError(
                f"agent {name!r} is recurrent ({type(model).__name__}), and SB3Policy keeps no state between "
                "decisions: train it without an LSTM, by PPO or MaskablePPO."
            )
        shape = tuple(model.observation_space.shape)
        if shape not in SHAPES:
            raise ConfigError(
                f"agent {name!r} was trained on observations of shape {shape}, this version gives "
                f"{' or '.join(map(str, SHAPES))}: train it again."
            )
        if not flag("deterministic", deterministic) and not hasattr(getattr(model, "policy", None), "get_distribution"):
            raise ConfigError(
                f"agent {name!r} has learnt no distribution to draw from: take it with deterministic=True."
            )
        self.name = name
        self._model = model
        self._deterministic = deterministic
        self._masked = "action_masks" in inspect.signature(model.predict).parameters
        self._rng = np.random.default_rng(0)
        self._scores: Scores | None = None
        self._normaliser = normaliser(model, f"agent {name!r}")
        self._known: Any = None  # the last scenario that was found to be, or warned not to be, the one trained in
        began, trained = began_in(model), trained_in(model)
        if began is not None and (other := other_origin(trained, began)):
            warnings.warn(
                f"agent {name!r} was trained in one scenario and began as the rule of another ({other}): give "
                'policy_kwargs={"start": rule_start(scenario)} the scenario of its environments.',
                OriginWarning,
                stacklevel=2,
            )

    @classmethod
    def load(cls, path: Path | str, algo: str, name: str | None = None, *, deterministic: bool = True) -> SB3Policy:
        """Read a model that was saved as a zip. Such a file can run code when read: open only what you trust.

        Args:
            path: the file.
            algo: the algorithm that made it, one of `llmsched_env.agents.libraries.LIBRARIES`.
            name: what tables call it; by default the algorithm's name.
            deterministic: as for the class.

        Raises:
            UnknownNameError: no such algorithm.
            PathError: no such file.
            FileFormatError: not a model of that algorithm.
        """
        return cls(load_model(path, algo), name or algo, deterministic=deterministic)

    def reset(self, start: EpisodeContext) -> None:
        """Begin an episode.

        Raises:
            ConfigError: the agent was trained without SLOs and the scenario has them, or the other way round; or
                on another number of actions.
        """
        scenario = start.scenario
        shape, actions = (len(features_of(scenario)),), scenario.num_actions
        if self._model.action_space.n != actions:
            raise ConfigError(
                f"agent {self.name!r} has learnt {self._model.action_space.n} actions, this scenario has {actions}: "
                f"take one that was trained with choose_order={start.scenario.choose_order}."
            )
        if tuple(self._model.observation_space.shape) != shape:
            raise ConfigError(
                f"agent {self.name!r} was trained on observations of shape {self._model.observation_space.shape}, this "
                f"scenario gives {shape}: take one that was trained {'with' if start.scenario.serving else 'without'} "
                "SLOs."
            )
        self._rng = np.random.default_rng(start.seed)
        self._scores = scores_of(self._model)
        if self._known is not scenario:
            self._known = scenario
            if other := other_origin(trained_in(self._model), scenario):
                warnings.warn(
                    f"agent {self.name!r} was trained in another scenario than it is judged in ({other}): what it does "
                    "here says little of how good its training was.",
                    OriginWarning,
                    stacklevel=2,
                )

    def act(self, view: View) -> int:
        """The model's action for this view's features."""
        if not isinstance(view, View):
            raise InvalidViewError(self.name, view)
        return int(self._decide([view], [self._rng])[0])

    def together(self, starts: Sequence[EpisodeContext]) -> Callable[[Sequence[int], Sequence[View]], Actions]:
        """Begin many episodes side by side, each as by :meth:`reset`, with the same errors.

        Returns:
            What gives the actions of some of them, by their places in ``starts`` and their views.
        """
        streams = []
        for start in starts:
            self.reset(start)
            streams.append(self._rng)
        return lambda episodes, views: self._decide(views, [streams[episode] for episode in episodes])

    def _decide(self, views: Sequence[View], streams: Sequence[np.random.Generator]) -> Actions:
        """(views,) the actions, where they are drawn each from its own stream."""
        observations, masks = np.stack([features(view) for view in views]), {}
        if self._normaliser is not None:
            observations = self._normaliser(observations)
        if self._masked:
            prefills = self._model.action_space.n - 1
            masks["action_masks"] = np.array([[view.active > 0, *[view.ready > 0] * prefills] for view in views])
        scores = None if self._scores is None else self._scores(observations, **masks)
        if scores is not None and np.isnan(scores).any():
            scores = None  # the library says what is wrong
        if self._deterministic:
            if scores is None:
                return np.asarray(self._model.predict(observations, deterministic=True, **masks)[0], np.int64)
            best: Actions = scores.argmax(axis=1)
            return best
        if scores is None:
            network = self._model.policy
            tensor, _ = network.obs_to_tensor(observations)
            scores = network.get_distribution(tensor, **masks).distribution.probs.detach().cpu().numpy()
        reached = np.cumsum(scores, axis=1, dtype=np.float64)
        drawn = np.array([stream.random() for stream in streams]) * reached[:, -1]
        actions: Actions = np.argmax(reached > drawn[:, np.newaxis], axis=1)
        return actions


def load_model(path: Path | str, algo: str) -> Any:
    """The library's own model from its zip. Such a file can run code when read: open only what you trust.

    Raises:
        UnknownNameError: no such algorithm.
        PathError: no such file.
        FileFormatError: not a model of that algorithm.
    """
    kind = algorithm(algo)
    if not Path(path).is_file():
        raise PathError(f"cannot read {path}: no such file. Give the model.zip of a training run.")
    try:
        return kind.load(path, device="cpu")
    except Exception as error:  # the library raises whatever the damaged part raises
        raise FileFormatError(path, f"not a saved {algo} model ({type(error).__name__}: {error}).") from error
