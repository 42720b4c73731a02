"""What is kept of an episode that is recorded: every iteration, and each request's course.

While a request is decoded without a break, its tokens end with the decodes of the log, so nothing is kept of them.
"""

from __future__ import annotations

import cython
import numpy as np

from llmsched_env.engine import codes
from llmsched_env.engine.arrays import view_of
from llmsched_env.engine.view import View

FIRST_CAPACITY = 4096
FIRST_STAYS = 64


class Recorder:
    """The recordings of an episode.

    Attributes:
        enabled: whether anything is kept.
        capacity: iterations that the log holds.
        logged: iterations in it.
        log: (capacity, LOG_COLUMNS) int64.
        served: (n, SERVED_COLUMNS) int64, by position.
        left: entries of ``stays``.
        stays: (some, STAY_COLUMNS) int64: where requests were that have been preempted, or have moved.
        stands_still: whether a request that goes on has no new token then: its cache was copied.
    """

    enabled: cython.bint
    capacity: cython.longlong
    logged: cython.longlong
    log: cython.longlong[:, ::1]
    served: cython.longlong[:, ::1]
    left: cython.longlong
    stays: cython.longlong[:, ::1]
    stands_still: cython.bint

    def __init__(self, num_requests: int, enabled: bool, stands_still: bool) -> None:
        self.enabled = enabled
        self.capacity = FIRST_CAPACITY if enabled else 0
        self.logged = 0
        self.log = view_of(np.zeros((FIRST_CAPACITY if enabled else 1, codes.LOG_COLUMNS), np.int64))
        self.served = view_of(np.zeros((num_requests if enabled else 1, codes.SERVED_COLUMNS), np.int64))
        self.left = 0
        self.stays = view_of(np.zeros((FIRST_STAYS if enabled else 1, codes.STAY_COLUMNS), np.int64))
        self.stands_still = stands_still

    def clear(self) -> None:
        """Begin anew."""
        self.logged = 0
        self.left = 0
        if self.enabled:
            np.asarray(self.log)[:] = 0
            np.asarray(self.served)[:] = 0

    def grow(self) -> None:
        """Double the room for iterations."""
        old = np.asarray(self.log)
        self.log = view_of(np.concatenate([old, np.zeros_like(old)]))
        self.capacity *= 2

    def grow_stays(self) -> None:
        """Double the room for them."""
        old = np.asarray(self.stays)
        self.stays = view_of(np.concatenate([old, np.zeros_like(old)]))

    def full(self) -> cython.bint:
        """Whether there is no room for another iteration."""
        return self.enabled and self.logged >= self.capacity

    def note(
        self, start_ns: cython.longlong, v: View, prefill: cython.bint, busy: cython.longlong, mixed: cython.bint
    ) -> cython.void:
        """An iteration has ended."""
        self.log[self.logged, codes.START_NS] = start_ns
        self.log[self.logged, codes.END_NS] = v.clock_ns
        self.log[self.logged, codes.IS_PREFILL] = prefill
        self.log[self.logged, codes.BUSY] = busy
        self.log[self.logged, codes.IS_MIXED] = mixed
        self.logged += 1

    def start(self, v: View, client: cython.int, position: cython.int, start_ns: cython.longlong) -> cython.void:
        """The request has its first token now, of a prefill that began at ``start_ns``."""
        self.served[position, codes.SERVED_BY] = client
        self.served[position, codes.SINCE_DECODE] = v.decodes
        self.served[position, codes.PREFILL_START_NS] = start_ns
        self.served[position, codes.FIRST_TOKEN_NS] = v.clock_ns
        self.served[position, codes.TOKEN_NS] = v.clock_ns
        self.served[position, codes.TOKENS] = 1

    def suspend(self, v: View, position: cython.int) -> cython.void:
        """The request is preempted or moves now, after the last decode: note the gaps between its tokens till now."""
        left: cython.longlong = v.decodes - self.served[position, codes.SINCE_DECODE]
        self.leave(v, position)
        after_ns: cython.longlong = -1
        i: cython.longlong = self.logged - 1
        while left > 0 and i >= 0:
            if self.log[i, codes.IS_PREFILL] == 0:
                if after_ns >= 0:
                    self.widen(position, after_ns - self.log[i, codes.END_NS])
                else:
                    self.served[position, codes.PREEMPTED_NS] = self.log[i, codes.END_NS]
                after_ns = self.log[i, codes.END_NS]
                left -= 1
            i -= 1
        if after_ns >= 0:
            self.widen(position, after_ns - self.served[position, codes.TOKEN_NS])
        else:
            self.served[position, codes.PREEMPTED_NS] = self.served[position, codes.TOKEN_NS]

    def leave(self, v: View, position: cython.int) -> cython.void:
        """The request leaves its client now, before it is complete."""
        if self.left >= self.stays.shape[0]:
            with cython.gil:
                self.grow_stays()
        self.stays[self.left, codes.STAY_POSITION] = position
        self.stays[self.left, codes.STAY_CLIENT] = self.served[position, codes.SERVED_BY]
        self.stays[self.left, codes.STAY_SINCE_DECODE] = self.served[position, codes.SINCE_DECODE]
        self.stays[self.left, codes.STAY_LEFT_NS] = v.clock_ns
        self.left += 1

    def widen(self, position: cython.int, gap_ns: cython.longlong) -> cython.void:
        """Note a gap between two tokens of the request."""
        self.served[position, codes.GAP_NS] = max(self.served[position, codes.GAP_NS], gap_ns)

    def resume(self, v: View, client: cython.int, position: cython.int, tokens: cython.longlong) -> cython.void:
        """The request goes on with so many tokens, the last of them just now unless its cache was copied."""
        self.served[position, codes.SERVED_BY] = client
        self.served[position, codes.SINCE_DECODE] = v.decodes
        self.served[position, codes.TOKENS] = tokens
        if self.stands_still:
            self.served[position, codes.TOKEN_NS] = self.served[position, codes.PREEMPTED_NS]
        else:
            self.widen(position, v.clock_ns - self.served[position, codes.PREEMPTED_NS])
            self.served[position, codes.TOKEN_NS] = v.clock_ns

    def complete(self, v: View, position: cython.int) -> cython.void:
        """The request is complete."""
        self.served[position, codes.COMPLETION_NS] = v.clock_ns
