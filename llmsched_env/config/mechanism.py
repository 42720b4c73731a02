"""What every mechanism says of itself to the engine."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

__all__ = ["Mechanism", "World"]


class World(NamedTuple):
    """What a mechanism may depend on beside its own arguments.

    Attributes:
        least_prefill_ns: no prefill, and no mixed iteration that reads, is believed to be shorter.
        noisy: whether iterations may last something else than schedulers believe.
        stealing: whether clients with queues of their own take from others.
    """

    least_prefill_ns: int
    noisy: bool
    stealing: bool


class Mechanism(Protocol):
    """The options of one mechanism, for one case.

    Attributes:
        name: under which the engine finds them.
    """

    name: ClassVar[str]

    def engine_options(self, world: World) -> dict[str, Any]:
        """Arguments of the engine's class; empty where nothing is to be done."""
