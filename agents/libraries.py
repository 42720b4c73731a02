"""Stable-baselines3 and sb3-contrib, imported when an algorithm is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from llmsched_env.errors import MissingExtraError, UnknownNameError

__all__ = ["ALGORITHMS", "algorithm"]

ALGORITHMS = {
    "ppo": ("stable_baselines3", "PPO"),
    "a2c": ("stable_baselines3", "A2C"),
    "dqn": ("stable_baselines3", "DQN"),
    "maskable_ppo": ("sb3_contrib", "MaskablePPO"),
}
"""Name -> (package, class)."""


def algorithm(name: str) -> Any:
    """The algorithm's class.

    Raises:
        UnknownNameError: no such algorithm.
        MissingExtraError: the extra `agents` is not installed.
    """
    if name not in ALGORITHMS:
        raise UnknownNameError("algorithm", name, ALGORITHMS)
    package, kind = ALGORITHMS[name]
    try:
        return getattr(importlib.import_module(package), kind)
    except ImportError as error:
        raise MissingExtraError(
            f"algorithm {name!r} needs torch and {package} ({error}): install the extra 'agents', "
            "pip install -e '.[agents]' from the clone."
        ) from error
