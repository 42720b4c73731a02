"""When requests come: arrival processes of one request per second in the mean, to be brought to any rate afterwards.

Times are whole nanoseconds. Request 0 comes at time 0, as in a recorded trace. Chance enters through raw words and
tables of integers alone, as for lengths: see :mod:`llmsched_env.workload.draws`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import ConfigError
from llmsched_env.workload.draws import Stream, raw_words
from llmsched_env.workload.lengths import check_number
from llmsched_env.workload.protocol import check_case, check_num_requests

__all__ = [
    "ArrivalProcess",
    "DiurnalArrivals",
    "GammaArrivals",
    "OnOffArrivals",
    "PoissonArrivals",
]

Times = NDArray[np.int64]

FAMILY = "arrivals"
"""Seeds all processes: case k of one is paired with case k of another, whatever their parameters."""

UNIT_NS = 10**9
"""Mean gap of a process at its own rate."""

STEPS_PER_OCTAVE = 256
LONGEST_OCTAVE = 38
"""Gaps reach 256 * 2**38 ns, some 70,000 mean gaps; the laws allowed here end sooner at 2**-32."""

TABLE_BITS = 32
"""A distribution function is kept to 2**-32: two builds of a special function round to the same table."""

PERIOD_STEPS = 4096
"""Pieces of constant rate in a period."""


@runtime_checkable
class ArrivalProcess(Protocol):
    """A source of release times at one request per second in the long run."""

    def release_ns(self, split: str, number: int, count: int) -> Times:
        """(count,) int64 release times of a case, never decreasing, the first 0; fewer are a prefix of more.

        Raises:
            UnknownNameError: no such split.
            ConfigError: a case number or count out of range.
        """
        ...


@dataclass(frozen=True)
class GammaArrivals:
    """Independent gamma gaps: bursty where ``cv`` is above 1, Poisson at 1, more regular below.

    Shape 1 / cv**2, mean 1 s. Gaps are drawn from a table of the distribution function with 256 steps an octave,
    linear between them: the mean is right to 1e-5, and gaps beyond the share 2**-32 do not occur.

    Attributes:
        cv: coefficient of variation of the gaps, their sd over their mean: 0 (all equal), or in [0.05, 20].

    Raises:
        ConfigError: out of range.
    """

    cv: float = 2.0

    def __post_init__(self) -> None:
        check_number("cv", self.cv, 0.0, 20.0)
        if 0.0 < self.cv < 0.05:
            raise ConfigError(f"cv = {self.cv} is out of range: pass 0 for equal gaps, or a number in [0.05, 20].")

    def release_ns(self, split: str, number: int, count: int) -> Times:
        """Release times of a case; see :class:`ArrivalProcess`."""
        split, number = check_case(split, number)
        count = check_num_requests(count)
        if self.cv == 0.0:
            return np.arange(count, dtype=np.int64) * UNIT_NS
        return _since_first(_gaps_ns(float(self.cv), raw_words(FAMILY, split, number, Stream.ARRIVAL, count - 1)))


@dataclass(frozen=True)
class PoissonArrivals:
    """Independent exponential gaps: requests that know nothing of one another. Equal to ``GammaArrivals(cv=1)``."""

    def release_ns(self, split: str, number: int, count: int) -> Times:
        """Release times of a case; see :class:`ArrivalProcess`."""
        return GammaArrivals(1.0).release_ns(split, number, count)


@dataclass(frozen=True)
class OnOffArrivals:
    """Poisson arrivals that are switched on and off: bursts with silence between (an interrupted Poisson process).

    With duty d and L requests in a burst: the rate while on is 1/d, on-times are exponential with mean L d seconds,
    off-times with mean L (1 - d). Request 0 comes while it is on. The squared coefficient of variation of the gaps
    is 1 + 2 L (1 - d)**2.

    Attributes:
        duty: share of time that it is on, in [0.001, 1]; at 1, Poisson.
        burst_requests: L, mean requests in an on-time, in [0.1, 10**6].

    Raises:
        ConfigError: out of range.
    """

    duty: float = 0.5
    burst_requests: float = 20.0

    def __post_init__(self) -> None:
        check_number("duty", self.duty, 0.001, 1.0)
        check_number("burst_requests", self.burst_requests, 0.1, 1e6)

    @property
    def cv(self) -> float:
        """Coefficient of variation of the gaps, in closed form."""
        return math.sqrt(1.0 + 2.0 * self.burst_requests * (1.0 - self.duty) ** 2)

    def release_ns(self, split: str, number: int, count: int) -> Times:
        """Release times of a case; see :class:`ArrivalProcess`."""
        split, number = check_case(split, number)
        count = check_num_requests(count)
        gaps = _scaled(_gaps_ns(1.0, raw_words(FAMILY, split, number, Stream.ARRIVAL, count - 1)), self.duty)
        on_time = _since_first(gaps)  # what the clock shows if it stands still while off
        if self.duty == 1.0:
            return on_time
        periods = 16 + 2 * int(on_time[-1] / UNIT_NS / (self.burst_requests * self.duty))
        while True:
            words = raw_words(FAMILY, split, number, Stream.STATE, 2 * periods)
            on_ends = np.cumsum(_scaled(_gaps_ns(1.0, words[::2]), self.burst_requests * self.duty))
            if on_ends[-1] > on_time[-1]:
                break
            periods *= 2
        off_times = np.cumsum(_scaled(_gaps_ns(1.0, words[1::2]), self.burst_requests * (1.0 - self.duty)))
        ended = np.searchsorted(on_ends, on_time, side="right")
        release: Times = on_time + np.concatenate([np.zeros(1, np.int64), off_times])[ended]
        return release


@dataclass(frozen=True)
class DiurnalArrivals:
    """A day's rhythm: another process, time-changed so that the rate at time t is 1 + a sin(2 pi (t / T + phase)).

    The period T holds ``period_requests`` requests in the mean, and so lasts as many seconds at one request per
    second; at another rate the day is longer or shorter, and as full. The rate is constant over each 4096th of it.
    Over whole periods the mean rate is 1; the cut one at the end of a case may hold more or less.

    Attributes:
        amplitude: a, in [0, 0.99].
        period_requests: requests in a period, in [1, 10**9].
        phase: where in its period the case begins, in [0, 1]; 0: at the mean rate, rising.
        base: the process whose time is changed.

    Raises:
        ConfigError: out of range, or ``base`` is no process.
    """

    amplitude: float = 0.5
    period_requests: float = 2500.0
    phase: float = 0.0
    base: ArrivalProcess = PoissonArrivals()

    def __post_init__(self) -> None:
        check_number("amplitude", self.amplitude, 0.0, 0.99)
        check_number("period_requests", self.period_requests, 1.0, 1e9)
        check_number("phase", self.phase, 0.0, 1.0)
        check_process("base", self.base)

    def release_ns(self, split: str, number: int, count: int) -> Times:
        """Release times of a case; see :class:`ArrivalProcess`."""
        expected = self.base.release_ns(split, number, count)  # the integral of the rate at each arrival
        period_ns = round(self.period_requests * UNIT_NS)
        integral, at = _period(float(self.amplitude), float(self.phase), period_ns)
        whole, rest = np.divmod(expected, np.int64(period_ns))
        piece = np.searchsorted(integral, rest, side="right") - 1
        slope = np.diff(at) / np.maximum(np.diff(integral), 1)
        within = np.floor((rest - integral[piece]) * slope[piece]).astype(np.int64)
        release: Times = whole * np.int64(period_ns) + np.minimum(at[piece] + within, at[piece + 1])
        return release


def check_process(name: str, process: object) -> None:
    """Check that something is an arrival process.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(process, type) or not isinstance(process, ArrivalProcess):
        raise ConfigError(
            f"{name} = {process!r} is not an arrival process: pass one such as GammaArrivals(cv=2.0), or an object "
            f"with release_ns(split, number, count)."
        )


