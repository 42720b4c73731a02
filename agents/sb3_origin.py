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

__all__ = ["OriginWarning", "began_in", "check_bounds", "normaliser", "origin", "other_origin", "trained_in"]

FOR_TRAINING = ("split", "reward", "skip_forced", "max_iterations")
"""Arguments of a scenario that may differ between training and judging."""

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
        ConfigError: its observations were changed by something that did not come with it.
    """
    wrapper = getattr(model, "get_vec_normalize_env", lambda: None)()
    if wrapper is not None and wrapper.norm_obs:
        if type(getattr(model, "policy", None)).__name__ == "ResidualPolicy":
            raise ConfigError(
                f"{who} is a residual on a rule and was trained under VecNormalize. The rule reads observations as "
                "they are: train with VecNormalize(..., norm_obs=False)."
            )
        seen: Normaliser = wrapper.normalize_obs
        return seen
    check_bounds(model.observation_space, who)
    last = getattr(model, "_last_obs", None)  # a zip keeps it
    if isinstance(last, np.ndarray) and last.size and not (last.min() >= 0.0 and last.max() <= 1.0):
        raise ConfigError(
            f"{who} was trained on normalised observations (its last ones lie in [{last.min():.3g}, {last.max():.3g}], "
            "those of the environment in [0, 1]), and the statistics did not come with it. Load it with them: "
            "PPO.load(path, env=VecNormalize.load(statistics, SB3VecEnv(1, scenario))); or train with "
            "VecNormalize(..., norm_obs=False)."
        )
    return None


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
