"""Who runs where, and until when: the clients of an episode, and what each start and end changes.

A decode touches only the clients that finish in it, found in a ring of chains by decode count.
"""

from __future__ import annotations

from typing import Any

import cython
import numpy as np

from llmsched_env.engine import bitset, codes, ring
from llmsched_env.engine.arrays import table_of, zero_words
from llmsched_env.engine.chunked import Chunked
from llmsched_env.engine.client_queues import ClientQueues
from llmsched_env.engine.costs import Costs
from llmsched_env.engine.forecast import Forecast
from llmsched_env.engine.kv_cache import KVCache
from llmsched_env.engine.line import Line
from llmsched_env.engine.migration import Migration
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.recorder import Recorder
from llmsched_env.engine.slo import Slo
from llmsched_env.engine.view import Totals, View


class Slots(Forecast):
    """The clients of an episode and its mechanisms.

    Attributes:
        problem: the case.
        line: who waits.
        queues: queues of the clients' own.
        kv: the KV cache.
        chunked: mixed iterations.
        slo: service-level objectives.
        recorder: recordings.
        believed: what schedulers are told that iterations last. These repeat what the problem says: that of a thousand
            copies is in no near cache.
        actual: what they do.
        arrivals: whether a request is released later than another.
        first_release_ns: when the first one is.
        clients: (J, CLIENT_COLUMNS) int32; (J, QUEUE_COLUMNS) where they have queues of their own.
        idle: the set of idle clients that hold no request.
    """

    queues: ClientQueues
    line: Line
    arrivals: cython.bint
    first_release_ns: cython.longlong
    problem: ProblemData
    believed: Costs
    actual: Costs
    clients: cython.int[:, ::1]
    idle: cython.ulonglong[::1]
    kv: KVCache
    chunked: Chunked
    slo: Slo
    recorder: Recorder

    def __init__(self, problem: ProblemData, options: dict[str, Any], record: bool) -> None:
        Forecast.__init__(self, problem)
        self.take_terms(problem)
        columns = codes.CLIENT_COLUMNS if problem.shared else codes.QUEUE_COLUMNS
        clients = np.zeros((problem.num_clients, columns), np.int32)
        clients[:, codes.RUNNING] = clients[:, codes.NEXT] = -1
        if not problem.shared:
            clients[:, codes.HEAD] = -1
            clients[:, codes.END] = np.asarray(problem.queue_end)
        self.clients = table_of(clients)
        self.idle = zero_words(bitset.words_needed(problem.num_clients))
        for client in range(problem.num_clients):
            bitset.insert(self.idle, 0, problem.num_clients, client)
        self.kv = KVCache(problem, self.clients, **options.get("kv", {}))
        self.chunked = Chunked(**options.get("chunked", {}))
        self.slo = Slo(problem, **options.get("slo", {}))
        migration = Migration(**options.get("migration", {}))
        self.queues = ClientQueues(problem, self.clients, migration)
        self.has_slo = self.slo.enabled
        self.has_kv = self.kv.enabled
        self.has_queues = self.queues.enabled
        self.records = record
        self.has_mixed = problem.mixes
        self.line = Line(problem, self.has_kv)
        self.recorder = Recorder(
            problem.num_requests, problem.num_clients, record, self.kv.swap_token_ns > 0 or migration.token_ns > 0
        )
        self.view.set_limits(self.slo.ttft_ns, self.slo.tpot_ns, self.kv.budget, self.chunked.budget)

    def take_terms(self, problem: ProblemData) -> None:
        """Keep what iterations read of the problem: that of a thousand copies is in no near cache."""
        self.problem = problem
        self.num_clients = problem.num_clients
        self.believed = problem.believed
        self.actual = problem.actual
        self.reads_context = problem.believed.reads_context
        self.arrivals = problem.arrivals
        self.first_release_ns = problem.release_ns[0]

    def hand_out(self, problem: ProblemData) -> None:
        """Let each part that keeps the problem go on with this one, of the same sizes."""
        self.line.problem = problem
        self.queues.problem = problem
        self.kv.problem = problem
        self.kv.prefix.problem = problem
        self.slo.problem = problem

    def assign_slots(self, other: Slots) -> cython.void:
        """Take over the state of another episode of the same problem, but for rings and recordings."""
        i: cython.int
        column: cython.int
        self.assign_state(other)
        for i in range(self.problem.num_clients):
            for column in range(self.clients.shape[1]):
                self.clients[i, column] = other.clients[i, column]
        for i in range(self.idle.shape[0]):
            self.idle[i] = other.idle[i]
        self.line.assign(other.line)
        self.queues.assign(other.queues)
        self.kv.assign(other.kv)
        self.chunked.assign(other.chunked)
        self.slo.assign(other.slo)

    def fill_ending(self) -> cython.void:
        """Find out anew when clients finish, and are expected to: the problem has other lengths."""
        client: cython.int
        position: cython.int
        slot: cython.longlong
        for client in range(self.problem.ring_mask + 1):
            self.ring[ring.ending(self.ring_mask, client)] = -1
        for client in range(self.problem.num_clients):
            position = self.clients[client, codes.RUNNING]
            if position < 0:
                continue
            self.clients[client, codes.HELD] = (
                self.problem.requests[position, codes.PROMPT] + self.problem.requests[position, codes.OUTPUT]
            )
            slot = self.clients[client, codes.BASE] + self.problem.requests[position, codes.OUTPUT]
            slot = ring.ending(self.ring_mask, slot)
            self.clients[client, codes.NEXT] = self.ring[slot]
            self.ring[slot] = client
        self.forecast_current = False
        self.count_forecast()

    def context(self, client: cython.int) -> cython.longlong:
        """Prompt and output tokens of the request that the client runs."""
        return self.problem.requests[self.clients[client, codes.RUNNING], codes.PROMPT] + self.emitted(client)

    def emitted(self, client: cython.int) -> cython.longlong:
        """Output tokens of the request that the client runs."""
        return self.view.decodes - self.clients[client, codes.BASE]

    def start(
        self,
        v: View,
        client: cython.int,
        tokens: cython.longlong,
        start_ns: cython.longlong,
        was_late: cython.bint,
        resumed: cython.bint,
    ) -> cython.bint:
        """The client's request has been read, or copied: it has so many output tokens. Returns whether they are all.

        Args:
            v: the view.
            client: whose column RUNNING holds the request.
            tokens: output tokens that it has now.
            start_ns: when its reading began.
            was_late: whether it was past its deadline then.
            resumed: whether it had its first token before.
        """
        position: cython.int = self.clients[client, codes.RUNNING]
        output: cython.longlong = self.problem.requests[position, codes.OUTPUT]
        prompt: cython.longlong = self.problem.requests[position, codes.PROMPT]
        estimate: cython.longlong = self.problem.requests[position, codes.ESTIMATE]
        base: cython.longlong = v.decodes - tokens
        slot: cython.longlong
        self.clients[client, codes.BASE] = cython.cast(cython.int, base)
        self.clients[client, codes.DUE] = cython.cast(cython.int, base + estimate)
        self.clients[client, codes.HELD] = cython.cast(cython.int, prompt + output)
        v.context_tokens += prompt + tokens
        if self.records:
            if resumed:
                self.recorder.resume(v, client, position, tokens)
            else:
                self.recorder.start(v, client, position, start_ns)
        if self.has_slo:
            if resumed:
                self.slo.resume(v, client, position, tokens)
            else:
                self.slo.start(v, self.totals, self.line, client, position, was_late)
        if tokens == output:
            self.complete(v, client)
            return True
        slot = ring.ending(self.ring_mask, base + output)
        self.clients[client, codes.NEXT] = self.ring[slot]
        self.ring[slot] = client
        if self.forecast_current:
            self.expect(v, base + estimate)
        return False

    def complete(self, v: View, client: cython.int) -> cython.void:
        """Free a client whose request is complete; :meth:`leave` counts it."""
        position: cython.int = self.clients[client, codes.RUNNING]
        if self.records:
            self.recorder.complete(v, position)
        if self.has_slo:
            self.slo.finish(v, self.totals, client, position)
        if self.has_kv:
            self.kv.leave(v, client, self.clients[client, codes.HELD])
        self.vacate(client)

    def vacate(self, client: cython.int) -> cython.void:
        """The client runs nothing any more."""
        self.clients[client, codes.RUNNING] = -1
        self.clients[client, codes.DUE] = 0
        bitset.insert(self.idle, 0, self.num_clients, client)
        if self.has_queues:
            self.queues.fall_idle(client)

    def leave(self, v: View, finished: cython.longlong, held: cython.longlong) -> cython.void:
        """Count out so many active clients, which held ``held`` tokens."""
        v.context_tokens -= held
        v.completed += finished
        v.active -= finished
        v.idle += finished

    def unhook(self, v: View, client: cython.int) -> cython.void:
        """Take an active client out of what will finish and what is expected."""
        position: cython.int = self.clients[client, codes.RUNNING]
        at: cython.longlong = self.clients[client, codes.BASE] + self.problem.requests[position, codes.OUTPUT]
        slot: cython.longlong = ring.ending(self.ring_mask, at)
        other: cython.int = self.ring[slot]
        if other == client:
            self.ring[slot] = self.clients[client, codes.NEXT]
        else:
            while self.clients[other, codes.NEXT] != client:
                other = self.clients[other, codes.NEXT]
            self.clients[other, codes.NEXT] = self.clients[client, codes.NEXT]
        if self.forecast_current:
            self.expect_no_more(v, self.clients[client, codes.DUE])

    def preempt(self, v: View, t: Totals, client: cython.int) -> cython.void:
        """Take its request off an active client: it waits before all others, and goes on from what it has emitted."""
        position: cython.int = self.clients[client, codes.RUNNING]
        tokens: cython.longlong = self.emitted(client)
        context: cython.longlong = self.context(client)
        copying_ns: cython.longlong = context * self.kv.swap_token_ns
        self.unhook(v, client)
        self.kv.emitted[position] = cython.cast(cython.int, tokens)
        if self.has_slo:
            self.slo.suspend(v, client, position, tokens)
        if self.records:
            self.recorder.suspend(v, position)
        self.kv.leave(v, client, context)
        if copying_ns > 0:
            self.kv.swap_out_ns += copying_ns
            t.swap_ns += copying_ns
            t.swapped_tokens += context
        v.context_tokens -= context
        v.active -= 1
        v.idle += 1
        v.preempted += 1
        t.preemptions += 1
        self.vacate(client)
        self.line.set_preempted(position, True)

    def stop_reading(self, v: View, t: Totals) -> cython.void:
        """The partly prefilled request gives way: what was computed is lost, and it waits again."""
        position: cython.int = self.chunked.position
        if self.kv.shares:
            v.kv_used -= self.kv.prefix.release(position, self.chunked.computed)
        else:
            v.kv_used -= self.kv.reads(position, self.chunked.computed)
        self.kv.reserved -= self.kv.aside(position)
        t.preemptions += 1
        t.recomputed_tokens += self.chunked.computed - self.chunked.cached
        if self.records:
            self.recorder.happen(v, codes.DROPPED, self.chunked.client, position)
        if self.kv.emitted[position] > 0:
            self.line.set_preempted(position, True)
            v.preempted += 1
        else:
            self.line.enter(position)
            v.waiting += 1
            v.waiting_tokens += self.problem.requests[position, codes.PROMPT]
            v.waiting_work += self.problem.requests[position, codes.ESTIMATE]
            if self.has_slo:
                self.slo.return_to_queue(v, t, self.line, position, self.chunked.late)
        bitset.insert(self.idle, 0, self.problem.num_clients, self.chunked.client)
        self.chunked.position = -1
        self.chunked.computed = 0
        self.chunked.cached = 0
        v.reading_tokens = 0

    def give_way(self, v: View, t: Totals) -> cython.void:
        """Whoever is partly prefilled gives way, or the cache's next victim."""
        if self.chunked.position >= 0:
            self.stop_reading(v, t)
        else:
            self.preempt(v, t, self.kv.victim(v))

    def count_forecast(self) -> cython.void:
        """Count anew what is expected of the active clients, where nobody has kept it."""
        client: cython.int
        if self.forecast_current:
            return
        self.expect_nothing(self.view)
        for client in range(self.problem.num_clients):
            if self.clients[client, codes.RUNNING] >= 0:
                self.expect(self.view, self.clients[client, codes.DUE])
