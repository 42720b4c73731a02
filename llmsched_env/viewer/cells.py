"""The one computation behind every timeline: how the client-time of each cell of clients × time was spent.

A cell is not sampled but measured: it holds the exact shares of its client-time, so a picture of any size conserves
time, and the mean of prefill and decode over a whole episode *is* the utilization.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.layout import Records
from llmsched_env.errors import ConfigError
from llmsched_env.simulator import Simulator

__all__ = ["COLOURS", "KINDS", "Measure", "colours", "recorded", "shares", "waiting"]

KINDS = ("prefill", "decode", "stalled", "idle")
"""What a client does: takes part in a prefill, decodes, holds a request while others prefill, holds none."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "prefill": (213, 94, 0),
    "decode": (92, 145, 190),
    "stalled": (194, 212, 229),
    "idle": (255, 246, 214),
}
"""RGB of each kind: apart in hue for every common kind of colour vision, and in lightness when printed grey."""

Floats = NDArray[np.float64]


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
    def of(cls, log: Records, prefill: bool) -> Measure:
        """Of the prefills, or of the decodes, of a log of `ITERATION`."""
        knots = np.zeros(2 * len(log) + 1)
        knots[1::2], knots[2::2] = log["start_ns"], log["end_ns"]
        total = np.zeros_like(knots)
        counts = log["prefill"] == prefill
        np.cumsum((log["end_ns"] - log["start_ns"]) * counts, out=total[2::2])
        total[3::2] = total[2:-1:2]
        return cls(knots, total)

    def at(self, times_ns: Floats) -> Floats:
        """Its value at each time."""
        return np.interp(times_ns, self.knots_ns, self.total_ns)


class _Grid:
    """Cells of rows × columns, on which intervals are laid down: they begin at a time in a row, and end at one.

    The interval [a, b) leaves a fraction of its measure in the cells of a and b and all of it in between; written as a
    difference of two half-lines, that is one partial cell and one step each, so the cost is that of the cells plus
    that of the intervals.
    """

    def __init__(self, edges_ns: Floats, rows: int, row: NDArray[np.int64], times_ns: Floats, begins: bool) -> None:
        self.edges_ns, self.rows = edges_ns, rows
        self.columns = len(edges_ns) - 1
        self.times_ns = np.clip(times_ns, edges_ns[0], edges_ns[-1])
        self.column = np.searchsorted(edges_ns, self.times_ns, side="right") - 1
        self.flat = row * (self.columns + 1) + self.column
        self.sign = 1.0 if begins else -1.0

    def partial(self, at_edges: Floats, at_times: Floats) -> Floats:
        """(rows, columns): of each half-line, what lies in the cell where it begins."""
        weight = at_edges[np.minimum(self.column + 1, self.columns)] - at_times
        return self._lay(weight)[:, :-1]

    def before(self) -> Floats:
        """(rows, columns): how many half-lines began in earlier cells of the row."""
        through = np.cumsum(self._lay(None), axis=1)
        through[:, 1:] = through[:, :-1].copy()
        through[:, 0] = 0.0
        return through[:, :-1]

    def _lay(self, weight: Floats | None) -> Floats:
        size = self.rows * (self.columns + 1)
        laid = np.bincount(self.flat, weight, size).reshape(self.rows, self.columns + 1)
        return self.sign * laid
