"""The one computation behind every timeline: how the client-time of each cell of clients × time was spent.

A cell is not sampled but measured: it holds the exact shares of its client-time, so a picture of any size conserves
time, and the mean of prefill and decode over a whole episode *is* the utilization.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes
from llmsched_env.errors import ConfigError
from llmsched_env.simulator import Records, Simulator

__all__ = ["COLOURS", "KINDS", "Measure", "colours", "kinds_of", "recorded", "shares", "waiting"]

KINDS = ("prefill", "decode", "stalled", "idle", "mixed")
"""What a client does: takes part in a prefill, decodes, holds a request while others prefill, holds none, decodes in an
iteration that reads prompts beside it."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "prefill": (213, 94, 0),
    "decode": (92, 145, 190),
    "stalled": (194, 212, 229),
    "idle": (253, 232, 170),
    "mixed": (0, 134, 106),
}
"""RGB of each kind: apart in hue for every common kind of colour vision, and in lightness when printed grey."""

Floats = NDArray[np.float64]
Shares = NDArray[np.float32]


def kinds_of(simulator: Simulator) -> tuple[str, ...]:
    """Those of `KINDS` that an episode can have."""
    return KINDS if int(simulator.view.mixed_tokens) > 0 else KINDS[:-1]


def recorded(simulator: Simulator) -> Records:
    """(n,) `SERVED` of an episode that was recorded from its beginning.

    Raises:
        ConfigError: it was not.
    """
    view, served = simulator.view, simulator.served
    if not len(served) or len(simulator.log) != int(view.prefills) + int(view.decodes):
        raise ConfigError(
            f"a timeline needs every iteration, and {len(simulator.log)} of "
            f"{int(view.prefills) + int(view.decodes)} were recorded: make the simulator with record=True, not a fork."
        )
    return served


class Measure(NamedTuple):
    """Time so far in iterations of one kind, as a function of the clock: piecewise linear between ``knots_ns``."""

    knots_ns: Floats  # (2 * iterations + 2,)
    total_ns: Floats  # (2 * iterations + 2,)

    @classmethod
    def of(cls, log: Records, counts: NDArray[np.bool_]) -> Measure:
        """Of the iterations that count, of a log of `ITERATION`."""
        knots = np.zeros(2 * len(log) + 1)
        knots[1::2], knots[2::2] = log["start_ns"], log["end_ns"]
        total = np.zeros_like(knots)
        np.cumsum((log["end_ns"] - log["start_ns"]) * counts, out=total[2::2])
        total[3::2] = total[2:-1:2]
        return cls(knots, total)

    def at(self, times_ns: Floats) -> Floats:
        """Its value at each time."""
        return np.interp(times_ns, self.knots_ns, self.total_ns)


class _Spans:
    """Spans [a, b) of time in rows of a grid, and how much of a measure of time they hold in each of its cells.

    A span is the difference of two half-lines, each of which holds a part of the cell where it begins and all of the
    cells after it. So the cost is that of the cells plus that of the spans, however long they are.
    """

    def __init__(self, edges_ns: Floats, rows: int, row: NDArray[np.int64], start_ns: Floats, end_ns: Floats) -> None:
        columns = len(edges_ns) - 1
        self._shape = (rows, columns + 1)
        self._edges_ns = edges_ns
        self._times_ns = np.clip(np.concatenate([start_ns, end_ns]), edges_ns[0], edges_ns[-1])
        self._sign = np.repeat([1.0, -1.0], len(row))
        column = np.searchsorted(edges_ns, self._times_ns, side="right") - 1
        self._cell = np.tile(row, 2) * (columns + 1) + column
        self._edge_after = np.minimum(column + 1, columns)
        self._open = np.zeros(self._shape)  # spans that go on from the cell before
        np.cumsum(self._sum(self._sign)[:, :-1], axis=1, out=self._open[:, 1:])

    def _sum(self, weight: Floats) -> Floats:
        laid: Floats = np.bincount(self._cell, weight, self._shape[0] * self._shape[1]).astype(np.float64, copy=False)
        return laid.reshape(self._shape)

    def held(self, measure: Measure | None) -> Floats:
        """(rows, columns): the measure in each cell; plain time for ``None``."""
        at_edges = self._edges_ns if measure is None else measure.at(self._edges_ns)
        at_times = self._times_ns if measure is None else measure.at(self._times_ns)
        begun = self._sum(self._sign * (at_edges[self._edge_after] - at_times))
        total: Floats = begun[:, :-1] + self._open[:, :-1] * np.diff(at_edges)
        return total


