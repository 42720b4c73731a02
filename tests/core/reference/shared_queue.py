"""Iterations on one shared queue: decodes, prefills and mixed ones, whatever else is on."""

from __future__ import annotations

from dataclasses import dataclass, field

from strategies import DECODE, MIXED, PREFILL, Case

from .memory import Memory, Row
from .prefixes import Key
from .state import Reading, Running


@dataclass
class Iteration:
    """Who has a token, whose cache is computed or copied, and which clients lose theirs before it begins."""

    served: list[Running]
    rows: list[Row] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    @property
    def copied(self) -> int:
        return sum(row.copied for row in self.rows)


class SharedQueue(Memory):
    """One composer: every iteration decodes, or reads, or both."""

    # Who is next.

    def line(self, order: str) -> list[int]:
        """Preempted requests in queue order, then the others in theirs."""
        own = self.case.order if not self.case.ttft_ns else "fcfs"
        first = sorted(self.preempted, key=lambda i: (self.key(own, i), i))
        return first + self.own(0, self.waiting, order)

    @staticmethod
    def part(tokens: int, rows: list[Row], room: int, whole: bool) -> int:
        """How many of the tokens are computed after those of the rows."""
        taken = sum(row.tokens for row in rows)
        if taken + tokens <= room:
            return tokens
        if whole:
            return tokens if taken == 0 and room > 0 else 0
        return max(0, room - taken)

    def goes_on(self, room: int, whole: bool) -> Row:
        """The next chunk of the prompt whose prefill is chunked."""
        held = self.reading
        part = self.part(held.left, [], room, whole)
        return Row(held.client, held.request, held.emitted, held.computed, part, 0, held.left - part, held.cached)

    def joins(self, client: int, request: int, rows: list[Row], room: int, whole: bool) -> Row:
        """What is computed, or copied, of one that is in line."""
        emitted = self.preempted.get(request, 0)
        context = self.context(request, emitted)
        if emitted and self.case.kv_cache.swap_token_ns:
            return Row(client, request, emitted, 0, 0, context, 0)
        cached = 0
        if self.pool is not None:
            joined: dict[Key, int] = {}
            for row in rows:
                joined.update(self.joined_by(row, joined))
            cached = self.pool.hits(request, context, joined)[0] * self.pool.block
        part = self.part(context - cached, rows, room, whole)
        return Row(client, request, emitted, cached, part, 0, context - cached - part, cached)

    # Composing.

    def admitted(
        self, order: str, cap: int, room: int, whole: bool, first: list[Row], served: list[Running]
    ) -> tuple[list[Row], bool]:
        """Rows of those who join after the first rows; and whether memory closed the batch before anybody joined."""
        rows = list(first)
        busy = [self.reading.client] if self.reading is not None else []
        clients = [client for client in self.idle if client not in busy]
        for client, request in zip(clients, self.line(order), strict=False):
            row = self.joins(client, request, rows, room, whole)
            if not row.tokens and not row.copied:
                break
            if rows and len(self.active) + len(rows) >= cap:
                break
            if not self.lets_in(row, rows, served):
                return rows, rows == first
            rows.append(row)
            if not row.finishes:
                break
        return rows, False

    def reads(self, order: str, cap: int, room: int, whole: bool, served: list[Running]) -> list[Row] | None:
        """Rows of an iteration with room for so many tokens; ``None`` where the chunked one has no blocks."""
        first: list[Row] = []
        if self.reading is not None:
            row = self.goes_on(room, whole)
            if not self.has_blocks_for(row, served):
                return None
            first = [row] if row.tokens else []
            if not row.finishes:
                return first
        rows, refused = self.admitted(order, cap, room, whole, first, served)
        if refused:
            rows, _ = self.admitted(self.first_order, cap, room, whole, first, served)
        return rows

    def iteration(self, action: int) -> Iteration:
        """What the action does now; a mixed one that is not feasible is a decode, and a prefill is nothing."""
        case = self.case
        kind, order, cap = case.action(action)
        if kind == PREFILL:
            return Iteration([], self.reads(order, cap, case.token_cap, True, []) or [])
        served, gone = self.scheduled() if self.vllm else (self.active, [])
        if kind == DECODE or gone or not (self.ready or self.reading):
            return Iteration(served, [], gone)
        room = case.mixed.tokens
        if case.mixed.counts_active:
            room = max(0, room - len(served))
        if case.mixed.within_slack and served:
            room = self.in_time(served, room)
        rows = self.reads(order, cap, room, case.mixed.whole_prompts, served)
        if rows is None:
            return Iteration(served, [], [self.reading.client])
        return Iteration(served, rows)

    def in_time(self, served: list[Running], room: int) -> int:
        """The most tokens beside whose reading each of these has its next token when it is due, tried one by one."""
        case, n = self.case, sum(self.case.prompts) + sum(self.case.outputs)
        left = [self.first_token_ns[held.request] + case.tpot_ns * held.emitted - self.clock_ns for held in served]
        fitting = (c for c in range(min(room, n), 0, -1) if self.at_most_ns(c, served, self.believed) <= min(left))
        return next(fitting, 0)

    def parts(self, action: int) -> list[tuple[int, int, int]]:
        """What the action would read: (client, request, tokens)."""
        return [(row.client, row.request, row.tokens) for row in self.iteration(action).rows]

    @property
    def ready_to_read(self) -> int:
        """Who would take part in a prefill by action 1, were there no cap on tokens."""
        everything = sum(self.case.prompts) + sum(self.case.outputs)
        return len(self.reads(self.first_order, self.case.num_clients, everything, True, []) or [])

    def iteration_ns(self, it: Iteration, action: int, case: Case) -> int:
        """What it lasts by the cost model of ``case``, without noise."""
        if not it.rows:
            return self.swap_out_ns + self.serving_ns(it.served, case) + self.first_ns(case)
        swap_ns = self.swap_out_ns + it.copied * (case.kv_cache.swap_token_ns if it.copied else 0)
        if self.case.action(action)[0] == MIXED:
            return swap_ns + self.beside_ns(it.tokens, it.served, case)
        return swap_ns + (self.prefill_ns(it.tokens, case) if it.tokens else 0)

    # What happens.

    def iterate(self, action: int) -> None:
        case, start_ns, it = self.case, self.clock_ns, self.iteration(action)
        kind = DECODE if it.served else PREFILL
        duration = self.actual_duration_ns(self.iteration_ns(it, action, case), kind)
        if not it.rows:
            self.ready_at_decodes.append(self.ready)
        self.count_choice(action, it)
        for client in it.gone:
            self.preempt(client)
        self.take_blocks(it.rows, it.served)
        if it.served:
            self.idle_client_decodes += len(self.idle)
            self.active_at_decodes.append(len(it.served))
        late = [i for i in self.waiting if self.late(i)]
        self.clock_ns += duration
        self.swap_out_ns, self.just_read = 0, []
        for held in it.served:
            held.emitted += 1
            self.token_ns[held.request].append(self.clock_ns)
        for row in it.rows:
            self.read(row, start_ns, duration, row.request in late)
        if it.rows:
            self.last_read = len(self.log)
            self.ready_at_decodes = []
        self.write_down(start_ns, kind, len(it.served) + sum(row.finishes for row in it.rows))
        if case.kv_cache is not None:
            self.kv_peak = max(self.kv_peak, self.kv_used)
        self.retire()

    def read(self, row: Row, start_ns: int, duration: int, late: bool) -> None:
        """A row of the iteration that ends now."""
        request, resumed = row.request, self.reading
        if resumed is not None and resumed.request == request:
            start_ns, late = resumed.start_ns, resumed.late
            self.reading = None
        elif request in self.preempted:
            del self.preempted[request]
        else:
            self.waiting.remove(request)
        began = self.reading is None and resumed is None
        self.computed += row.tokens
        self.swapped += row.copied
        if not row.finishes:
            whole = row.before + row.tokens + row.left
            self.chunked_prefills += began
            computed = row.before + row.tokens
            self.reading = Reading(request, row.client, start_ns, whole, computed, row.emitted, late, row.cached)
            self.read_at_ns.append(duration)
            return
        if row.emitted and not row.copied:
            self.recomputed += row.before + row.tokens - row.cached
        elif not row.copied:
            self.hit_tokens += row.cached
        self.running[row.client] = Running(request, row.joins_with)
        self.starts.append(row.client)
        self.just_read.append(row.client)
        self.client[request] = row.client
        self.prefill_start_ns.setdefault(request, start_ns)
        self.first_token_ns.setdefault(request, self.clock_ns)
        if not row.copied:
            self.token_ns.setdefault(request, []).append(self.clock_ns)

    def count_choice(self, action: int, it: Iteration) -> None:
        """What tests want to have seen."""
        kind, order, _ = self.case.action(action)
        if not it.rows:
            return
        began = [row.request for row in it.rows if self.reading is None or row.request != self.reading.request]
        self.fell_back += bool(began) and began[0] != self.line(order)[0]
        self.mixed += kind == MIXED
        self.read_beside += it.tokens if it.served else 0
        if not it.served and it.tokens:
            self.batches.append(it.tokens)
        if kind == PREFILL:
            self.chosen[order] += 1
            self.overtaken += [row.request for row in it.rows] != self.waiting[: len(it.rows)]
            self.stopped_at_cap += len(it.rows) < self.ready
