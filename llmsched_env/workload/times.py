"""Times as recordings have them: from any origin, and in a unit that the file may not say.

Two rules for all readers. Times count from the first request. A unit is what the user or the column's name says;
numbers that look like another one are taken as they are, with a warning. Where neither says it (the keys of Mooncake,
with which two units are in use), other keys of the records decide, or a rate that only one of the units can give; else
the file is refused until the unit is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import FileFormatError, WorkloadError
from llmsched_env.units import warn_of_milliseconds

__all__ = [
    "FACTORS",
    "MAX_CLOCK_S",
    "MOONCAKE_BLOCK_TOKENS",
    "QWEN_BLOCK_TOKENS",
    "QWEN_KEY",
    "UNITS",
    "TimeUnit",
    "check_gaps",
    "has_blocks",
    "json_unit",
    "since_first",
]

Times = NDArray[np.int64]

TimeUnit = Literal["s", "ms"]
UNITS: tuple[TimeUnit, ...] = get_args(TimeUnit)

MAX_CLOCK_S = 4 * 10**9
"""The year 2096, in seconds since 1970: larger numbers are in another unit."""

MAX_SPAN_S = 10**9

SLOWEST_PER_S = 0.01
"""Requests a second in the mean below which a recording is in another unit: published ones have 0.2 to 75."""

LONG_GAP_S = 10
"""Whole seconds from one request to the next, in the mean, from which they may be milliseconds."""

ANY_LONG_GAP_S = 100
"""The same for seconds with decimals."""

SEVERAL = 10
"""Requests below which a file says nothing about its rate."""

QWEN_KEY = "chat_id"
"""A key that Qwen-Bailian's traces have beside Mooncake's; their timestamps are seconds."""

MOONCAKE_BLOCK_TOKENS = 512
"""Prompt tokens that each of the ``hash_ids`` of a record stands for in Mooncake's traces."""

QWEN_BLOCK_TOKENS = 16
"""The same in Qwen-Bailian's."""

FACTORS: Mapping[TimeUnit, int] = MappingProxyType({"s": 10**9, "ms": 10**6})


def since_first(path: Path, times_ns: Times) -> Times:
    """(n,) times that count from the first: a recording begins with its first request, whatever its clock showed.

    Raises:
        WorkloadError: they span more than 30 years, so that they are of two clocks.
    """
    counted: Times = times_ns - times_ns[0]
    if counted[-1] > MAX_SPAN_S * 10**9:
        raise WorkloadError(
            f"{path}: there are {counted[-1] / 3.15576e16:.3g} years from the first request to the last: write times "
            f"of one clock, at most {MAX_SPAN_S} s apart."
        )
    return counted


def has_blocks(hash_ids: object, prompt_tokens: int, block_tokens: int) -> bool:
    """Whether a record has one hash for each block of its prompt, the last one rounded up."""
    return isinstance(hash_ids, list) and len(hash_ids) == -(-prompt_tokens // block_tokens)


def json_unit(path: Path, span: float, count: int, *, qwen: bool, mooncake: bool) -> TimeUnit:
    """The unit of the timestamps of a recording with Mooncake's keys: milliseconds, or seconds in Qwen-Bailian's.

    Args:
        path: the file, for messages.
        span: from the first timestamp to the last, in their unit.
        count: timestamps.
        qwen: whether the records have :data:`QWEN_KEY`.
        mooncake: whether all records have one hash for each of Mooncake's blocks.

    Raises:
        FileFormatError: it can be either.
    """
    if qwen:
        return "s"
    if mooncake or span == 0:  # all at once, in any unit
        return "ms"
    per_s = (count - 1) / span  # if they are seconds
    if per_s <= SLOWEST_PER_S:
        return "ms"
    raise FileFormatError(
        path,
        f"its timestamps may be milliseconds, as Mooncake's ({1000 * per_s:.4g} requests a second over "
        f"{span / 1000:.4g} s), or seconds, as Qwen-Bailian's ({per_s:.4g} a second over {span:.4g} s). Say which: "
        f"'mooncake:{path}?unit=ms' or '...?unit=s'; in Python also TraceWorkload({str(path)!r}, unit='s').",
        column="timestamp",
    )


def check_gaps(path: Path, times_ns: Times, column: str) -> None:
    """Say that times read as seconds are so far apart that they may be milliseconds.

    Warns:
        UnitWarning: at least :data:`ANY_LONG_GAP_S`, or :data:`LONG_GAP_S` where all are whole numbers, from one
            request to the next in the mean.
    """
    gaps, span_ns = len(times_ns) - 1, int(times_ns[-1]) - int(times_ns[0])
    whole = not bool((times_ns % 10**9).any())
    if gaps + 1 < SEVERAL or span_ns < (LONG_GAP_S if whole else ANY_LONG_GAP_S) * 10**9 * gaps:
        return
    seen = f"a request every {span_ns / gaps / 1e9:.4g} seconds in the mean, over {span_ns / 86400e9:.4g} days"
    warn_of_milliseconds(path, column, f"{column} has {seen}{', all in whole numbers' * whole}")