def shares(simulator: Simulator, edges_ns: Floats, rows: int) -> Shares:
    """How the client-time of each cell was spent.

    Where iterations are mixed, a request that is read in several is drawn as in a prefill from the first to the last.

    A request that was preempted, or has moved, is drawn on every client that it had, each from when it was taken there
    until it left.

    Args:
        simulator: a recorded episode.
        edges_ns: (columns + 1,) increasing; what lies after the clock stays empty.
        rows: at most J; client k is in row ``k * rows // J``.

    Returns:
        (5, rows, columns) float32 in the order of `KINDS`: fractions that sum to 1, or to 0 in cells after the clock.

    Raises:
        ConfigError: the episode was not recorded.
    """
    served, log = recorded(simulator), simulator.log
    num_clients, now_ns = simulator.problem.num_clients, float(simulator.view.clock_ns)
    edges_ns = np.minimum(np.asarray(edges_ns, np.float64), now_ns)
    client, start_ns, first_ns, end_ns = _stays(simulator, served)
    row = client * rows // num_clients
    size_of_row = np.bincount(np.arange(num_clients) * rows // num_clients, minlength=rows)
    width_ns = np.diff(edges_ns)
    per_ns = np.divide(1.0, width_ns, out=np.zeros_like(width_ns), where=width_ns > 0) / size_of_row[:, None]

    out = np.empty((len(KINDS), rows, len(width_ns)), np.float32)
    out[0] = _Spans(edges_ns, rows, row, start_ns, first_ns).held(None) * per_ns
    holding = _Spans(edges_ns, rows, row, first_ns, end_ns)
    decodes, mixes = log["prefill"] == 0, log["mixed"] != 0
    out[1] = holding.held(Measure.of(log, decodes & ~mixes)) * per_ns
    out[2] = holding.held(Measure.of(log, ~decodes)) * per_ns
    out[4] = holding.held(Measure.of(log, decodes & mixes)) * per_ns if mixes.any() else 0.0
    out[3] = width_ns > 0
    for share in (out[0], out[1], out[2], out[4]):
        np.maximum(share, 0.0, out=share)  # rounding
        out[3] -= share
    np.maximum(out[3], 0.0, out=out[3])
    return out


def _stays(simulator: Simulator, served: Records) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
    """(stays,) each: a client, when it began to take a request, when it had it, and when it was left by it."""
    events = simulator.events
    events = events[np.isin(events["event"], (codes.STARTED, codes.RESUMED, codes.SUSPENDED))]
    events = events[np.argsort(events["request"], kind="stable")]
    at = np.flatnonzero(events["event"] != codes.SUSPENDED)
    came, following = events[at], events[np.minimum(at + 1, len(events) - 1)]
    first = came["event"] == codes.STARTED  # perhaps read in several iterations
    begun_ns = simulator.log["start_ns"][came["iteration"]]
    start_ns = np.where(first, served["prefill_start_ns"][came["request"]], begun_ns)
    completion_ns = served["completion_ns"][came["request"]]
    end_ns = np.where(completion_ns > 0, completion_ns, int(simulator.view.clock_ns))
    left = (following["request"] == came["request"]) & (following["event"] == codes.SUSPENDED)
    end_ns = np.where(left, following["clock_ns"], end_ns)
    times = (one.astype(np.float64) for one in (start_ns, came["clock_ns"], end_ns))
    return came["client"].astype(np.int64), *times  # type: ignore[return-value]  # three of them


def waiting(simulator: Simulator, edges_ns: Floats) -> Floats:
    """(columns,) mean number of requests that wait in each column; NaN after the clock.

    Raises:
        ConfigError: the episode was not recorded.
    """
    served, now_ns = recorded(simulator), float(simulator.view.clock_ns)
    edges_ns = np.minimum(np.asarray(edges_ns, np.float64), now_ns)
    release_ns = np.minimum(simulator.problem.release_ns, now_ns)
    started = np.sort(served["prefill_start_ns"][served["first_token_ns"] > 0])
    leave_ns = np.full(len(release_ns), now_ns)
    leave_ns[: len(started)] = started  # counts do not ask which request it was
    spans = _Spans(edges_ns, 1, np.zeros(len(release_ns), np.int64), release_ns, leave_ns)
    width = np.diff(edges_ns)
    mean: Floats = np.divide(spans.held(None)[0], width, out=np.full(len(width), np.nan), where=width > 0)
    return mean


def colours(cells: Shares, blank: tuple[int, int, int] = (255, 255, 255)) -> NDArray[np.uint8]:
    """(rows, columns, 3) RGB of :func:`shares`: the colours of the kinds mixed by their shares."""
    mixed = np.empty((*cells.shape[1:], 3), np.uint8)
    for channel, paper in enumerate(blank):
        level = np.full(cells.shape[1:], paper + 0.5, np.float32)  # 0.5: the cast below rounds down
        for share, kind in zip(cells, KINDS, strict=True):
            level += share * np.float32(COLOURS[kind][channel] - paper)
        mixed[..., channel] = level
    return mixed
