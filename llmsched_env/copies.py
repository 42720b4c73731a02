"""What many copies are made of, and told: a scenario each, the same spaces, memory that is there, an action each."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.actions import action_names, outside_space
from llmsched_env.config import Scenario
from llmsched_env.engine.features import Feature, features_of
from llmsched_env.errors import ConfigError, InvalidActionError
from llmsched_env.spec import merged, restored

__all__ = [
    "CLIENT_BYTES",
    "COPY_BYTES",
    "check_memory",
    "checked_actions",
    "memory_bytes",
    "one_each",
    "one_shape",
    "outside",
]

CLIENT_BYTES = 68
"""What a client takes in an episode."""

COPY_BYTES = 2**15
"""What an episode takes beside its clients and requests."""


def one_each(scenario: Any, arguments: dict[str, Any], count: int) -> tuple[Scenario, ...]:
    """(count,) the scenario of each copy, with these arguments.

    Raises:
        ConfigError: not a scenario, or not as many as copies.
    """
    scenario = restored("scenario", scenario)
    if scenario is None or isinstance(scenario, Scenario):
        return (merged(scenario, arguments),) * count
    if isinstance(scenario, str) or not isinstance(scenario, Sequence):
        raise ConfigError(
            f"scenario = {scenario!r} is neither a Scenario nor a list of them: make one with Scenario(...). That of "
            "an id is llmsched_env.make_scenario(id)."
        )
    scenarios = tuple(scenario)
    if len(scenarios) != count:
        raise ConfigError(f"{len(scenarios)} scenarios are given for {count} copies: give one each, or one for all.")
    return tuple(merged(one, arguments) for one in scenarios)


def one_shape(scenarios: Iterable[Scenario]) -> tuple[tuple[str, ...], tuple[Feature, ...]]:
    """Names of the actions, and features, the same in every scenario.

    Raises:
        ConfigError: they are not.
    """
    shapes = {(action_names(one), features_of(one)) for one in set(scenarios)}
    if len(shapes) > 1:
        sizes = sorted({(len(actions), len(table)) for actions, table in shapes})
        raise ConfigError(
            f"scenarios with {' and '.join(f'{a} actions and {f} features' for a, f in sizes)} do not go side "
            "by side: give all of them SLOs, a KV budget, choose_order, choose_cap and mixed_tokens, or none."
        )
    return shapes.pop()


def check_memory(copies: int, episode_bytes: int) -> None:
    """Before it is too late: on most systems an allocation succeeds, and the process is killed when it is used.

    Raises:
        ConfigError: more copies than memory holds.
    """
    needed, limit = copies * (COPY_BYTES + episode_bytes), memory_bytes()
    if needed > limit:
        raise ConfigError(
            f"{copies} copies need {needed / 2**30:.1f} GiB, but this machine has {limit / 2**30:.1f} GiB: make fewer, "
            "or with fewer clients."
        )


def memory_bytes() -> float:
    """What this machine or the container that we run in has."""
    try:
        limit = float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        limit = math.inf
    try:
        return min(limit, float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or "max"
        return limit


def checked_actions(actions: Any, count: int, names: Sequence[str]) -> NDArray[np.int64]:
    """(count,) int64: actions that came as something else.

    Raises:
        InvalidActionError: of the wrong shape or type, or out of every range.
    """
    try:
        numbers = np.asarray(actions)
    except ValueError:  # ragged
        numbers = np.array(None)
    if numbers.dtype.kind not in "iu" or numbers.shape != (count,):
        raise InvalidActionError(
            f"actions of shape {numbers.shape} and type {numbers.dtype} are given: one whole number a copy is needed, "
            f"shape ({count},)."
        )
    if numbers.dtype == np.uint64 and numbers.max() >= len(names):  # it would wrap
        raise outside(numbers, int(np.argmax(numbers >= len(names))), names)
    return numbers.astype(np.int64)


def outside(actions: NDArray[Any], copy: int, names: Sequence[str]) -> InvalidActionError:
    """The error for the action of a copy, which is not among those of these names."""
    return outside_space(f"action {actions[copy]} of copy {copy}", names)
