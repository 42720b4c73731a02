"""What is expected of the active clients: how many finish in the next decodes, by their estimates.

Kept up to date decode by decode, since each window of the view only takes in its far end and gives up its near one.
Rules that read none of it need not pay for it: then it is counted anew when somebody looks.
"""

from __future__ import annotations

import cython
import numpy as np

from llmsched_env.engine import codes, ring
from llmsched_env.engine.arrays import table_of
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.state import State
from llmsched_env.engine.view import View


class Forecast(State):
    """Who finishes at each decode to come, and how many are expected to.

    Every decode reads it, so it is no object of its own.

    Attributes:
        forecast_current: whether the view's fields (``due_1`` ... ``last_due``) are up to date.
        ring_mask: size of the ring less 1; the size is a power of two, at least the longest output and estimate.
        ring: ((mask + 1) * RING_COLUMNS,) int32: who finishes, and is expected to, by decode count modulo the size.
    """

    forecast_current: cython.bint
    ring_mask: cython.int
    ring: cython.int[::1]

    def __init__(self, problem: ProblemData) -> None:
        State.__init__(self, problem)
        mask = problem.ring_mask
        self.forecast_current = True
        self.ring_mask = mask
        self.ring = table_of(np.tile(np.array([-1, 0], np.int32), mask + 1))

    def assign_rings(self, other: Forecast) -> cython.void:
        """Take over when clients finish, and are expected to, from an episode of the same sizes."""
        i: cython.int
        self.forecast_current = other.forecast_current
        for i in range((self.ring_mask + 1) * codes.RING_COLUMNS):
            self.ring[i] = other.ring[i]

    def expect_nothing(self, v: View) -> cython.void:
        """Nothing is expected."""
        i: cython.int
        for i in range(self.ring_mask + 1):
            self.ring[ring.expected(self.ring_mask, i)] = 0
        v.due_1 = v.due_4 = v.due_16 = v.due_64 = v.due_256 = 0
        v.overdue = v.remaining = v.remaining_squared = 0
        v.last_due = 0
        self.forecast_current = True

    def pass_decode(self, v: View, active: cython.longlong) -> cython.void:
        """One decode has passed: ``v.decodes`` is its count, ``active`` clients took part."""
        now: cython.longlong = v.decodes
        mask: cython.longlong = self.ring_mask
        reached: cython.int = self.ring[ring.expected(mask, now)]
        on_time: cython.longlong = active - v.overdue
        at_1: cython.int = self.ring[ring.expected(mask, now + 1)]
        at_4: cython.int = self.ring[ring.expected(mask, now + 4)] if mask > 4 else 0
        at_16: cython.int = self.ring[ring.expected(mask, now + 16)] if mask > 16 else 0
        at_64: cython.int = self.ring[ring.expected(mask, now + 64)] if mask > 64 else 0
        at_256: cython.int = self.ring[ring.expected(mask, now + 256)] if mask > 256 else 0
        v.remaining_squared += on_time - 2 * v.remaining
        v.remaining -= on_time
        v.due_1 += at_1 - reached
        v.due_4 += at_4 - at_1
        v.due_16 += at_16 - at_4
        v.due_64 += at_64 - at_16
        v.due_256 += at_256 - at_64
        v.overdue += reached
        self.ring[ring.expected(mask, now)] = 0

    def expect(self, v: View, due: cython.longlong) -> cython.void:
        """A client has started that is expected to finish at decode ``due``."""
        left: cython.longlong = due - v.decodes
        if left <= 0:
            v.overdue += 1
            return
        self.ring[ring.expected(self.ring_mask, due)] += 1
        v.last_due = max(v.last_due, due)
        self.count_expected(v, left, 1)

    def expect_no_more(self, v: View, due: cython.longlong) -> cython.void:
        """A client that was expected to finish at ``due`` has stopped: complete, preempted or moved."""
        left: cython.longlong = due - v.decodes
        if left <= 0:
            v.overdue -= 1
            return
        self.ring[ring.expected(self.ring_mask, due)] -= 1
        while v.last_due > v.decodes and self.ring[ring.expected(self.ring_mask, v.last_due)] == 0:
            v.last_due -= 1
        self.count_expected(v, left, -1)

    def count_expected(self, v: View, left: cython.longlong, by: cython.longlong) -> cython.void:
        """Add ``by`` clients with so many decodes to go."""
        v.remaining += by * left
        v.remaining_squared += by * left * left
        if left <= 1:
            v.due_1 += by
        elif left <= 4:
            v.due_4 += by
        elif left <= 16:
            v.due_16 += by
        elif left <= 64:
            v.due_64 += by
        elif left <= 256:
            v.due_256 += by
