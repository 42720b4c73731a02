"""Service-level objectives: time to first token (TTFT) and time per output token (TPOT), and what comes of them.

A request meets the first if its first token comes at most ``ttft_ns`` after its release, the second if from then on it
takes at most ``tpot_ns`` for each further token, in the mean. It is *late*, past its TTFT deadline, as soon as not even
the shortest prefill there is could meet the first if it began now. *Violations* are the counted requests (numbers
``first`` to ``last`` - 1; the others are the warm-up and the cut end) that violate an objective, each from the moment
when that is certain whatever its length: when it is late, has had its first token too late, or has ended too slowly.
Goodput is the share without a violation. Where iterations do not last what schedulers believe, a request is late by
what they believe, which is not certain: its TTFT is checked when the first token is emitted.
"""

from __future__ import annotations

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.arrays import int64s
from llmsched_env.engine.line import Line
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.view import Totals, View


class Slo:
    """The objectives of an episode; its totals count who has violated them.

    Attributes:
        problem: the case.
        enabled: whether there are objectives.
        ttft_ns: time to first token.
        tpot_ns: time per output token.
        least_prefill_ns: no prefill is shorter.
        first: number of the first request that counts.
        last: number after that of the last.
        certain: whether iterations last what schedulers believe.
        started_ns: (J,) int64: when the running request of each client had its first token.
        first_token_ns: (n,) int64: when a request that was preempted had it, by position.
        in_time: all numbers before it are late or have started.
    """

    problem: ProblemData
    enabled: cython.bint
    ttft_ns: cython.longlong
    tpot_ns: cython.longlong
    least_prefill_ns: cython.longlong
    first: cython.int
    last: cython.int
    certain: cython.bint
    started_ns: cython.longlong[::1]
    first_token_ns: cython.longlong[::1]
    in_time: cython.int

    def __init__(
        self,
        problem: ProblemData,
        ttft_ns: int = 0,
        tpot_ns: int = 0,
        least_prefill_ns: int = 0,
        first: int = 0,
        last: int = 0,
        certain: bool = True,
    ) -> None:
        self.problem = problem
        self.enabled = ttft_ns > 0
        self.ttft_ns = ttft_ns
        self.tpot_ns = tpot_ns
        self.least_prefill_ns = least_prefill_ns
        self.first = first
        self.last = last
        self.certain = certain
        self.started_ns = int64s(problem.num_clients if ttft_ns > 0 else 1)
        self.first_token_ns = int64s(problem.num_requests if ttft_ns > 0 else 1)
        self.in_time = 0

    def assign(self, other: Slo) -> cython.void:
        """Take over another one's state, of the same problem."""
        i: cython.int
        if not self.enabled:
            return
        for i in range(self.started_ns.shape[0]):
            self.started_ns[i] = other.started_ns[i]
        for i in range(self.first_token_ns.shape[0]):
            self.first_token_ns[i] = other.first_token_ns[i]
        self.in_time = other.in_time

    def counts(self, number: cython.int) -> cython.bint:
        """Whether the request counts."""
        return self.first <= number < self.last

    def violate_ttft(self, t: Totals) -> cython.void:
        """A counted request has violated its TTFT."""
        t.violations += 1
        t.ttft_violations += 1

    def pass_time(self, v: View, t: Totals, line: Line) -> cython.void:
        """Find the requests that are late by now."""
        position: cython.int
        number: cython.int
        last_ns: cython.longlong = v.clock_ns + self.least_prefill_ns - self.ttft_ns
        while line.late_until < line.next_release and self.problem.release_ns[line.late_until] < last_ns:
            number = line.late_until
            position = self.problem.position_of[number]
            line.late_until += 1
            if line.waits(position):
                v.late += 1
                line.turn_late(position)
                if self.certain and self.counts(number):
                    self.violate_ttft(t)
        number = line.late_until if line.late_until > self.in_time else self.in_time
        while number < line.next_release and not line.waits(self.problem.position_of[number]):
            number += 1
        self.in_time = number
        v.in_time_release_ns = self.problem.release_ns[number] if number < line.next_release else v.clock_ns

    def leave_queue(self, v: View, line: Line, position: cython.int) -> cython.void:
        """The request is taken from the queue."""
        if self.problem.number_of[position] < line.late_until:
            v.late -= 1

    def return_to_queue(
        self, v: View, t: Totals, line: Line, position: cython.int, was_late: cython.bint
    ) -> cython.void:
        """The request gives way before it had its first token; it was late, or not, when it was taken."""
        number: cython.int = self.problem.number_of[position]
        if number < line.late_until:
            v.late += 1
            if not was_late and self.certain and self.counts(number):
                self.violate_ttft(t)
        elif number < self.in_time:
            self.in_time = number
            v.in_time_release_ns = self.problem.release_ns[number]

    def start(
        self, v: View, t: Totals, line: Line, client: cython.int, position: cython.int, was_late: cython.bint
    ) -> cython.void:
        """The request has its first token now; it was late, or not, when it was taken."""
        number: cython.int = self.problem.number_of[position]
        ttft_ns: cython.longlong
        self.started_ns[client] = v.clock_ns
        if not self.counts(number):
            return
        ttft_ns = v.clock_ns - self.problem.release_ns[number]
        t.counted_started += 1
        t.ttft_sum_ns += ttft_ns
        if ttft_ns > self.ttft_ns and not (was_late and self.certain):  # else it was counted then
            self.violate_ttft(t)

    def suspend(self, v: View, client: cython.int, position: cython.int, tokens: cython.longlong) -> cython.void:
        """The running request stops with so many tokens, to go on later, or elsewhere."""
        self.first_token_ns[position] = self.started_ns[client]
        v.decoding_ns -= v.clock_ns - self.started_ns[client]
        v.decoding_tokens -= tokens - 1

    def resume(self, v: View, client: cython.int, position: cython.int, tokens: cython.longlong) -> cython.void:
        """The request goes on with so many tokens."""
        self.started_ns[client] = self.first_token_ns[position]
        v.decoding_ns += v.clock_ns - self.started_ns[client]
        v.decoding_tokens += tokens - 1

    def finish(self, v: View, t: Totals, client: cython.int, position: cython.int) -> cython.void:
        """The request is complete."""
        number: cython.int = self.problem.number_of[position]
        decodes: cython.longlong = self.problem.requests[position, codes.OUTPUT] - 1
        first_token_ns: cython.longlong = self.started_ns[client]
        elapsed_ns: cython.longlong = v.clock_ns - first_token_ns
        v.decoding_ns -= elapsed_ns
        v.decoding_tokens -= decodes
        if decodes == 0 or not self.counts(number):
            return
        t.counted_decoded += 1
        t.tpot_sum_ns += cython.cast(cython.double, elapsed_ns) / decodes
        if elapsed_ns > self.tpot_ns * decodes:
            t.tpot_violations += 1
            if first_token_ns - self.problem.release_ns[number] <= self.ttft_ns:
                t.violations += 1
