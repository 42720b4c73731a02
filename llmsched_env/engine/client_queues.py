"""Queues of the clients' own: their heads, what idle clients have ready, and what a prefill is expected to hold."""

from __future__ import annotations

from typing import Any

import cython

from llmsched_env.engine import bitset, codes
from llmsched_env.engine.arrays import zero_words
from llmsched_env.engine.line import Line
from llmsched_env.engine.migration import Migration
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.stealing import Tournament
from llmsched_env.engine.view import Totals, View


class ClientQueues:
    """The queues of an episode; off where all clients share one.

    Attributes:
        problem: the case.
        enabled: whether clients have queues of their own.
        migration: the options of stealing.
        migrates: whether those are anything but free,
        stealing: whether idle clients take from others' queues,
        num_clients: and how many there are: as the migration and the problem have it.
        clients: the episode's table of clients, which has their queues.
        ready: the set of idle clients whose own queue is not empty.
        own_ready: how many there are.
        own_tokens: prompt tokens of the heads of their queues.
        own_work: estimated output tokens of those.
        own_cached: tokens of those that are cached at home.
        waiting_cached: tokens of all waiting requests that are cached at home.
        moves_ahead: tokens that thieves are expected to copy in the next prefill.
        tournament: who has the most work.
    """

    enabled: cython.bint
    migrates: cython.bint
    stealing: cython.bint
    num_clients: cython.int
    own_ready: cython.longlong
    own_tokens: cython.longlong
    own_work: cython.longlong
    tournament: Tournament
    problem: ProblemData
    clients: cython.int[:, ::1]
    ready: cython.ulonglong[::1]
    own_cached: cython.longlong
    waiting_cached: cython.longlong
    moves_ahead: cython.longlong
    migration: Migration

    def __init__(self, problem: ProblemData, clients: Any, migration: Migration) -> None:
        self.problem = problem
        self.enabled = not problem.shared
        self.migration = migration
        self.migrates = migration.enabled
        self.stealing = problem.stealing
        self.num_clients = problem.num_clients
        self.clients = clients
        self.ready = zero_words(bitset.words_needed(problem.num_clients))
        self.own_ready = 0
        self.own_tokens = 0
        self.own_work = 0
        self.own_cached = 0
        self.waiting_cached = 0
        self.moves_ahead = 0
        self.tournament = Tournament(problem.stealing, problem.num_clients, clients)

    def assign(self, other: ClientQueues) -> cython.void:
        """Take over another one's state, of the same problem, but for the table of clients."""
        i: cython.int
        if not self.enabled:
            return
        for i in range(self.ready.shape[0]):
            self.ready[i] = other.ready[i]
        self.own_ready = other.own_ready
        self.own_tokens = other.own_tokens
        self.own_work = other.own_work
        self.own_cached = other.own_cached
        self.waiting_cached = other.waiting_cached
        self.moves_ahead = other.moves_ahead
        self.tournament.assign(other.tournament)

    def cached(self, position: cython.int) -> cython.longlong:
        """Tokens of a request's prompt that are cached at home."""
        return self.migration.cached(self.problem.requests[position, codes.PROMPT])

    def count_head(self, client: cython.int, by: cython.int) -> cython.void:
        """Count the head of an idle client's queue among what is ready (1), or no more (-1)."""
        prompt: cython.longlong = self.clients[client, codes.HEAD_PROMPT]
        if by > 0:
            bitset.insert(self.ready, 0, self.num_clients, client)
        else:
            bitset.remove(self.ready, 0, self.num_clients, client)
        self.own_ready += by
        self.own_tokens += by * prompt
        self.own_work += by * self.clients[client, codes.HEAD_ESTIMATE]
        if self.migrates:
            self.own_cached += by * self.migration.cached(prompt)

    def set_head(self, queue: cython.int, position: cython.int) -> cython.void:
        """This one, or none (-1), is the first that waits there. Who falls idle need not look for what it is then."""
        self.clients[queue, codes.HEAD] = position
        if position >= 0:
            self.clients[queue, codes.HEAD_PROMPT] = self.problem.requests[position, codes.PROMPT]
            self.clients[queue, codes.HEAD_ESTIMATE] = self.problem.requests[position, codes.ESTIMATE]

    def arrive(self, position: cython.int) -> cython.void:
        """The request waits in its queue from now on."""
        queue: cython.int = self.problem.requests[position, codes.QUEUE]
        head: cython.int = self.clients[queue, codes.HEAD]
        idle: cython.bint = self.clients[queue, codes.RUNNING] < 0
        self.clients[queue, codes.WORK] += self.problem.requests[position, codes.ESTIMATE]
        if self.migrates:
            self.waiting_cached += self.cached(position)
        self.tournament.changed(queue)
        if 0 <= head < position:
            return
        if idle and head >= 0:
            self.count_head(queue, -1)
        self.set_head(queue, position)
        if idle:
            self.count_head(queue, 1)

    def source(self, v: View, client: cython.int) -> cython.int:
        """Whose queue an idle client takes from: its own, or where that is empty the victim's."""
        if self.clients[client, codes.HEAD] >= 0:
            return client
        return self.tournament.victim(v.decodes)

    def take(self, line: Line, t: Totals, queue: cython.int, client: cython.int) -> cython.void:
        """Remove the head of ``queue`` for ``client``, which is idle till then."""
        position: cython.int = self.clients[queue, codes.HEAD]
        counted: cython.bint = queue == client or self.clients[queue, codes.RUNNING] < 0
        head: cython.int
        line.leave(position)
        head = line.first(position + 1)
        if head >= self.clients[queue, codes.END]:
            head = -1
        self.clients[queue, codes.WORK] -= self.clients[queue, codes.HEAD_ESTIMATE]
        self.tournament.changed(queue)
        if self.migrates:
            self.waiting_cached -= self.migration.cached(self.clients[queue, codes.HEAD_PROMPT])
        if counted:
            self.count_head(queue, -1)
        self.set_head(queue, head)
        if queue != client:
            t.steals += 1
            if counted and head >= 0:
                self.count_head(queue, 1)  # a robbed idle client offers its next request instead

    def fall_idle(self, client: cython.int) -> cython.void:
        """The client has nothing to run any more."""
        if self.clients[client, codes.HEAD] >= 0:
            self.count_head(client, 1)
            self.tournament.changed(client)

    def preview(self, v: View) -> cython.void:
        """What a prefill now is expected to hold: only composing it tells whom a thief robs, and what that moves.

        The heads of the idle clients' own queues, plus an average waiting request for each steal, cut in proportion at
        the cap.
        """
        stolen: cython.longlong
        v.ready = self.own_ready
        v.batch_tokens = self.own_tokens
        v.batch_work = self.own_work
        if self.stealing:
            v.ready = v.idle if v.idle < v.waiting else v.waiting
            stolen = v.ready - self.own_ready
            if v.ready == v.waiting:
                v.batch_tokens = v.waiting_tokens
                v.batch_work = v.waiting_work
            elif stolen > 0:
                v.batch_tokens += stolen * v.waiting_tokens // v.waiting
                v.batch_work += stolen * v.waiting_work // v.waiting
        if self.migrates:
            self.expect_moves(v)
        v.batch_requests = v.ready
        if v.batch_tokens > v.token_cap and v.ready > 1:
            v.batch_requests = v.ready * v.token_cap // v.batch_tokens
            v.batch_requests = max(v.batch_requests, 1)
            v.batch_work = v.batch_work * v.batch_requests // v.ready
            v.batch_tokens = v.token_cap
            self.moves_ahead = self.moves_ahead * v.batch_requests // v.ready

    def expect_moves(self, v: View) -> cython.void:
        """Correct the preview: prompts are cached in part, and each theft moves what is usual.

        That is the cached part of an average waiting request, or the context of an average active client.
        """
        stolen: cython.longlong = v.ready - self.own_ready
        cached: cython.longlong = self.waiting_cached - self.own_cached
        moved: cython.longlong
        running: cython.longlong
        context: cython.longlong
        if v.ready < v.waiting:
            cached = stolen * self.waiting_cached // v.waiting
        moved = cached
        if self.migration.steal != codes.STEAL_WAITING and stolen > 0 and v.active > 0:
            running = stolen if stolen < v.active else v.active
            context = running * v.context_tokens // v.active + (stolen - running) * cached // stolen
            if self.migration.steal == codes.STEAL_RUNNING or context < cached:
                moved = context
        if stolen == 0:
            cached = 0
            moved = 0
        v.batch_tokens -= self.own_cached + cached
        self.moves_ahead = moved if self.migration.token_ns > 0 else 0
        if self.migration.token_ns == 0:
            v.batch_tokens += moved
