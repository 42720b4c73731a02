"""What an episode pays, and where it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsched_env.config.checks import check_flags, check_names, keep, whole

if TYPE_CHECKING:
    from llmsched_env.config.scenario import Scenario

__all__ = ["REWARDS", "EpisodeOptions", "check"]

REWARDS = ("excess", "makespan", "idle", "latency", "goodput")


@dataclass(frozen=True)
class EpisodeOptions:
    """Episodes.

    Attributes:
        reward: "excess", "makespan", "idle", "latency" or "goodput" (see llmsched_env.engine.reward).
        skip_forced: a step goes on through iterations that offer no choice.
        max_iterations: truncate an episode there; ``None`` for no horizon.
    """

    reward: str = "excess"
    skip_forced: bool = False
    max_iterations: int | None = None


def check(scenario: Scenario) -> None:
    """Check them.

    Raises:
        ConfigError: a value out of range.
        UnknownNameError: a reward that does not exist.
    """
    check_names(scenario, reward=REWARDS)
    check_flags(scenario, "skip_forced")
    if scenario.max_iterations is not None:
        keep(scenario, "max_iterations", whole("max_iterations", scenario.max_iterations, 1, 2**62))
