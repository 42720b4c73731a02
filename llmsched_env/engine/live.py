"""The state of an engine that really runs: what a policy may know of it, kept from what it is told.

An episode decides who joins an iteration, how long it lasts and when a request ends. Here an engine has decided, and
says so. All that follows from it (counts, forecasts, memory, objectives, previews) is the episode's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cython
import numpy as np

from llmsched_env.engine import bitset, codes
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.iteration import Iteration
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.transition import Transition
from llmsched_env.engine.view import Totals, View

NEVER = 2**62


class Live(Episode):
    """The requests of a running engine.

    Requests are numbered as they arrive; a number is also the position in the table, which has room for
    ``problem.num_requests`` of them. :meth:`move_into` goes on in another table.

    Args:
        problem: room for requests, on one shared queue: no request is there yet. Its output lengths are more than any
            request has, since the engine says when one ends.
        options: of its mechanisms, by the name of each, the KV cache among them.
        shows_kv: whether policies see the KV cache; who is preempted they see in any case.

    Attributes:
        shown: the view as the policy may see it.
        arrived: requests so far, in this table.
        elapsed_ns: what the iteration lasted that is being reported; -1: what was expected.
        expected_ns: what the last iteration should have lasted by the cost model; 0 where none ran.
    """

    shown: View
    shows_kv: cython.bint
    arrived: cython.int
    elapsed_ns: cython.longlong
    expected_ns: cython.longlong

    def __init__(self, problem: ProblemData, options: dict[str, Any], shows_kv: bool) -> None:
        Transition.__init__(self, problem, options, False)
        assert self.has_kv
        assert not self.has_queues
        self.shown = View()
        self.shows_kv = shows_kv
        self.arrived = 0
        self.elapsed_ns = 0
        self.expected_ns = 0
        self.next_release_ns = NEVER  # it says itself who has arrived
        self.arrivals = True
        self.recomposes = True
        self.settles = True

    # What a policy is asked, and what its answer would run.

    def arrive(self, prompt: int, estimate: int, release_ns: int) -> int:
        """A request is there: its number. The times of arrivals do not go back; :meth:`look` shows it."""
        number = self.arrived
        before = int(self.problem.release_ns[number - 1]) if number > 0 else 0
        self.problem.requests[number, codes.PROMPT] = prompt
        self.problem.requests[number, codes.ESTIMATE] = estimate
        self.problem.release_ns[number] = max(before, release_ns)
        self.arrived = number + 1
        return number

    def full(self) -> bool:
        """Whether there is no room for another request."""
        return bool(self.arrived >= self.problem.num_requests)

    def unseen(self, number: int) -> bool:
        """Whether a request has arrived since the last :meth:`look`."""
        return bool(number >= self.line.next_release)

    def look(self, clock_ns: int) -> View:
        """The view at a time, updated in place: who has arrived, who is late, what would run next."""
        self.look_at(self.view, self.totals, clock_ns)
        return self.shown

    def look_at(self, v: View, t: Totals, clock_ns: cython.longlong) -> cython.void:
        """:meth:`look` on the episode's view and totals."""
        if clock_ns > v.clock_ns:
            if self.has_slo:
                v.decoding_ns += (clock_ns - v.clock_ns) * v.active
            v.clock_ns = clock_ns
        if self.line.next_release < self.arrived:
            self.release(v, t)
        self.settle(v, t)
        self.shown.assign(v)
        if not self.shows_kv:
            self.shown.kv_budget_tokens = 0
            self.shown.kv_used = 0
            self.shown.kv_growth = 0
        if not self.problem.mixes:
            self.shown.mixed = 0
            self.shown.reading_tokens = 0

    def forced_action(self) -> int:
        """The action where there is no choice; -1 where nothing can run."""
        return -1 if self.feasible() == 0 else int(self.forced())

    def feasible_action(self, action: int) -> int:
        """The action, or what an episode runs in its place where it is not feasible."""
        kind = int(self.problem.kinds[action])
        if self.feasible() >> kind & 1:
            return action
        return 1 if kind == codes.DECODE else 0

    def rows(self, action: int) -> list[tuple[int, int]]:
        """Whom a feasible action would read: numbers, and tokens of each."""
        self.compose_action(self.view, action, self.problem.kinds[action])
        it = self.chosen
        return [(int(it.position[i]), int(it.tokens[i])) for i in range(it.rows)]

    def planned_ns(self, action: int) -> int:
        """What the iteration would last that :meth:`rows` has composed for this action."""
        return int(self.duration_ns(self.chosen, self.problem.kinds[action], self.believed))

    # What the engine has done.

    def passed(
        self,
        end_ns: int,
        decodes: bool,
        rows: Sequence[tuple[int, int, int]],
        preempted: Sequence[int],
        kind: int = -1,
    ) -> None:
        """An iteration has ended.

        Args:
            end_ns: when; it began at the last :meth:`look`. A negative one: it lasts what the cost model says.
            decodes: whether every active request had a token of it, but for the preempted.
            rows: number, tokens read and tokens left to read of each that was read. The one that was partly read
                before comes first, the one that is partly read now last.
            preempted: numbers, in the order in which they gave way, before it began.
            kind: codes.PREFILL or MIXED, where it might count as either; -1: by what it did.

        Raises:
            ValueError: an engine reads otherwise than a table of clients can say.
        """
        for number in preempted:
            self.give_up(self.view, self.totals, number)
        reading = self.chunked.position
        if rows and reading >= 0 and rows[0][0] != reading:
            raise ValueError(f"request {rows[0][0]} was read before {reading}, which is partly read")
        partly = None
        for number, _, left in rows:
            if partly is not None:
                raise ValueError(f"request {partly} is partly read, and {number} after it")
            if left > 0:
                partly = number
        if len(rows) > self.view.idle:
            raise ValueError(f"{len(rows)} requests were read, and {self.view.idle} clients are idle")
        it = self.chosen
        it.clear()
        for number, tokens, left in rows:
            it.position[it.rows] = number
            it.tokens[it.rows] = tokens
            it.rows += 1
            it.computed += tokens
            it.left = left
        self.elapsed_ns = -1 if end_ns < 0 else max(0, end_ns - self.view.clock_ns)
        self.has_mixed = True  # any engine may read a long prompt in parts
        self.end_iteration(self.view, self.totals, it, decodes, kind)
        self.has_mixed = self.problem.mixes

    def end_iteration(self, v: View, t: Totals, it: Iteration, decodes: cython.bint, kind: cython.int) -> cython.void:
        """:meth:`passed`, once its rows are written down."""
        in_system: cython.longlong = self.in_system(v)
        it.served = v.active if decodes else 0
        it.context = v.context_tokens if decodes else 0
        it.growth = self.kv.growth_at(v.decodes) if decodes else 0
        it.victims = 0
        it.drops_reading = False
        self.expected_ns = 0
        if it.served == 0 and it.rows == 0:
            return
        if it.rows == 0:
            kind = codes.DECODE
        elif it.served > 0:
            kind = codes.MIXED
        elif kind < 0:
            kind = codes.PREFILL
        self.expected_ns = self.duration_ns(it, kind, self.believed)
        if it.rows > 0:
            self.take_rows(v, it)
        self.finish(v, t, it, kind, in_system)

    def lasting_ns(self, v: View, it: Iteration, kind: cython.int) -> cython.longlong:
        """What the iteration lasted."""
        return self.expected_ns if self.elapsed_ns < 0 else self.elapsed_ns

    def client_of(self, number: cython.int) -> cython.int:
        """The client that runs a request, -1 for none."""
        client: cython.int
        for client in range(self.num_clients):
            if self.clients[client, codes.RUNNING] == number:
                return client
        return -1

    def give_up(self, v: View, t: Totals, number: cython.int) -> cython.void:
        """A request was preempted."""
        client: cython.int = self.client_of(number)
        if number == self.chunked.position:
            self.stop_reading(v, t)
        elif client >= 0:
            self.preempt(v, t, client)

    def ended(self, number: int) -> None:
        """A request is complete, or was aborted, wherever it was: it is counted as complete."""
        self.end_request(self.view, self.totals, number)

    def end_request(self, v: View, t: Totals, number: cython.int) -> cython.void:
        """:meth:`ended` on the episode's view and totals."""
        client: cython.int = self.client_of(number)
        held: cython.longlong
        if number == self.chunked.position:
            self.stop_reading(v, t)
        if client >= 0:
            held = self.context(client)
            self.unhook(v, client)
            self.problem.requests[number, codes.OUTPUT] = cython.cast(cython.int, self.emitted(client))
            self.clients[client, codes.HELD] = cython.cast(cython.int, held)
            self.complete(v, client)
            self.leave(v, 1, held)
            return
        v.completed += 1
        if bitset.contains(self.line.preempted, 0, number):
            self.line.set_preempted(number, False)
            v.preempted -= 1
        elif self.line.waits(number):
            self.line.leave(number)
            if self.has_slo:
                self.slo.leave_queue(v, self.line, number)
            v.waiting -= 1
            v.waiting_tokens -= self.problem.requests[number, codes.PROMPT]
            v.waiting_work -= self.problem.requests[number, codes.ESTIMATE]

    def move_into(self, other: Live) -> dict[int, int]:
        """Go on in another table, which is empty: the new number of each request that is there, by its old one."""
        clients = np.array(self.clients)
        running = clients[:, codes.RUNNING]
        there = {int(number) for number in running[running >= 0]}
        known = self.line.next_release
        there |= {n for n in range(self.arrived) if n >= known or self.line.is_there(n) or n == self.chunked.position}
        numbers = {old: new for new, old in enumerate(sorted(there))}
        other.assign_state(self)
        other.assign_rings(self)
        other.arrived = len(numbers)
        other.line.next_release = sum(old < known for old in numbers)
        other.line.late_until = sum(old < self.line.late_until for old in numbers)
        other.kv.assign_clients(self.kv)
        other.chunked.assign(self.chunked)
        other.chunked.position = numbers.get(self.chunked.position, -1)
        clients[:, codes.RUNNING] = [numbers.get(int(number), -1) for number in running]
        np.asarray(other.clients)[:] = clients
        np.asarray(other.idle)[:] = np.asarray(self.idle)
        np.asarray(other.slo.started_ns)[:] = np.asarray(self.slo.started_ns)
        kept = list(numbers)
        np.asarray(other.problem.requests)[: len(kept)] = np.asarray(self.problem.requests)[kept]
        np.asarray(other.problem.release_ns)[: len(kept)] = np.asarray(self.problem.release_ns)[kept]
        np.asarray(other.kv.emitted)[: len(kept)] = np.asarray(self.kv.emitted)[kept]
        if self.has_slo:
            np.asarray(other.slo.first_token_ns)[: len(kept)] = np.asarray(self.slo.first_token_ns)[kept]
        for old, new in numbers.items():
            self.line.copy_to(other.line, old, new)
        return numbers