def _since_first(gaps_ns: Times) -> Times:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(gaps_ns)])


def _scaled(times_ns: Times, factor: float) -> Times:
    # One product, correctly rounded everywhere.
    scaled: Times = np.floor(times_ns * float(factor)).astype(np.int64)
    return scaled


def _gaps_ns(cv: float, words: NDArray[np.uint64]) -> Times:
    """(n,) gaps of mean 1 s from (n,) words: the table's inverse, linear within a cell."""
    table, edges = _gap_table(cv)
    uniform = (words >> np.uint64(11)).astype(np.int64)  # [0, 2**53)
    cell = np.searchsorted(table, uniform, side="right") - 1
    share = (uniform - table[cell]) / np.diff(table)[cell]
    gaps: Times = edges[cell] + np.floor(share * np.diff(edges)[cell]).astype(np.int64)
    return gaps


@functools.lru_cache(maxsize=32)
def _gap_table(cv: float) -> tuple[Times, Times]:
    """Shares, times 2**53, of gaps up to each edge, and the edges in ns: (K,) each, from 0 to 2**53, increasing."""
    from scipy import special  # slow to import, and the paper's case has no arrivals

    mantissa = np.arange(STEPS_PER_OCTAVE, 2 * STEPS_PER_OCTAVE, dtype=np.int64)
    octaves = [mantissa << octave for octave in range(LONGEST_OCTAVE - 1)]
    edges = np.concatenate([np.arange(STEPS_PER_OCTAVE, dtype=np.int64), *octaves])
    shape = 1.0 / cv**2
    share: NDArray[Any] = special.gammainc(shape, edges * (shape / UNIT_NS))
    table = np.rint(share * 2.0**TABLE_BITS).astype(np.int64)
    # Cells in which nothing falls are dropped: the last edge with share 0, and one edge for each further value.
    first = int(np.searchsorted(table, 0, side="right")) - 1
    last = int(np.searchsorted(table, 2**TABLE_BITS, side="left"))
    assert last < len(table), "the law reaches beyond the table"
    table, edges = table[first : last + 1], edges[first : last + 1]
    rises = np.concatenate([[True], np.diff(table) > 0])
    table, edges = table[rises] << (53 - TABLE_BITS), edges[rises]
    table.setflags(write=False)
    edges.setflags(write=False)
    return table, edges


@functools.lru_cache(maxsize=32)
def _period(amplitude: float, phase: float, period_ns: int) -> tuple[Times, Times]:
    """The integral of the rate over one period, and the times: (PERIOD_STEPS + 1,) each, both from 0 to the period."""
    steps = np.arange(PERIOD_STEPS + 1)
    angle = 2.0 * np.pi * (steps / PERIOD_STEPS + phase)
    share = steps / PERIOD_STEPS - amplitude / (2.0 * np.pi) * (np.cos(angle) - np.cos(angle[0]))
    whole = np.rint(share * 2.0**TABLE_BITS).astype(np.int64)
    whole[0], whole[-1] = 0, 2**TABLE_BITS
    integral = np.array([value * period_ns >> TABLE_BITS for value in whole.tolist()], np.int64)
    at = np.array([step * period_ns // PERIOD_STEPS for step in range(PERIOD_STEPS + 1)], np.int64)
    return integral, at
