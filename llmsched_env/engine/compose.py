"""Who joins the next iteration, with how many tokens: a batch of rows.

A prefill, a decode, a chunk, a recompute and a copy are composed alike. On a shared queue composing changes nothing: a
preview is an iteration that is composed and not run. On client queues it takes requests as it goes, since each theft
changes whom the next thief robs.
"""

from __future__ import annotations

from typing import Any

import cython

from llmsched_env.engine import bitset, codes, token_slack
from llmsched_env.engine.costs import Costs
from llmsched_env.engine.iteration import Iteration
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.slots import Slots
from llmsched_env.engine.view import Totals, View


class Composer(Slots):
    """Composes the iterations of an episode.

    Attributes:
        next_prefill: the prefill that action 1 would run (shared queue).
        next_mixed: the mixed iteration that the first such action would run.
        chosen: the iteration of another action.
        window_from: where previews do not change at any place: where the previewed batch ends,
        window_full: and whether the next request would exceed the cap.
    """

    next_prefill: Iteration
    next_mixed: Iteration
    chosen: Iteration
    window_from: cython.int
    window_full: cython.bint

    def __init__(self, problem: ProblemData, options: dict[str, Any], record: bool) -> None:
        Slots.__init__(self, problem, options, record)
        self.next_prefill = Iteration(problem.num_clients)
        self.next_mixed = Iteration(problem.num_clients)
        self.chosen = Iteration(problem.num_clients)
        self.window_from = 0
        self.window_full = False
        self.recomposes = problem.shared and (self.has_kv or problem.mixes or problem.orders[1] != 0)

    def assign_previews(self, other: Composer) -> cython.void:
        """Take over the previews of another episode of the same problem."""
        self.next_prefill.assign(other.next_prefill)
        if self.problem.mixes:
            self.next_mixed.assign(other.next_mixed)
        self.window_from = other.window_from
        self.window_full = other.window_full

    def compose(
        self,
        v: View,
        it: Iteration,
        kind: cython.int,
        order: cython.int,
        most: cython.longlong,
        counts_ready: cython.bint,
    ) -> cython.void:
        """Compose an iteration on a shared queue.

        Args:
            v: the view.
            it: takes the answer.
            kind: codes.DECODE, PREFILL or MIXED.
            order: in which it takes waiting requests.
            most: rows at most.
            counts_ready: whether to go on, beyond the cap on tokens, as long as the KV cache lets somebody in.
        """
        decoding: cython.bint = kind != codes.PREFILL and v.active > 0
        whole: cython.bint = kind == codes.PREFILL or self.chunked.whole_prompts
        room: cython.longlong = self.problem.token_cap
        reading: cython.int = self.chunked.position
        context: cython.longlong = 0
        it.clear()
        self.plan_decode(v, it, decoding)
        if kind == codes.DECODE or it.victims > 0 or it.drops_reading:
            return
        if kind == codes.MIXED:
            room = self.chunked.room(it.served)
            if self.chunked.within_slack and it.served > 0:
                room = min(
                    room, token_slack.tokens_in_time(v, self.believed, self.clients, self.slo.started_ns, it.context)
                )
        if reading >= 0:
            context = self.chunked.computed + v.reading_tokens + 1
            if not self.read_on(v, it, kind, room, whole):
                return
        if self.has_kv:
            self.kv.begin(v, it, decoding, reading, context)
        if self.admit_rows(v, it, order, most, room, whole, counts_ready) or order == self.problem.orders[1]:
            return
        # Where the first in this order does not fit, it goes by the order of action 1, in which somebody may.
        self.kv.begin(v, it, decoding, reading, context)
        self.admit_rows(v, it, self.problem.orders[1], most, room, whole, counts_ready)

    def plan_decode(self, v: View, it: Iteration, decoding: cython.bint) -> cython.void:
        """Whom the iteration serves, and who gives way for that."""
        it.served = v.active if decoding else 0
        it.context = v.context_tokens if decoding else 0
        it.growth = 0
        it.victims = 0
        it.drops_reading = False
        if not (self.has_kv and decoding):
            return
        if self.kv.rule == codes.KEEP_GROWTH:
            it.growth = self.kv.growth_at(v.decodes)
        else:
            self.kv.plan_decode(v, it, self.chunked.position, self.chunked.computed)

    def read_on(
        self, v: View, it: Iteration, kind: cython.int, room: cython.longlong, whole: cython.bint
    ) -> cython.bint:
        """Go on with the partly prefilled request; returns whether others may join after it."""
        position: cython.int = self.chunked.position
        computed: cython.longlong = self.chunked.computed
        part: cython.longlong = self.chunked.part(v.reading_tokens, 0, room, whole)
        if part == 0:
            return False
        if self.has_kv:
            it.taken = self.kv.reads(position, computed + part) - self.kv.reads(position, computed)
            if self.kv.rule != codes.KEEP_GROWTH and v.kv_used + it.growth + it.taken > self.kv.budget:
                it.taken = 0
                it.drops_reading = kind != codes.PREFILL
                return False
        it.add(position, part, self.work_left(position))
        it.left = v.reading_tokens - part
        it.ready = 1
        return it.left == 0

    def work_left(self, position: cython.int) -> cython.longlong:
        """Estimated output tokens of a request that is not running, at least 1."""
        left: cython.longlong = self.problem.requests[position, codes.ESTIMATE]
        if self.has_kv:
            left -= self.kv.emitted[position]
        return left if left > 1 else 1

    def admit_rows(
        self,
        v: View,
        it: Iteration,
        order: cython.int,
        most: cython.longlong,
        room: cython.longlong,
        whole: cython.bint,
        counts_ready: cython.bint,
    ) -> cython.bint:
        """Let idle clients take who is next; returns whether the KV cache lets in the first one, if there is any."""
        limit: cython.longlong = v.idle
        position: cython.int = -1
        tokens: cython.longlong
        part: cython.longlong
        take: cython.longlong
        emitted: cython.longlong = 0
        cached: cython.longlong = 0
        swapped: cython.bint = False
        full: cython.bint = False
        first: cython.bint = True
        if order >= codes.WINDOW:
            self.line.open_window(order, v.waiting, v.idle - (1 if self.chunked.position >= 0 else 0))
        while it.ready < limit:
            position = self.line.next_in_line(order, position)
            if position < 0:
                return True
            if self.has_kv:
                emitted = self.kv.emitted[position]
                swapped = emitted > 0 and self.kv.swap_token_ns > 0
            tokens = self.problem.requests[position, codes.PROMPT] + emitted
            if self.has_kv and self.kv.shares:
                cached = self.kv.prefix.look_up(position, tokens)
                tokens -= cached
            take = 0 if swapped else tokens
            if not full and not swapped:
                take = self.chunked.part(tokens, it.computed, room, whole)
                full = take == 0
            full = full or it.rows >= most
            if full and not counts_ready:
                return True
            part = take if 0 < take < tokens and not full else -1
            if self.has_kv and not self.kv.admit(v, position, part):
                return not first
            first = False
            it.ready += 1
            if full:
                continue
            it.cached[it.rows] = cached
            it.add(position, take, self.work_left(position))
            it.taken = self.kv.batch
            if swapped:
                it.copied += tokens
            if part > 0:
                it.left = tokens - take
                return True
        return True

    def duration_ns(self, it: Iteration, kind: cython.int, costs: Costs) -> cython.longlong:
        """What the iteration lasts under a cost model, without noise."""
        copying_ns: cython.longlong = 0
        if self.has_kv:
            copying_ns = it.copied * self.kv.swap_token_ns + self.kv.swap_out_ns
        if it.carried > 0:
            copying_ns = it.carried * self.queues.migration.token_ns
        if kind == codes.MIXED and it.rows > 0 and (it.served > 0 or it.computed > 0):
            return copying_ns + costs.mixed_ns(it.computed, it.served, it.context)
        if kind != codes.PREFILL and (it.rows == 0 or it.served > 0):
            return copying_ns + costs.decode_ns(it.served, it.context) + self.first_ns(self.view, costs)
        if it.computed > 0 or it.copied == 0:
            copying_ns += costs.prefill_ns(it.computed)
        return copying_ns

    def first_ns(self, v: View, costs: Costs) -> cython.longlong:
        """What a decode now lasts longer because the iteration before it was a prefill."""
        return costs.first_decode_ns if v.consecutive_prefills > 0 else 0

    # Previews.

    def preview(self, v: View) -> cython.void:
        """What a prefill by action 1 now would hold, and what a mixed iteration would read."""
        if self.has_queues:
            self.queues.preview(v)
            v.prefill_ns = self.believed.prefill_ns(v.batch_tokens)
            if self.queues.migrates:
                v.prefill_ns += self.queues.moves_ahead * self.queues.migration.token_ns
            return
        if self.recomposes:
            self.compose(
                v, self.next_prefill, codes.PREFILL, self.problem.orders[1], self.problem.num_clients, self.has_kv
            )
            v.ready = self.next_prefill.ready
            if not self.has_kv:
                v.ready = v.waiting + (1 if self.chunked.position >= 0 else 0)
                v.ready = v.idle if v.idle < v.ready else v.ready
            if self.problem.mixes:
                self.preview_mixed(v, self.next_mixed)
        else:
            v.ready = v.idle if v.idle < v.waiting else v.waiting
            self.extend(v, self.next_prefill)
        v.batch_requests = self.next_prefill.rows
        v.batch_tokens = self.next_prefill.computed
        v.batch_work = self.next_prefill.work
        v.prefill_ns = self.duration_ns(self.next_prefill, codes.PREFILL, self.believed)

    def preview_mixed(self, v: View, it: Iteration) -> cython.void:
        """What a mixed iteration now would read, in the order of action 1."""
        kind: cython.int = codes.MIXED if v.ready > 0 or v.reading_tokens > 0 else codes.DECODE
        self.compose(v, it, kind, self.problem.orders[1], self.problem.num_clients, False)
        v.chunk_tokens = it.computed
        v.mixed_ns = self.duration_ns(it, codes.MIXED, self.believed)

    def extend(self, v: View, it: Iteration) -> cython.void:
        """The batch of a shared queue in its own order: as more clients fall idle, more requests join at its end."""
        position: cython.int
        prompt: cython.longlong
        while it.rows < v.ready and not self.window_full:
            position = bitset.find_from(self.line.waiting, 0, self.problem.num_requests, self.window_from)
            prompt = self.problem.requests[position, codes.PROMPT]
            if it.rows > 0 and it.computed + prompt > self.problem.token_cap:
                self.window_full = True
            else:
                it.add(position, prompt, self.problem.requests[position, codes.ESTIMATE])
                self.window_from = position + 1

    def empty_window(self) -> cython.void:
        """Begin the previewed batch anew."""
        self.next_prefill.clear()
        self.window_from = 0
        self.window_full = False

    # Taking: requests leave the line, clients become busy.

    def take_rows(self, v: View, it: Iteration) -> cython.void:
        """Give each row of a shared queue an idle client, in index order; they are busy from here on."""
        i: cython.int = 0
        client: cython.int = -1
        position: cython.int
        if self.chunked.position >= 0 and it.rows > 0:
            it.client[0] = self.chunked.client
            i = 1
        while i < it.rows:
            client = bitset.find_from(self.idle, 0, self.num_clients, client + 1)
            position = it.position[i]
            bitset.remove(self.idle, 0, self.num_clients, client)
            it.client[i] = client
            if v.preempted > 0 and self.kv.emitted[position] > 0:
                self.line.set_preempted(position, False)
                v.preempted -= 1
            else:
                if self.problem.ranked:
                    self.line.leave(position)
                else:
                    bitset.remove(self.line.waiting, 0, self.problem.num_requests, position)
                if self.has_slo:
                    self.slo.leave_queue(v, self.line, position)
                v.waiting -= 1
                v.waiting_tokens -= self.problem.requests[position, codes.PROMPT]
                v.waiting_work -= self.problem.requests[position, codes.ESTIMATE]
            i += 1

    def take_from_queues(self, v: View, t: Totals, it: Iteration) -> cython.void:
        """Compose a prefill on client queues: idle clients, in index order, each take the head of a queue."""
        client: cython.int = 0
        queue: cython.int
        starter: cython.int
        position: cython.int
        prompt: cython.longlong
        estimate: cython.longlong
        tokens: cython.longlong
        cached: cython.longlong
        moving: cython.longlong  # tokens that a thief brings over
        context: cython.longlong  # ... which are a running request's
        stealing: cython.bint = self.queues.stealing
        it.clear()
        it.served = 0
        it.context = 0
        it.victims = 0
        it.growth = 0
        it.drops_reading = False
        while v.waiting > 0:
            if stealing:
                client = bitset.find_from(self.idle, 0, self.num_clients, client)
            else:
                client = bitset.find_from(self.queues.ready, 0, self.num_clients, client)
            if client < 0:
                return
            queue = self.queues.source(v, client)
            position = self.clients[queue, codes.HEAD]
            prompt = self.clients[queue, codes.HEAD_PROMPT]
            estimate = self.clients[queue, codes.HEAD_ESTIMATE]
            cached = 0
            moving = 0
            context = 0
            if self.queues.migrates:
                cached = self.queues.migration.cached(prompt)
                if queue != client:
                    context = self.context_to_move(v, queue, position, cached)
                    moving = context if context > 0 else cached
            tokens = prompt - cached
            if moving > 0 and self.queues.migration.token_ns == 0:
                tokens += moving
            if it.rows > 0 and it.computed + tokens > v.token_cap:
                return
            if moving > 0 and self.queues.migration.token_ns == 0:
                it.again += moving
            else:
                it.carried += moving
            starter = client
            if context > 0:
                starter = queue
                it.moved += 1
                it.client[self.problem.num_clients + 1 - it.moved] = client
                self.take_over(v, queue, client, context)
            self.queues.take(self.line, t, queue, starter)
            if self.has_slo:
                self.slo.leave_queue(v, self.line, position)
            bitset.remove(self.idle, 0, self.num_clients, starter)
            self.clients[starter, codes.RUNNING] = position
            self.clients[starter, codes.DUE] = cython.cast(cython.int, v.decodes + estimate - 1)
            self.clients[starter, codes.HELD] = 0
            it.client[it.rows] = starter
            it.add(position, tokens, estimate)
            v.waiting -= 1
            v.waiting_tokens -= prompt
            v.waiting_work -= estimate
            client += 1

    def look_at_heads(self) -> cython.longlong:
        """Read what a prefill reads of the heads of idle clients' queues, and of who waits behind them."""
        seen: cython.longlong = 0
        last: cython.int = self.problem.num_requests - 1
        position: cython.int
        client: cython.int = -1
        if not self.has_queues:
            return 0
        client = bitset.find_from(self.queues.ready, 0, self.num_clients, 0)
        while client >= 0:
            position = self.clients[client, codes.HEAD]
            seen |= self.problem.requests[position, codes.PROMPT]
            seen |= self.problem.requests[position + 1 if position < last else last, codes.PROMPT]
            client = bitset.find_from(self.queues.ready, 0, self.num_clients, client + 1)
        return seen

    def context_to_move(
        self, v: View, queue: cython.int, position: cython.int, cached: cython.longlong
    ) -> cython.longlong:
        """Context of the running request that a thief takes from ``queue``; 0 where it takes the head, at ``position``.

        That is where none has run before this prefill; where moving it is no cheaper, if that is what decides; and
        where context and head together would be too much to compute for any prefill.
        """
        context: cython.longlong
        if self.queues.migration.steal == codes.STEAL_WAITING:
            return 0
        if self.clients[queue, codes.RUNNING] < 0 or self.clients[queue, codes.HELD] == 0:
            return 0
        context = self.context(queue)
        if self.queues.migration.steal == codes.STEAL_CHEAPER and context >= cached:
            return 0
        if (
            self.queues.migration.token_ns == 0
            and context + self.problem.requests[position, codes.PROMPT] - cached > self.problem.token_cap
        ):
            return 0
        return context

    def take_over(self, v: View, source: cython.int, client: cython.int, context: cython.longlong) -> cython.void:
        """The idle ``client`` takes the request that ``source`` runs; that one is idle then, with its queue's head."""
        position: cython.int = self.clients[source, codes.RUNNING]
        tokens: cython.longlong = self.emitted(source)
        self.unhook(v, source)
        if self.records:
            self.recorder.suspend(v, position)
        if self.has_slo:
            self.slo.suspend(v, source, position, tokens)
        v.context_tokens -= context
        v.active -= 1
        v.idle += 1
        self.vacate(source)
        bitset.remove(self.idle, 0, self.num_clients, client)
        if self.queues.migration.token_ns == 0:
            tokens += 1
        self.clients[client, codes.RUNNING] = position
        self.clients[client, codes.BASE] = cython.cast(cython.int, v.decodes - tokens)
        self.clients[client, codes.DUE] = cython.cast(
            cython.int, v.decodes - tokens + self.problem.requests[position, codes.ESTIMATE]
        )
