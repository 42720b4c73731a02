"""Stable-baselines3 and sb3-contrib, imported when an algorithm is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llmsched_env.errors import MissingExtraError, UnknownNameError

__all__ = ["LIBRARIES", "Library", "algorithm", "one_thread"]


class Library(NamedTuple):
    """Where an algorithm is.

    Attributes:
        package: that has it.
        kind: its class.
        sampled: whether it learns a distribution over actions, from which they can be drawn.
    """

    package: str
    kind: str
    sampled: bool


LIBRARIES = {
    "ppo": Library("stable_baselines3", "PPO", True),
    "maskable_ppo": Library("sb3_contrib", "MaskablePPO", True),
    "trpo": Library("sb3_contrib", "TRPO", True),
    "a2c": Library("stable_baselines3", "A2C", True),
    "dqn": Library("stable_baselines3", "DQN", False),
    "qrdqn": Library("sb3_contrib", "QRDQN", False),
    "ars": Library("sb3_contrib", "ARS", False),
}
"""Algorithms by name."""


def algorithm(name: str) -> Any:
    """The algorithm's class.

    Raises:
        UnknownNameError: no such algorithm.
        MissingExtraError: the extra `agents` is not installed.
    """
    if name not in LIBRARIES:
        raise UnknownNameError("algorithm", name, LIBRARIES)
    package, kind, _ = LIBRARIES[name]
    try:
        return getattr(importlib.import_module(package), kind)
    except ImportError as error:
        raise MissingExtraError(
            f"algorithm {name!r} needs torch and {package} ({error}): install the extra 'agents', "
            "pip install -e '.[agents]' from the clone."
        ) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: small networks are quickest so, and their sums the same whatever the machine.

    Raises:
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            f"training needs torch ({error}): install the extra 'agents', pip install -e '.[agents]' from the clone."
        ) from error
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
