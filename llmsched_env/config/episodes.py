"""What an episode pays, and where it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from llmsched_env.config.checks import check_flags, check_names, keep, whole

__all__ = ["REWARDS", "EpisodeOptions", "check"]

Reward = Literal["excess", "makespan", "idle", "latency", "goodput", "differential"]
REWARDS: tuple[Reward, ...] = get_args(Reward)


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions:
    """Episodes.

    Attributes:
        reward: "excess", "makespan", "idle", "latency", "goodput" or "differential" (see llmsched_env.engine.reward).
        skip_forced: a step goes on through iterations that offer no choice.
        max_iterations: truncate an episode there; ``None`` for no horizon.
    """

    reward: Reward = "excess"
    skip_forced: bool = False
    max_iterations: int | None = None


def check(options: EpisodeOptions) -> None:
    """Check them.

    Raises:
        ConfigError: a value out of range.
        UnknownNameError: a reward that does not exist.
    """
    check_names(options, reward=REWARDS)
    check_flags(options, "skip_forced")
    if options.max_iterations is not None:
        keep(options, "max_iterations", whole("max_iterations", options.max_iterations, 1, 2**62))
