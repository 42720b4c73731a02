"""The one transition: compose an iteration, let it last, commit what comes of it.

Everything that simulates (the environments, whole-episode studies, planners) calls :meth:`Transition.advance`. Nothing
in it allocates.
"""

from __future__ import annotations

from typing import Any

import cython

from llmsched_env.engine import codes, ring
from llmsched_env.engine.compose import Composer
from llmsched_env.engine.iteration import Iteration
from llmsched_env.engine.noise import Noise
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.view import Totals, View


class Transition(Composer):
    """What happens from one decision to the next.

    Attributes:
        noise: factors of durations.
    """

    noise: Noise

    def __init__(self, problem: ProblemData, options: dict[str, Any], record: bool) -> None:
        Composer.__init__(self, problem, options, record)
        self.noise = Noise(**options.get("noise", {}))
        self.has_noise = self.noise.enabled
        self.settles = (
            self.has_slo or self.has_kv or problem.mixes or self.queues.migration.steal != codes.STEAL_WAITING
        )
        self.plans_memory = self.has_kv and self.kv.rule != codes.KEEP_GROWTH

    def assign_transition(self, other: Transition) -> cython.void:
        """Take over all state but rings and recordings."""
        self.assign_slots(other)
        self.assign_previews(other)

    def advance(self, action: cython.int) -> cython.void:
        """Run one iteration, then release what has arrived, or jump to the next arrival where nothing is left to do.

        An infeasible action is replaced by a feasible one, a prefill by the first of these, and counted. The episode
        must not be over, and the action be one of the problem's.
        """
        self.run_iteration(self.view, self.totals, action, self.problem.kinds[action])

    def run_iteration(self, v: View, t: Totals, action: cython.int, kind: cython.int) -> cython.void:
        """:meth:`advance` to a kind of iteration."""
        start_ns: cython.longlong = v.clock_ns
        decodes: cython.longlong = v.decodes
        mixed: cython.longlong = v.mixed
        busy: cython.longlong = v.active
        changed: cython.bint = True
        if kind == codes.DECODE:
            if v.active == 0:
                t.invalid_actions += 1
                action = 1
                kind = codes.PREFILL
        elif v.ready == 0 and (kind == codes.PREFILL or v.reading_tokens == 0):
            t.invalid_actions += 1
            action = 0
            kind = codes.DECODE
        if kind == codes.DECODE and not self.plans_memory:
            changed = self.decode(
                v,
                t,
                self.noisy_decode_ns(v) if self.has_noise else v.decode_ns,
                self.in_system(v),
                v.kv_growth,
            )
        else:
            busy = self.commit(v, t, action, kind)
        if self.records:
            self.recorder.note(start_ns, v, v.decodes == decodes, busy, v.mixed > mixed)
        if changed or self.settles or self.next_release_ns <= v.clock_ns:
            self.settle(v, t)

    def reads(self) -> cython.int:
        """Requests that are partly prefilled: 1 or 0."""
        return 1 if self.has_mixed and self.chunked.position >= 0 else 0

    def in_system(self, v: View) -> cython.longlong:
        """Requests that have arrived and are not complete."""
        count: cython.longlong = v.waiting + v.active
        if self.has_kv:
            count += v.preempted
        return count + self.reads()

    def noisy_decode_ns(self, v: View) -> cython.longlong:
        """What a decode of all active clients does last."""
        plain_ns: cython.longlong = self.actual.decode_ns(v.active, v.context_tokens) + self.first_ns(v, self.actual)
        return self.noise.actual_ns(plain_ns + self.kv.swap_out_ns, codes.DECODE, v.decodes)

    def decode(
        self,
        v: View,
        t: Totals,
        duration_ns: cython.longlong,
        in_system: cython.longlong,
        growth: cython.longlong,
    ) -> cython.bint:
        """Each active client emits a token. Returns whether a request was completed."""
        active: cython.longlong = v.active
        finished: cython.longlong = 0
        held: cython.longlong = 0
        slot: cython.longlong
        client: cython.int
        v.clock_ns += duration_ns
        t.busy_client_ns += duration_ns * active
        t.request_ns += duration_ns * in_system
        t.idle_client_decodes += v.idle
        v.idle_charge += v.ready
        v.decodes += 1
        v.consecutive_prefills = 0
        v.context_tokens += active
        t.min_active = min(t.min_active, active)
        if self.has_slo:
            v.decoding_ns += duration_ns * active
            v.decoding_tokens += active
        if self.has_kv:
            self.kv.swap_out_ns = 0
            v.kv_used += growth
            t.kv_peak = max(t.kv_peak, v.kv_used)
        if self.forecast_current:
            self.pass_decode(v, active)
        slot = ring.ending(self.ring_mask, v.decodes)
        client = self.ring[slot]
        if client < 0:
            if self.reads_context:
                v.decode_ns = self.believed.decode_ns(active, v.context_tokens)
            return False
        self.ring[slot] = -1
        while client >= 0:
            if self.forecast_current:
                self.expect_no_more(v, self.clients[client, codes.DUE])
            finished += 1
            held += self.clients[client, codes.HELD]
            self.complete(v, client)
            client = self.clients[client, codes.NEXT]
        self.leave(v, finished, held)
        return True

    def commit(self, v: View, t: Totals, action: cython.int, kind: cython.int) -> cython.longlong:
        """Run an iteration with rows, or one that preempts. Returns how many clients had a token."""
        in_system: cython.longlong = self.in_system(v)
        if self.has_queues:
            self.take_from_queues(v, t, self.chosen)
            return self.finish(v, t, self.chosen, kind, in_system)
        if action == 1 and not self.recomposes:
            self.take_rows(v, self.next_prefill)
            busy: cython.longlong = self.finish(v, t, self.next_prefill, kind, in_system)
            self.empty_window()
            return busy
        self.compose_action(v, action, kind)
        self.make_way(v, t, self.chosen)
        self.take_rows(v, self.chosen)
        busy = self.finish(v, t, self.chosen, kind, in_system)
        if not self.recomposes:
            self.empty_window()
        return busy

    def compose_action(self, v: View, action: cython.int, kind: cython.int) -> cython.void:
        """Compose what an action runs on a shared queue, in ``chosen``."""
        most: cython.longlong = self.problem.caps[action] - v.active
        self.compose(v, self.chosen, kind, self.problem.orders[action], most if most > 1 else 1, False)

    def make_way(self, v: View, t: Totals, it: Iteration) -> cython.void:
        """Preempt who gives way for an iteration."""
        i: cython.int
        if it.drops_reading:
            self.stop_reading(v, t)
        for i in range(it.victims):  # noqa: B007  # a C variable
            self.preempt(v, t, self.kv.last)

    def finish(
        self, v: View, t: Totals, it: Iteration, kind: cython.int, in_system: cython.longlong
    ) -> cython.longlong:
        """Let the iteration last, and commit what comes of it. Returns how many clients had a token."""
        start_ns: cython.longlong = v.clock_ns
        duration_ns: cython.longlong
        active: cython.longlong = v.active
        partly: cython.int = 1 if it.left > 0 else 0
        finished: cython.longlong = 0
        held: cython.longlong = 0
        i: cython.int
        duration_ns = self.lasting_ns(v, it, kind)
        if it.copied > 0:
            t.swap_ns += it.copied * self.kv.swap_token_ns
            t.swapped_tokens += it.copied
        if self.has_queues and self.queues.migrates:
            self.count_moves(t, it)
        if kind == codes.MIXED and it.rows > 0:
            v.mixed += 1
        if self.has_kv and v.kv_used + it.growth + it.taken > t.kv_peak:
            t.kv_peak = v.kv_used + it.growth + it.taken
        t.busy_client_ns += duration_ns * (it.rows + it.moved)
        if kind != codes.PREFILL and it.served > 0:
            self.decode(v, t, duration_ns, in_system, it.growth)
            if it.rows == 0:
                return active
        else:
            active = 0
            self.spend_prefill(v, t, it, duration_ns, in_system)
        v.last_prefill_decode = v.decodes
        v.idle_charge = 0
        v.last_prefill_ns = duration_ns
        v.idle -= it.rows - partly + it.moved
        v.active += it.rows - partly + it.moved
        if self.has_kv:
            self.take_memory(v, it, partly)
        for i in range(it.rows - partly):
            if self.start_row(v, t, it, i, start_ns):
                finished += 1
                held += self.clients[it.client[i], codes.HELD]
        for i in range(it.moved):
            if self.start_moved(v, t, it.client[self.problem.num_clients - i], start_ns):
                finished += 1
                held += self.clients[it.client[self.problem.num_clients - i], codes.HELD]
        if partly:
            self.keep_reading(v, it, start_ns)
        elif self.reads() and it.rows > 0:
            self.chunked.position = -1
            self.chunked.computed = 0
            v.reading_tokens = 0
        if finished > 0:
            self.leave(v, finished, held)
        t.max_active = max(t.max_active, v.active)
        return it.rows - partly + it.moved + active

    def count_moves(self, t: Totals, it: Iteration) -> cython.void:
        """Count what thieves bring over."""
        t.move_ns += it.carried * self.queues.migration.token_ns
        t.moved_tokens += it.carried
        t.recomputed_tokens += it.again
        t.migrations += it.moved

    def lasting_ns(self, v: View, it: Iteration, kind: cython.int) -> cython.longlong:
        """What the iteration does last."""
        beside: cython.bint = kind != codes.PREFILL and it.served > 0
        if not self.has_noise:
            return self.duration_ns(it, kind, self.actual)
        return self.noise.actual_ns(
            self.duration_ns(it, kind, self.actual),
            codes.DECODE if beside else codes.PREFILL,
            v.decodes if beside else v.prefills,
        )

    def spend_prefill(
        self, v: View, t: Totals, it: Iteration, duration_ns: cython.longlong, in_system: cython.longlong
    ) -> cython.void:
        """Count an iteration that serves nobody."""
        v.clock_ns += duration_ns
        v.prefills += 1
        v.consecutive_prefills += 1
        t.prefill_time_ns += duration_ns
        t.request_ns += duration_ns * in_system
        t.max_batch_tokens = max(t.max_batch_tokens, it.computed)
        if 0 < it.computed < t.min_batch_tokens:
            t.min_batch_tokens = it.computed
        if self.has_slo:
            v.decoding_ns += duration_ns * v.active
        if self.has_kv:
            self.kv.swap_out_ns = 0

    def take_memory(self, v: View, it: Iteration, partly: cython.int) -> cython.void:
        """The rows enter the KV cache."""
        i: cython.int
        position: cython.int
        context: cython.longlong
        if self.chunked.position >= 0 and it.rows > 0:
            v.kv_used -= self.kv.reads(self.chunked.position, self.chunked.computed)
            self.kv.reserved -= self.kv.aside(self.chunked.position)
        for i in range(it.rows):
            position = it.position[i]
            context = self.problem.requests[position, codes.PROMPT] + self.kv.emitted[position]
            if partly and i == it.rows - 1:
                v.kv_used += self.kv.reads(position, context - it.left)
                self.kv.reserved += self.kv.aside(position)
            else:
                self.clients[it.client[i], codes.RUNNING] = position
                self.kv.enter(v, it.client[i], context + (1 if it.tokens[i] > 0 else 0))

    def start_row(self, v: View, t: Totals, it: Iteration, row: cython.int, start_ns: cython.longlong) -> cython.bint:
        """A row's request has been read, or copied; returns whether it is complete."""
        position: cython.int = it.position[row]
        emitted: cython.longlong = 0
        late: cython.bint = self.has_slo and self.problem.number_of[position] < self.line.late_until
        if self.has_mixed and self.chunked.position == position:
            start_ns = self.chunked.start_ns
            late = self.chunked.late
        if self.has_kv:
            emitted = self.kv.emitted[position]
            if emitted > 0 and it.tokens[row] > 0:
                t.resumed_by_prefill += 1
                t.recomputed_tokens += self.problem.requests[position, codes.PROMPT] + emitted
        self.clients[it.client[row], codes.RUNNING] = position
        return self.start(v, it.client[row], emitted + (1 if it.tokens[row] > 0 else 0), start_ns, late, emitted > 0)

    def start_moved(self, v: View, t: Totals, client: cython.int, start_ns: cython.longlong) -> cython.bint:
        """A running request goes on at its new client; returns whether it is complete."""
        if self.queues.migration.token_ns == 0:
            t.resumed_by_prefill += 1
        return self.start(v, client, self.emitted(client), start_ns, False, True)

    def keep_reading(self, v: View, it: Iteration, start_ns: cython.longlong) -> cython.void:
        """The request of the last row is partly prefilled."""
        position: cython.int = it.position[it.rows - 1]
        if self.chunked.position != position:
            self.chunked.position = position
            self.chunked.client = it.client[it.rows - 1]
            self.chunked.computed = 0
            self.chunked.start_ns = start_ns
            if self.records:
                self.recorder.happen(v, codes.READ, self.chunked.client, position)
            self.chunked.late = self.problem.number_of[position] < self.line.late_until
        self.chunked.computed += it.tokens[it.rows - 1]
        v.reading_tokens = it.left

    # Looking ahead: many copies read their lines of memory together, before one after another is stepped.

    def look_at_numbers(self, v: View, t: Totals) -> cython.longlong:
        """Read each line of memory that any decode reads."""
        mask: cython.longlong = self.ring_mask
        next_one: cython.longlong = v.decodes + 1
        seen: cython.longlong = v.clock_ns | v.ready | v.consecutive_prefills | v.due_16 | v.alpha_decode_ns
        seen |= v.token_cap | t.busy_client_ns | t.invalid_actions | self.next_release_ns
        seen |= self.ring[ring.expected(mask, next_one)] | self.ring[ring.expected(mask, next_one + 4)]
        seen |= self.ring[ring.expected(mask, next_one + 16)] | self.ring[ring.expected(mask, next_one + 64)]
        return seen | self.ring[ring.expected(mask, next_one + 256)]

    def look_at_ends(self, v: View) -> cython.longlong:
        """Read what the next decode reads of the clients that finish in it."""
        client: cython.int = self.ring[ring.ending(self.ring_mask, v.decodes + 1)]
        seen: cython.longlong = 0
        if client < 0:
            return 0
        seen = self.window_from + cython.cast(cython.longlong, self.idle[client >> 6] & 1)
        if self.has_queues:
            seen |= self.queues.own_ready | self.queues.moves_ahead
            seen |= cython.cast(cython.longlong, self.queues.ready[client >> 6] & 1)
        while client >= 0:
            seen |= self.clients[client, codes.HELD]
            client = self.clients[client, codes.NEXT]
        return seen

    # Between iterations.

    def release(self, v: View, t: Totals) -> cython.void:
        """Put what has arrived by now into its queue."""
        number: cython.int = self.line.next_release
        position: cython.int
        while number < self.problem.num_requests and self.problem.release_ns[number] <= v.clock_ns:
            position = self.problem.position_of[number]
            # It arrived inside the last iteration: the time since then counts as waiting.
            t.request_ns += v.clock_ns - self.problem.release_ns[number]
            number += 1
            self.line.enter(position)
            v.waiting += 1
            v.waiting_tokens += self.problem.requests[position, codes.PROMPT]
            v.waiting_work += self.problem.requests[position, codes.ESTIMATE]
            if self.has_queues:
                self.queues.arrive(position)
            elif position < self.window_from:
                self.empty_window()
            self.window_full = False
        self.line.next_release = number

    def settle(self, v: View, t: Totals) -> cython.void:
        """Bring the view up to the clock: arrivals, a jump over time with nothing to do, and what comes next."""
        one: cython.longlong = 1
        never: cython.longlong = one << 62  # beyond any clock
        target_ns: cython.longlong
        active: cython.longlong
        context: cython.longlong
        if self.next_release_ns < never:
            self.release(v, t)
            if v.active == 0 and v.waiting == 0 and v.preempted == 0 and self.chunked.position < 0:
                target_ns = self.problem.release_ns[self.line.next_release]
                t.jump_ns += target_ns - v.clock_ns
                v.clock_ns = target_ns
                self.release(v, t)
            self.next_release_ns = never
            if self.line.next_release < self.problem.num_requests:
                self.next_release_ns = self.problem.release_ns[self.line.next_release]
        if self.has_slo:
            self.slo.pass_time(v, t, self.line)
        if self.has_kv:
            self.make_room(v, t)
        self.preview(v)
        active = v.active
        context = v.context_tokens
        if self.plans_memory:
            self.plan_decode(v, self.chosen, True)
            v.kv_growth = self.chosen.growth
            active = self.chosen.served
            context = self.chosen.context
        v.decode_ns = v.alpha_decode_ns + v.beta_decode_ns * active
        if self.reads_context:
            v.decode_ns = self.believed.decode_ns(active, context) + self.first_ns(v, self.believed)
        if self.has_kv:
            v.decode_ns += self.kv.swap_out_ns
        v.oldest_release_ns = v.clock_ns
        if v.waiting > 0:
            v.oldest_release_ns = self.line.oldest_release_ns() if self.arrivals else self.first_release_ns

    def make_room(self, v: View, t: Totals) -> cython.void:
        """Whoever has to gives way as soon as an iteration ends; under vLLM's rules only who is alone and full."""
        if self.kv.rule == codes.KEEP_GROWTH:
            while (self.kv.last >= 0 or self.chunked.position >= 0) and (
                v.kv_used + self.kv.growth_at(v.decodes) > self.kv.budget
            ):
                self.give_way(v, t)
            v.kv_growth = self.kv.growth_at(v.decodes)
        elif (
            self.kv.rule == codes.VLLM_V0
            and v.active == 1
            and self.kv.short(v.kv_used, self.kv.growth_at(v.decodes), self.kv.holds(v, self.kv.last))
        ):
            # One that is alone and has no free block gives way to itself, and comes back by a prefill.
            self.preempt(v, t, self.kv.last)
