"""Caches that lie with clients, and thieves that take them over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsched_env.config.checks import LARGEST, changed, check_names, keep, number, real
from llmsched_env.errors import ConfigError
from llmsched_env.units import percent_hint

if TYPE_CHECKING:
    from llmsched_env.config.scenario import Scenario

__all__ = ["STEALS", "MigrationOptions", "Moves", "check", "moves_of"]

STEALS = ("waiting", "running", "cheaper")
"""What a thief takes of its victim: the head of its queue, the request that it runs, or where fewer tokens move."""


@dataclass(frozen=True)
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
    steal: str = "waiting"
    move_gb_per_s: float | None = None

    @property
    def moves(self) -> bool:
        """Whether stealing is anything but free and of waiting requests, or prompts are cached in part."""
        return self.cached_share > 0 or self.steal != "waiting"


@dataclass(frozen=True)
class Moves:
    """The same as the engine takes it.

    Attributes:
        cached_millionths: share of each prompt that is cached at home, below 1,000,000.
        steal: one of `STEALS`.
        token_ns: time to copy a token's cache to the thief; 0: it is computed again.
    """

    cached_millionths: int = 0
    steal: str = "waiting"
    token_ns: int = 0


def check(scenario: Scenario) -> None:
    """Check it.

    Raises:
        ConfigError: a value out of range, or one that nobody would read.
        UnknownNameError: a name that does not exist.
    """
    check_names(scenario, steal=STEALS)
    share = number("cached_share", scenario.cached_share)
    if not 0 <= share < 1:
        raise ConfigError(
            f"cached_share = {scenario.cached_share!r} is out of range: it lies in [0, 1) (a prefill computes at "
            f"least one token).{percent_hint(share, 1)}"
        )
    keep(scenario, "cached_share", share)
    if scenario.move_gb_per_s is not None:
        found = real("move_gb_per_s", scenario.move_gb_per_s, 1e-6, LARGEST["move_gb_per_s"])
        keep(scenario, "move_gb_per_s", found)
    for name in changed(scenario, MigrationOptions):
        value = getattr(scenario, name)
        if scenario.queue != "client":
            raise ConfigError(
                f"{name} = {value!r} with queue = {scenario.queue!r}: caches lie with clients that have queues of "
                "their own. Set queue='client', or leave it out."
            )
        if name == "move_gb_per_s" and not scenario.moves:
            raise ConfigError(
                f"move_gb_per_s = {value!r} where nothing is moved: nobody would read it. Give cached_share or "
                "steal, or leave it out."
            )
        if not scenario.stealing and name != "cached_share":
            raise ConfigError(
                f"{name} = {value!r} with stealing = False: nobody takes anything. Set stealing=True, or leave it out."
            )


def moves_of(scenario: Scenario) -> Moves | None:
    """What lies with clients and what thieves move; ``None`` where stealing is free."""
    if not scenario.moves:
        return None
    bandwidth = scenario.move_gb_per_s
    return Moves(
        min(999_999, round(scenario.cached_share * 10**6)),
        scenario.steal,
        0 if bandwidth is None else max(1, round(scenario.kv_bytes_per_token / bandwidth)),
    )
