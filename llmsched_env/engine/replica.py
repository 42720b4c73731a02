"""One of several accelerators: an episode whose requests a router sends, one at a time, while it runs.

It is run up to the time of an arrival, and no further than the iteration that is then under way. What is seen of it is
its state before that iteration: who ends in it has not ended yet.
"""

from __future__ import annotations

from typing import Any

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.transition import Transition
from llmsched_env.engine.view import Totals, View

NEVER = 2**62


class Replica(Episode):
    """An accelerator with a rule of its own.

    Requests are numbered as they are sent here; a number is also the position in the table.

    Args:
        problem: room for the requests of the whole case on one shared queue, each of them released `NEVER`: none is
            there yet. It is this replica's own.
        options: of its mechanisms, by the name of each, SLOs among them.
        rule: decides.
        record: keep every iteration and the times of every request.

    Attributes:
        rule: as given.
        shown: what a router may know at the time up to which it was run, and of what was sent since.
        arrived: requests sent here so far.
        ends_ns: when the iteration that is under way then ends, as schedulers believe.
        stopped: whether the rule has raised.
        keeps_forecast: whether views are to say what is expected of active requests, whether or not the rule reads it.
    """

    rule: Rule
    shown: View
    arrived: cython.int
    ends_ns: cython.longlong
    stopped: cython.bint
    keeps_forecast: cython.bint

    def __init__(self, problem: ProblemData, options: dict[str, Any], rule: Rule, record: bool) -> None:
        Transition.__init__(self, problem, options, record)
        assert self.has_slo
        assert not self.has_queues
        rule.check()
        self.rule = rule
        self.shown = View()
        self.arrived = 0
        self.slo.first = self.slo.last = 0
        self.ends_ns = 0
        self.stopped = False
        self.keeps_forecast = False
        self.next_release_ns = NEVER
        self.arrivals = True
        self.settle(self.view, self.totals)
        self.shown.assign(self.view)
        rule.begin()

    def receive(
        self, prompt: int, output: int, estimate: int, release_ns: int, ranks: tuple[int, ...], counts: int
    ) -> None:
        """A request is sent here at its arrival, up to which the replica was run.

        Args:
            prompt: tokens of its prompt.
            output: tokens of its output.
            estimate: of them, as schedulers know it.
            release_ns: when it arrives, not before another that was sent here.
            ranks: its place in each ranking by length, among all requests of the case; none where there is no ranking.
            counts: 0 for the warm-up, 1 where it counts, 2 for the cut end, in this order.
        """
        number = self.arrived
        self.problem.requests[number, codes.PROMPT] = prompt
        self.problem.requests[number, codes.OUTPUT] = output
        self.problem.requests[number, codes.ESTIMATE] = estimate
        self.problem.release_ns[number] = release_ns
        for ranking, rank in enumerate(ranks):
            self.problem.ranking[number, ranking] = rank
            self.problem.ranking[rank, codes.RANKINGS + ranking] = number
        self.arrived = number + 1
        if counts == 0:
            self.slo.first = number + 1
        if counts < 2:
            self.slo.last = number + 1
        self.next_release_ns = min(self.next_release_ns, release_ns)
        if self.shown.waiting == 0:
            self.shown.oldest_release_ns = release_ns
        self.shown.waiting += 1
        self.shown.waiting_tokens += prompt
        self.shown.waiting_work += estimate

    def run_to(self, until_ns: int) -> None:
        """Run until an iteration reaches this time, or nothing is left to do; what it raises is the rule's."""
        self.check_idle()
        self.set_forecast(self.keeps_forecast or self.rule.reads_forecast)
        self.running = True
        try:
            while self.run_until(self.view, self.totals, until_ns):
                self.recorder.grow()
        finally:
            self.running = False
        if self.stopped:
            self.stopped = False
            self.rule.end()
        if self.view.clock_ns <= until_ns:
            self.shown.assign(self.view)
            self.ends_ns = self.view.clock_ns

    def run_until(self, v: View, t: Totals, until_ns: cython.longlong) -> cython.bint:
        """:meth:`run_to` until it is done, or the log is full: then it returns true."""
        action: cython.int
        start_ns: cython.longlong
        believed_ns: cython.longlong
        one: cython.longlong = 1
        never: cython.longlong = one << 62
        recording: cython.bint = self.records
        while True:
            if self.next_release_ns <= v.clock_ns or (self.next_release_ns < never and not self.has_work(v)):
                self.settle(v, t)
            if v.clock_ns >= until_ns or not self.has_work(v):
                return False
            if recording and self.recorder.full():
                return True
            action = self.choose(self.rule)
            if action == codes.STOP:
                self.stopped = True
                return False
            self.shown.assign(v)
            start_ns = v.clock_ns
            believed_ns = v.decode_ns
            if self.problem.kinds[action] == codes.PREFILL:
                believed_ns = v.prefill_ns
            elif self.problem.kinds[action] == codes.MIXED:
                believed_ns = v.mixed_ns
            self.run_iteration(v, t, action, self.problem.kinds[action])
            self.ends_ns = start_ns + believed_ns if self.has_noise else v.clock_ns

    def has_work(self, v: View) -> cython.bint:
        """Whether a request is there that is not complete."""
        return v.active > 0 or v.waiting > 0 or v.preempted > 0 or self.chunked.position >= 0
