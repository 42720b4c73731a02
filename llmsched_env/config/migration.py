"""Caches that lie with clients, and thieves that take them over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from llmsched_env.config.checks import LARGEST, check_names, keep, number, real
from llmsched_env.config.mechanism import World
from llmsched_env.errors import ConfigError
from llmsched_env.units import percent_hint

__all__ = ["STEALS", "Migration", "MigrationOptions", "check"]

Steal = Literal["waiting", "running", "cheaper"]
STEALS: tuple[Steal, ...] = get_args(Steal)
"""What a thief takes of its victim: the head of its queue, the request that it runs, or where fewer tokens move."""


@dataclass(frozen=True, kw_only=True)
class MigrationOptions:
    """Migration.

    Attributes:
        cached_share: share of each prompt that is cached at the client in whose queue it waits: in [0, 1), in
            millionths, rounded down to whole tokens (client queues only).
        steal: what a thief takes of its victim. "waiting": the head of its queue. "running": the request that it runs;
            it then starts its head itself. "cheaper": the one with fewer tokens to move.
        move_gb_per_s: bandwidth at which a thief copies what is cached of that, in 10^9 bytes a second; ``None``: its
            tokens are computed again.
    """

    cached_share: float = 0.0
    steal: Steal = "waiting"
    move_gb_per_s: float | None = None

    @property
    def migrates(self) -> bool:
        """Whether stealing is anything but free and of waiting requests, or prompts are cached in part."""
        return self.cached_share > 0 or self.steal != "waiting"


@dataclass(frozen=True)
class Migration:
    """The same as the engine takes it.

    Attributes:
        cached_millionths: share of each prompt that is cached at home, below 1,000,000.
        steal: one of `STEALS`.
        token_ns: time to copy a token's cache to the thief; 0: it is computed again.
    """

    name: ClassVar[str] = "migration"
    cached_millionths: int = 0
    steal: Steal = "waiting"
    token_ns: int = 0

    def engine_options(self, world: World) -> dict[str, Any]:
        """Arguments of `llmsched_env.engine.migration.Migration`."""
        if self.cached_millionths == 0 and (self.steal == "waiting" or not world.stealing):
            return {}
        return {
            "enabled": True,
            "cached_millionths": self.cached_millionths,
            "steal": STEALS.index(self.steal),
            "token_ns": self.token_ns,
        }


def check(options: MigrationOptions) -> None:
    """Check it.

    Raises:
        ConfigError: a value out of range, or one that nobody would read.
        UnknownNameError: a name that does not exist.
    """
    check_names(options, steal=STEALS)
    share = number("cached_share", options.cached_share)
    if not 0 <= share < 1:
        raise ConfigError(
            f"cached_share = {options.cached_share!r} is out of range: it lies in [0, 1) (a prefill computes at "
            f"least one token).{percent_hint(share, 1)}"
        )
    keep(options, "cached_share", share)
    if options.move_gb_per_s is not None:
        rate = real("move_gb_per_s", options.move_gb_per_s, 1e-6, LARGEST["move_gb_per_s"])
        keep(options, "move_gb_per_s", rate)
