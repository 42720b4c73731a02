"""Whole schedules: played, written down, and asked what they still lost from some progress on.

*Loss* is the part of the makespan that decisions control (`llmsched_env.engine.reward.excess`), *progress* the
client-decodes done: the sum over decodes of the active clients.
"""

from __future__ import annotations

from collections.abc import Iterable

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes, reward
from llmsched_env.engine.arrays import int64s, view_of
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.view import Totals, View


class Schedule:
    """A whole schedule, written while it is played.

    Attributes:
        plan: (most,) decode count of each prefill.
        progress: (most,) progress after each prefill and, behind these, at the end.
        lost: (most,) loss there.
        last: number of prefills.
    """

    plan: cython.longlong[::1]
    progress: cython.longlong[::1]
    lost: cython.longlong[::1]
    last: cython.Py_ssize_t

    def __init__(self, most: int) -> None:
        self.plan = int64s(most)
        self.progress = int64s(most)
        self.lost = int64s(most)
        self.last = 0

    @property
    def loss(self) -> int:
        """Loss at its end."""
        return int(self.lost[self.last])

    @property
    def prefills(self) -> NDArray[np.int64]:
        """(prefills,): the plan."""
        return np.array(self.plan, np.int64)[: self.last]

    def play(self, e: Episode, rule: Rule, prefix: cython.longlong[::1]) -> cython.bint:
        """Play an episode to its end: the first prefills as in ``prefix``, the rest by ``rule``.

        Returns whether there was room for all prefills: requests that give way come back by prefills of their own.
        """
        prefill: cython.bint
        number: cython.Py_ssize_t
        while not e.done():
            number = cython.cast(cython.Py_ssize_t, e.view.prefills)
            prefill = e.view.ready > 0
            if prefill and e.view.active > 0:
                if number < prefix.shape[0]:
                    prefill = e.view.decodes >= prefix[number]
                else:
                    prefill = rule.act(e.view) == codes.PREFILL
            if prefill:
                if number + 1 >= self.plan.shape[0]:
                    return False
                self.plan[number] = e.view.decodes
            e.advance(1 if prefill else 0)
            if prefill:
                self.note(e.view, e.totals, e, number)
        self.last = cython.cast(cython.Py_ssize_t, e.view.prefills)
        self.note(e.view, e.totals, e, self.last)
        return True

    def note(self, v: View, t: Totals, e: Episode, at: cython.Py_ssize_t) -> cython.void:
        """Write progress and loss."""
        self.progress[at] = progress_of(v, t)
        self.lost[at] = reward.excess(v, t, e.problem)

    def to_go(self, at: cython.longlong) -> cython.double:
        """What it lost from progress ``at`` on, in proportion between its stages."""
        low: cython.Py_ssize_t = 0
        high: cython.Py_ssize_t = self.last
        middle: cython.Py_ssize_t
        length: cython.double
        share: cython.double
        if at >= self.progress[high]:
            return 0.0
        while high - low > 1:
            middle = (low + high) // 2
            if self.progress[middle] <= at:
                low = middle
            else:
                high = middle
        length = self.progress[high] - self.progress[low]
        share = at - self.progress[low]
        share = share / (length if length > 1.0 else 1.0)
        length = self.lost[high] - self.lost[low]
        return self.lost[self.last] - (self.lost[low] + share * length)


def progress_of(v: View, t: Totals) -> cython.longlong:
    """Client-decodes done."""
    return v.num_clients * v.decodes - t.idle_client_decodes


def follow(start: Episode, trial: Episode, rule: Rule, prefix: Iterable[int] = ()) -> Schedule:
    """The schedule from ``start`` on: the first prefills as in ``prefix``, the rest by ``rule``.

    Args:
        start: stays as it is.
        trial: another episode of the same case, to be overwritten.
        rule: is asked where both a prefill and a decode are feasible.
        prefix: decode count of each of the first prefills.
    """
    planned: cython.longlong[::1] = view_of(np.array([*prefix], np.int64))
    most: cython.Py_ssize_t = start.problem.num_requests + 1
    whole: cython.bint = False
    schedule: Schedule = Schedule(1)
    while not whole:
        schedule = Schedule(most)
        trial.restart(start)
        trial.set_forecast(rule.reads_forecast)
        rule.check()
        rule.begin()
        with cython.nogil:
            whole = schedule.play(trial, rule, planned)
        rule.end()
        most *= 2
    return schedule
