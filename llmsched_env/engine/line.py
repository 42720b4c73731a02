"""Who waits, and in which order: the orders that a prefill may take waiting requests in, chosen anew each time.

An order is a ranking, by position or by estimated output length, and whether those past their TTFT deadline go behind
all others. On one shared queue positions are numbers of release where an order may be chosen, and late ones are those
before ``late_until``, since whoever came earlier is late earlier; so by release no more is needed than the set of those
that wait. For each other ranking there are two sets, of ranks: of the waiting requests that are not late, and of those
that are. Preempted requests go before all others, in queue order. Where the queue is
laid out longest first, an order may also be a window of it (`codes.WINDOW`): the waiting requests from some place on.
"""

from __future__ import annotations

import cython

from llmsched_env.engine import bitset, codes
from llmsched_env.engine.arrays import zero_words
from llmsched_env.engine.problem_data import ProblemData


class Line:
    """The waiting and the preempted requests of an episode.

    Attributes:
        problem: the case.
        waiting: the set of waiting positions.
        preempted: the set of preempted positions; empty but with a KV cache.
        ranked: four sets of waiting ranks, one after another: in time and late, by each of the two rankings.
        num_requests: of the problem,
        ranks: and whether some order of it goes by length.
        words: of a set.
        num_preempted: members of the latter.
        late_until: requests released before this number are late.
        next_release: number of the next request to be released.
        oldest: all numbers before it have started.
        window: where the window of the iteration that is composed begins, -1 without one.
    """

    problem: ProblemData
    num_requests: cython.int
    ranks: cython.bint
    num_preempted: cython.int
    late_until: cython.int
    next_release: cython.int
    oldest: cython.int
    window: cython.int
    words: cython.int
    waiting: cython.ulonglong[::1]
    preempted: cython.ulonglong[::1]
    ranked: cython.ulonglong[::1]

    def __init__(self, problem: ProblemData, keeps_preempted: bool) -> None:
        self.problem = problem
        words = bitset.words_needed(problem.num_requests)
        self.num_requests = problem.num_requests
        self.ranks = problem.ranked
        self.words = words
        self.waiting = zero_words(words)
        self.preempted = zero_words(words if keeps_preempted else 1)
        self.ranked = zero_words(4 * words if problem.ranked else 1)
        self.num_preempted = 0
        self.late_until = 0
        self.next_release = 0
        self.oldest = 0
        self.window = -1

    def assign(self, other: Line) -> cython.void:
        """Take over another one's state, of the same problem."""
        i: cython.int
        for i in range(self.waiting.shape[0]):
            self.waiting[i] = other.waiting[i]
        for i in range(self.preempted.shape[0]):
            self.preempted[i] = other.preempted[i]
        for i in range(self.ranked.shape[0]):
            self.ranked[i] = other.ranked[i]
        self.num_preempted = other.num_preempted
        self.late_until = other.late_until
        self.next_release = other.next_release
        self.oldest = other.oldest

    def enter(self, position: cython.int) -> cython.void:
        """The request waits from now on."""
        ranking: cython.int
        late: cython.int = 1 if self.problem.number_of[position] < self.late_until else 0
        bitset.insert(self.waiting, 0, self.num_requests, position)
        self.oldest = min(self.oldest, self.problem.number_of[position])
        if self.ranks:
            for ranking in range(codes.RANKINGS):
                bitset.insert(
                    self.ranked,
                    (2 * ranking + late) * self.words,
                    self.num_requests,
                    self.problem.ranking[position, ranking],
                )

    def leave(self, position: cython.int) -> cython.void:
        """The request waits no more."""
        ranking: cython.int
        late: cython.int
        bitset.remove(self.waiting, 0, self.num_requests, position)
        if self.ranks:
            late = 1 if self.problem.number_of[position] < self.late_until else 0
            for ranking in range(codes.RANKINGS):
                bitset.remove(
                    self.ranked,
                    (2 * ranking + late) * self.words,
                    self.num_requests,
                    self.problem.ranking[position, ranking],
                )

    def turn_late(self, position: cython.int) -> cython.void:
        """A waiting request is late from now on."""
        ranking: cython.int
        rank: cython.int
        if self.ranks:
            for ranking in range(codes.RANKINGS):
                rank = self.problem.ranking[position, ranking]
                bitset.remove(self.ranked, 2 * ranking * self.words, self.num_requests, rank)
                bitset.insert(self.ranked, (2 * ranking + 1) * self.words, self.num_requests, rank)

    def waits(self, position: cython.int) -> cython.bint:
        """Whether the request waits."""
        return bitset.contains(self.waiting, 0, position)

    def first(self, position: cython.int) -> cython.int:
        """The first position from this one on that waits, or -1."""
        return bitset.find_from(self.waiting, 0, self.num_requests, position)

    def set_preempted(self, position: cython.int, yes: cython.bint) -> cython.void:
        """The request is preempted, or goes on."""
        if yes:
            bitset.insert(self.preempted, 0, self.num_requests, position)
            self.num_preempted += 1
        else:
            bitset.remove(self.preempted, 0, self.num_requests, position)
            self.num_preempted -= 1

    def is_there(self, position: cython.int) -> cython.bint:
        """Whether the request waits, or is preempted."""
        return self.waits(position) or bitset.contains(self.preempted, 0, position)

    def copy_to(self, other: Line, position: cython.int, there: cython.int) -> cython.void:
        """Let the request stand in another line as it does here, at another position."""
        if self.waits(position):
            other.enter(there)
        if bitset.contains(self.preempted, 0, position):
            other.set_preempted(there, True)

    def oldest_release_ns(self) -> cython.longlong:
        """Release of the oldest waiting request, of which there is one."""
        while not bitset.contains(self.waiting, 0, self.problem.position_of[self.oldest]):
            self.oldest += 1
        return self.problem.release_ns[self.oldest]

    def following(self, order: cython.int, position: cython.int) -> cython.int:
        """Position of the waiting request that comes after ``position`` in this order, or -1; the first after -1."""
        n: cython.int = self.num_requests
        found: cython.int
        other: cython.int
        rank: cython.int
        ranking: cython.int
        late: cython.int
        if order >= codes.WINDOW and position < 0:
            return self.window
        if order == 0 or order >= codes.WINDOW:
            return bitset.find_from(self.waiting, 0, n, position + 1)
        if order == 1:
            late = 1 if 0 <= position < self.late_until else 0
            if not late:
                found = position + 1 if position + 1 > self.late_until else self.late_until
                found = bitset.find_from(self.waiting, 0, n, found)
                if found >= 0:
                    return found
            found = bitset.find_from(self.waiting, 0, n, position + 1 if late else 0)
            return found if found < self.late_until else -1
        ranking = (order >> 1) - 1
        rank = self.problem.ranking[position, ranking] if position >= 0 else -1
        if order & 1:
            found = -1
            if position < 0 or position >= self.late_until:
                found = bitset.find_from(self.ranked, 2 * ranking * self.words, n, rank + 1)
                rank = -1
            if found < 0:
                found = bitset.find_from(self.ranked, (2 * ranking + 1) * self.words, n, rank + 1)
        else:
            found = bitset.find_from(self.ranked, 2 * ranking * self.words, n, rank + 1)
            other = bitset.find_from(self.ranked, (2 * ranking + 1) * self.words, n, rank + 1)
            if found < 0 or 0 <= other < found:
                found = other
        return self.problem.ranking[found, codes.RANKINGS + ranking] if found >= 0 else -1

    def open_window(self, order: cython.int, waiting: cython.longlong, most: cython.longlong) -> cython.void:
        """Let a window of at most ``most`` of the ``waiting`` begin (order - WINDOW) / LAST_WINDOW of the way along."""
        left: cython.longlong = waiting - min(most, waiting)
        rank: cython.longlong = left * (order - codes.WINDOW) // codes.LAST_WINDOW
        self.window = bitset.nth(self.waiting, 0, self.num_requests, rank)

    def next_in_line(self, order: cython.int, position: cython.int) -> cython.int:
        """Who comes after ``position``, or -1; the first one after -1: preempted requests, then waiting ones."""
        found: cython.int
        if self.num_preempted > 0 and (position < 0 or bitset.contains(self.preempted, 0, position)):
            found = bitset.find_from(self.preempted, 0, self.num_requests, position + 1)
            if found >= 0:
                return found
            position = -1
        return self.following(order, position)
