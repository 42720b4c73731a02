"""What a training run depends on, as its ``config.json`` keeps it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llmsched_env import __version__
from llmsched_env.config import Scenario
from llmsched_env.engine.features import features_of

__all__ = ["changed_versions", "difference", "fingerprint"]

PACKAGES = ("stable-baselines3", "sb3-contrib", "torch", "cmaes", "gymnasium", "numpy")


def fingerprint(asked: dict[str, Any], where: Scenario) -> dict[str, Any]:
    """All of it, as plain JSON values.

    Args:
        asked: what the run is asked to do.
        where: the agent learns.
    """
    return {
        "version": __version__,
        "training": asked,
        "scenario": where.describe(),
        "workload": _version_of(where),
        "observation": [feature.name for feature in features_of(where)],
        "actions": where.num_actions,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def changed_versions(config: dict[str, Any]) -> list[str]:
    """What of Python and the packages is of another version than ``config.json`` lists, in words."""
    then = {"Python": config.get("python"), **config.get("packages", {})}
    now = {"Python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    absent = "not installed"
    return [
        f"{name} {then.get(name) or absent}, now {version or absent}"
        for name, version in now.items()
        if then.get(name) != version
    ]


def difference(before: Any, now: Any) -> str:
    """The first thing that is not the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            return f"{name}: {difference(one, other)}"
        return f"{name} = {one!r}, now {other!r}"
    if isinstance(before, list) and isinstance(now, list):
        place = next((i for i, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]), None)
        if place is not None:
            return f"feature {place} = {before[place]!r}, now {now[place]!r}"
        return f"{len(before)} features, now {len(now)}"
    return f"{before!r}, now {now!r}"


def _version_of(scenario: Scenario) -> str | None:
    """What tells the content of a workload's file from another; nothing where it is no file."""
    version = getattr(scenario.source, "version", None)
    return None if version is None else str(version)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
