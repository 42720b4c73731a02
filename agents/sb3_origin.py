"""What a model of stable-baselines3 learned from, as far as it can be seen: its observations, and its scenario."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.agents.fingerprint import difference
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError

__all__ = [
    "OriginWarning",
    "began_in",
    "check_bounds",
    "check_spaces",
    "normaliser",
    "origin",
    "other_origin",
    "trained_in",
]

FOR_TRAINING = ("split", "reward", "skip_forced", "max_iterations")
"""Arguments of a scenario that may differ between training and judging."""

LOADED = "PPO.load(path, env=VecNormalize.load(statistics, SB3VecEnv(1, scenario)))"

Description = dict[str, Any]
Normaliser = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class OriginWarning(UserWarning):
    """A model is judged in another scenario than the one that it was trained in, or began from."""


def normaliser(model: Any, who: str) -> Normaliser | None:
    """What its observations went through before it saw them: ``VecNormalize`` of its environments, or nothing.

    Args:
        model: of stable-baselines3.
        who: it is, for messages.

    Raises:
        ConfigError: its observations were changed by something that did not come with it, by statistics of nothing, or
            more than once.
    """
    wrappers = _normalising(getattr(model, "env", None))
    if len(wrappers) > 1:
        raise ConfigError(
            f"{who} was trained on observations that {len(wrappers)} VecNormalize change one after another: train with "
            "one, or with norm_obs=False in the others."
        )
    if wrappers:
        if type(getattr(model, "policy", None)).__name__ == "ResidualPolicy":
            raise ConfigError(
                f"{who} is a residual on a rule and was trained under VecNormalize. The rule reads observations as "
                "they are: train with VecNormalize(..., norm_obs=False)."
            )
        if wrappers[0].obs_rms.count < 1:
            raise ConfigError(
                f"{who} has a VecNormalize that has seen no observation, so its statistics are not those of the "
                f"training. Load those: {LOADED}."
            )
        seen: Normaliser = wrappers[0].normalize_obs
        return seen
    check_bounds(model.observation_space, who)
    last = getattr(model, "_last_obs", None)  # a zip keeps it
    if isinstance(last, np.ndarray) and last.size and not (last.min() >= 0.0 and last.max() <= 1.0):
        raise ConfigError(
            f"{who} was trained on normalised observations (its last ones lie in [{last.min():.3g}, {last.max():.3g}], "
            f"those of the environment in [0, 1]), and the statistics did not come with it. Load it with them: "
            f"{LOADED}; or train with VecNormalize(..., norm_obs=False)."
        )
    # Giving a model other environments drops its last observations, but not what they were before VecNormalize.
    there = getattr(model, "get_vec_normalize_env", lambda: None)() is not None
    if last is None and getattr(model, "_last_original_obs", None) is not None and not there:
        raise ConfigError(
            f"{who} was trained under VecNormalize, and its environments have none now. If it normalised observations, "
            f"load its statistics: {LOADED}. If it normalised rewards only, say so: PPO.load(path, "
            "env=VecNormalize(SB3VecEnv(1, scenario), norm_obs=False))."
        )
    return None


def _normalising(env: Any) -> list[Any]:
    """Each ``VecNormalize`` around environments that changes observations, the outermost first."""
    found = []
    while env is not None:
        own = vars(env)  # wrappers hand on what they do not have
        if own.get("norm_obs"):
            found.append(env)
        env = own.get("venv")
    return found


def check_spaces(model: Any, who: str) -> None:
    """Whether a model is of the kind of spaces that environments of this project have.

    Raises:
        ConfigError: it is not.
    """
    observations, actions = model.observation_space, model.action_space
    if getattr(observations, "shape", None) is None:
        raise ConfigError(
            f"{who} reads observations of {observations}, and those of the environment are one list of numbers, a Box: "
            "train it on an environment of this project."
        )
    if not hasattr(actions, "n") or getattr(actions, "shape", None) or getattr(actions, "start", 0):
        raise ConfigError(
            f"{who} chooses from {actions}, and actions of the environment are numbered from 0, as in Discrete(2): "
            "train it on an environment of this project."
        )


def check_bounds(space: Any, who: str) -> None:
    """Whether observations of a space are those of an environment of this project.

    Raises:
        ConfigError: a wrapper changed them.
    """
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None or (np.all(low == 0.0) and np.all(high == 1.0)):
        return
    raise ConfigError(
        f"{who} reads observations in [{np.min(low):g}, {np.max(high):g}], and those of the environment lie in [0, 1]: "
        "a wrapper changed them, and policies are asked without it. Train without that wrapper, or with VecNormalize, "
        "whose statistics SB3Policy takes from the model."
    )


def origin(scenario: Scenario) -> Description:
    """What a scenario is, but for what may differ between training and judging, as plain JSON values."""
    described = {name: value for name, value in scenario.describe().items() if name not in FOR_TRAINING}
    plain: Description = json.loads(json.dumps(described))  # as a zip gives it back
    return plain


def trained_in(model: Any) -> list[Description]:
    """The scenarios of its environments; of one read from a zip that of the rule that it began as; or none."""
    env = getattr(model, "env", None)
    try:
        scenarios = [] if env is None else env.get_attr("scenario")
    except AttributeError:  # no environment of this project
        scenarios = []
    described = [origin(one) for one in {id(one): one for one in scenarios}.values() if isinstance(one, Scenario)]
    start = began_in(model)
    return described or ([] if start is None else [start])


def began_in(model: Any) -> Description | None:
    """The scenario whose rule a residual began as."""
    network = getattr(getattr(model, "policy", None), "start", None)
    return network.get("scenario") if isinstance(network, Mapping) else None


def other_origin(known: list[Description], there: Scenario | Description) -> str:
    """The first thing in which none of these is that scenario; nothing where one is it, or where none is known."""
    described = origin(there) if isinstance(there, Scenario) else there
    return "" if not known or described in known else difference(known[0], described)
