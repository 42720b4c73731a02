"""What a workload is: a numbered pool of cases in each split, every one of them fixed for ever."""

from __future__ import annotations

import operator
from types import MappingProxyType
from typing import Literal, Protocol, get_args, runtime_checkable

from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.workload.requests import Requests

__all__ = ["MAX_REQUESTS", "POOL_SIZES", "SPLITS", "Workload", "check_case", "check_num_requests", "check_split"]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
"""Order is part of every case's seed: append, never reorder."""

POOL_SIZES = MappingProxyType({"train": 512, "validation": 100, "test": 100})
"""Cases in the default pool of each split; higher numbers exist too and are made on demand."""

MAX_REQUESTS = 2**24
"""Most requests in one case: sums of ``MAX_REQUESTS`` token counts stay far inside 64-bit integers."""


@runtime_checkable
class Workload(Protocol):
    """A source of cases.

    A *case* is fixed by (workload, split, number): the same requests in the same order, in every process, on every
    machine, whatever was drawn before. Any object with these members may be used where a workload is expected. One that
    reads what may change, such as a file, also has a hashable ``version`` that changes with it.
    """

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def pool_size(self, split: str) -> int | None:
        """Number of cases in the default pool of a split, or ``None`` where there is no natural number of them.

        Raises:
            UnknownNameError: no such split.
        """
        ...

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests of one case.

        Args:
            split: one of :data:`SPLITS`.
            number: of the case, from 0; may lie beyond the default pool.
            num_requests: how many; ``None`` is the natural size. Another size is the *scaled* case: requests drawn
                with replacement.

        Raises:
            UnknownNameError: no such split.
            ConfigError: a number or a size that no case can have.
        """
        ...


def check_split(split: object) -> str:
    """The split, if it is one.

    Raises:
        UnknownNameError: it is not.
    """
    if not isinstance(split, str) or split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    return split


def check_case(split: object, number: object) -> tuple[str, int]:
    """A valid (split, case number), the number as a Python int.

    Raises:
        UnknownNameError: no such split.
        ConfigError: a number that is negative, not whole, or a bool.
    """
    split = check_split(split)
    value = _whole("case number", number)
    if not 0 <= value < 2**63:
        raise ConfigError(f"case number {value} is out of range: cases are numbered from 0 to 2**63 - 1.")
    return split, value


def check_num_requests(num_requests: object) -> int:
    """A valid number of requests, as a Python int.

    Raises:
        ConfigError: below 1, above :data:`MAX_REQUESTS`, not whole, or a bool.
    """
    value = _whole("num_requests", num_requests)
    if not 1 <= value <= MAX_REQUESTS:
        raise ConfigError(f"num_requests = {value} is out of range: a case has 1 to {MAX_REQUESTS} requests.")
    return value


def _whole(name: str, value: object) -> int:
    # numpy integers pass; True would silently mean 1.
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise ConfigError(f"{name} {value!r} is not a whole number: pass an int.")
