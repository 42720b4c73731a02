"""Numbers that look as if another unit was meant: what is doubted, and in which words."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["DOUBTED", "ApproximationWarning", "Doubt", "UnitWarning", "doubt", "percent_hint", "warn_of_milliseconds"]


class UnitWarning(UserWarning):
    """A number that is taken as it is written, and that looks as if another unit was meant."""


class ApproximationWarning(UserWarning):
    """A number that the input does not have, and that is estimated from what it has."""


class Doubt(NamedTuple):
    """Beyond what an argument is doubted.

    Attributes:
        above: larger values are doubted.
        takes: its unit.
        instead: the unit that is often written in its place, and how many of these make one of the right ones.
    """

    above: float
    takes: str
    instead: tuple[str, int]


DOUBTED: Mapping[str, Doubt] = MappingProxyType(
    {
        "ttft_s": Doubt(60.0, "seconds", ("milliseconds", 1000)),
        "tpot_s": Doubt(2.0, "seconds", ("milliseconds", 1000)),
        "kv_swap_gb_per_s": Doubt(10_000.0, "10^9 bytes a second", ("10^6 bytes a second", 1000)),
        "move_gb_per_s": Doubt(10_000.0, "10^9 bytes a second", ("10^6 bytes a second", 1000)),
    }
)
"""Argument of a scenario -> what nobody means by it: a minute to a first token, two seconds to each further one, a
link that is faster than any accelerator's memory."""


def doubt(name: str, value: float) -> str | None:
    """Why a value will be in another unit, with the remedy; ``None`` where it need not be."""
    rule = DOUBTED[name]
    if value <= rule.above:
        return None
    other, factor = rule.instead
    return f"{name} = {value:g} is taken as {rule.takes}. If {other} are meant, give {name} = {value / factor:g}."


def warn_of_milliseconds(path: Path, column: str, seen: str) -> None:
    """Say that a column of a file, which is read as seconds, may be in milliseconds.

    Args:
        path: the file.
        column: the column.
        seen: what makes it look so, as a clause.

    Warns:
        UnitWarning: always.
    """
    warnings.warn(f"{path}: {seen}. If these are milliseconds, divide {column} by 1000.", UnitWarning, stacklevel=3)


def percent_hint(value: float, most: float) -> str:
    """A sentence for a share that is out of range as it stands, and in range if it is a percentage; else nothing."""
    return f" As a share, {value:g} % is {value / 100:g}." if 1 <= value <= 1000 and value / 100 <= most else ""
