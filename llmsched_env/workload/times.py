"""Times as recordings have them: from any origin, and in a unit that the file may not say.

One rule for all readers: times count from the first request. Where two units are in use for the same columns, the unit
is what the file shows, or what the user says; it is never guessed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import FileFormatError, WorkloadError
from llmsched_env.units import UnitWarning

__all__ = ["FACTORS", "MAX_CLOCK_S", "QWEN_KEY", "UNITS", "TimeUnit", "doubt_seconds", "json_unit", "since_first"]

Times = NDArray[np.int64]

TimeUnit = Literal["s", "ms"]
UNITS: tuple[TimeUnit, ...] = get_args(TimeUnit)

MAX_CLOCK_S = 4 * 10**9
"""The year 2096, in seconds since 1970: larger numbers are in another unit."""

MAX_SPAN_S = 10**9

FASTEST_PER_S = 100
"""Requests a second in the mean above which a recording of one service is doubtful: published ones have 0.2 to 75."""

SLOWEST_PER_S = 0.01

SEVERAL = 10
"""Requests below which a file says nothing about its rate."""

QWEN_KEY = "chat_id"
"""A key that Qwen-Bailian's traces have beside Mooncake's; their timestamps are seconds."""

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


def json_unit(path: Path, span: float, count: int, *, qwen: bool, whole: bool) -> TimeUnit:
    """The unit of the timestamps of a recording with Mooncake's keys: milliseconds, or seconds in Qwen-Bailian's.

    Args:
        path: the file, for messages.
        span: from the first timestamp to the last, in their unit.
        count: timestamps.
        qwen: whether the records have :data:`QWEN_KEY`.
        whole: whether all timestamps are whole, as Mooncake's are.

    Raises:
        FileFormatError: it can be either.
    """
    if qwen:
        return "s"
    if span == 0:
        return "ms"  # all at once, in any unit
    per_s = (count - 1) / span  # if they are seconds
    if 1000 * per_s <= (FASTEST_PER_S if whole else 1000 * SLOWEST_PER_S):
        return "ms"
    raise FileFormatError(
        path,
        f"its timestamps may be milliseconds, as Mooncake's ({1000 * per_s:.4g} requests a second over "
        f"{span / 1000:.4g} s), or seconds, as Qwen-Bailian's ({per_s:.4g} a second over {span:.4g} s). Say which: "
        f"'mooncake:{path}?unit=ms' or '...?unit=s'; in Python also TraceWorkload({str(path)!r}, unit='s').",
        column="timestamp",
    )


def doubt_seconds(path: Path, times_ns: Times, column: str) -> None:
    """Say that times read as seconds are so far apart that they will be milliseconds.

    Warns:
        UnitWarning: whole numbers, with more than 100 s from one request to the next in the mean.
    """
    count, span_ns = len(times_ns), int(times_ns[-1]) - int(times_ns[0])
    if count < SEVERAL or span_ns == 0 or bool((times_ns % 10**9).any()):
        return
    gap_s = span_ns / (count - 1) / 1e9
    if gap_s > 1 / SLOWEST_PER_S:
        warnings.warn(
            f"{path}: {column} has a request every {gap_s:.4g} seconds in the mean, over {span_ns / 86400e9:.4g} days, "
            f"all in whole numbers. If these are milliseconds, divide them by 1000.",
            UnitWarning,
            stacklevel=2,
        )
