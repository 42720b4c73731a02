"""The system of docs/model.md once more, as plainly as it can be said: lists, loops, everything counted anew each time.

Shares nothing with the package, so that what both say is likely to be true.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable
from statistics import NormalDist

from strategies import DECODE, MIXED, PREFILL, Case

CHOICES = ("fcfs", "late_last", "shortest_first", "late_last_shortest", "longest_first", "late_last_longest")
"""Orders of actions 1, 2, ... where they are to be chosen."""

WINDOWS = {"due_1": (1, 1), "due_4": (2, 4), "due_16": (5, 16), "due_64": (17, 64), "due_256": (65, 256)}


PARTS = 4096
"""Of the lognormal law, equally likely: a factor is the mean of one."""

FRACTION = 2**20


@functools.cache
def factors(sd: float) -> list[int]:
    """The factors of iterations, in parts of a 2^20th."""
    normal = NormalDist()
    below = [normal.cdf(normal.inv_cdf(i / PARTS) - sd) for i in range(1, PARTS)]
    return [round((b - a) * PARTS * FRACTION) for a, b in zip([0.0, *below], [*below, 1.0], strict=True)]


def mixed(word: int) -> int:
    """'lowbias32' of C. Wellons: a hash of 32 bits."""
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    return word ^ word >> 16


class Running:
    """A request on a client."""

    def __init__(self, request: int, emitted: int = 1) -> None:
        self.request = request
        self.emitted = emitted


class Reading:
    """A request whose prompt has been read in part."""

    def __init__(self, request: int, client: int, start_ns: int, left: int, late: bool) -> None:
        self.request, self.client, self.start_ns, self.left = request, client, start_ns, left
        self.late = late  # when its reading began


class Reference:
    """One episode of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.told = case.told  # with the cost model that schedulers believe in
        self.clock_ns = 0
        self.jump_ns = 0
        self.running: list[Running | None] = [None] * case.num_clients
        self.waiting: list[int] = []
        self.unreleased = list(range(len(case.prompts)))
        self.client: dict[int, int] = {}
        self.prefill_start_ns: dict[int, int] = {}
        self.first_token_ns: dict[int, int] = {}
        self.completion_ns: dict[int, int] = {}
        self.log: list[tuple[int, int, int, int]] = []
        self.ready_at_decodes: list[int] = []  # since the last prefill
        self.idle_client_decodes = 0
        self.invalid_actions = 0
        self.steals = 0
        self.batches: list[int] = []  # prompt tokens of each prefill
        self.active_at_decodes: list[int] = []
        self.stopped_at_cap = 0
        self.arrived_inside = 0
        self.chosen: Counter[str] = Counter()
        self.overtaken = 0  # prefills that did not take the oldest first
        self.preempted: dict[int, int] = {}  # output tokens by request
        self.starts: list[int] = []  # clients that run, by when they started
        self.swap_out_ns = 0
        self.preemptions = 0
        self.gave_way_alone = 0
        self.token_ns: dict[int, list[int]] = {}  # of every token, by request
        self.recomputed = 0
        self.swapped = 0
        self.kv_peak = 0
        self.reading: Reading | None = None
        self.mixed = 0
        self.read_beside = 0  # prompt tokens in mixed iterations with somebody active
        self.in_parts = 0  # requests whose prompts were not read at once
        self.read_at_ns: list[int] = []  # client time of those that were
        self.migrations = 0
        self.moved = 0
        self.move_ns = 0
        self.stragglers = 0
        self.let_time_pass()

    # What follows from the state.

    @property
    def active(self) -> list[Running]:
        return [held for held in self.running if held is not None]

    @property
    def idle(self) -> list[int]:
        return [client for client, held in enumerate(self.running) if held is None]

    @property
    def done(self) -> bool:
        return len(self.completion_ns) == len(self.case.prompts)

    def order_of(self, action: int) -> str:
        return CHOICES[action - 1] if self.case.choose_order else self.case.order

    def own(self, client: int, waiting: Iterable[int], action: int = PREFILL) -> list[int]:
        """What waits in a client's queue, in the order in which it is to be taken."""
        case, order = self.case, self.order_of(action)
        sign = -1 if "longest" in order else 1 if "shortest" in order else 0
        mine = [i for i in waiting if case.queues is None or case.queues[i] == client]
        return sorted(mine, key=lambda i: ("late_last" in order and self.late(i), sign * case.estimates[i], i))

    def late(self, request: int) -> bool:
        """Whether its first token cannot come in time any more."""
        told = self.told
        least_ns = told.levels[0][1] if told.levels else told.alpha_prefill_ns
        if self.case.mixed is not None and not self.case.mixed.cost.overlaps:
            least_ns = min(least_ns, self.case.mixed.cost.alpha_ns)
        return self.clock_ns + least_ns - self.case.releases_ns[request] > self.case.ttft_ns

    # Mixed iterations.

    def parts(self, action: int) -> list[tuple[int, int, int]]:
        """What a prefill or a mixed iteration reads: (client, request, prompt tokens)."""
        case = self.case
        whole, room = True, case.token_cap
        if action == MIXED:
            whole, room = case.mixed.whole_prompts, case.mixed.tokens
            room = max(0, room - len(self.active)) if case.mixed.counts_active else room
        line = [(request, case.prompts[request]) for request in self.own(0, self.waiting)]
        clients = self.idle
        if self.reading is not None:
            line = [(self.reading.request, self.reading.left), *line]
            clients = [self.reading.client, *(client for client in clients if client != self.reading.client)]
        read: list[tuple[int, int, int]] = []
        for client, (request, prompt) in zip(clients, line, strict=False):
            taken = sum(tokens for _, _, tokens in read)
            tokens = min(prompt, max(0, room - taken))
            if whole and tokens < prompt:
                tokens = prompt if not read and room > 0 else 0
            if tokens == 0:
                break
            read.append((client, request, tokens))
            if tokens < prompt:
                break
        return read

    @property
    def mixed_ns(self) -> int:
        tokens, active, cost = sum(part for _, _, part in self.parts(MIXED)), len(self.active), self.case.mixed.cost
        if tokens == 0:
            return self.decode_ns(self.case)
        if cost.overlaps:
            return max(self.prefill_ns(tokens, self.case), self.decode_ns(self.case) if active else 0)
        both = cost.alpha_ns + cost.beta_prompt_ns * tokens + cost.beta_active_ns * active
        interference = cost.interference_ns * active * active // (active + tokens)
        return both + interference + self.case.gamma_decode_ns * self.context_tokens

    def read(self, action: int) -> None:
        """A prefill, or a mixed iteration."""
        parts, start_ns, active = self.parts(action), self.clock_ns, self.active
        if not parts:
            self.decode()
            return
        tokens = sum(part for _, _, part in parts)
        duration = self.mixed_ns if action == MIXED else self.prefill_ns(tokens, self.case)
        beside = action == MIXED and bool(active)
        duration = self.lasts(duration, DECODE if beside else PREFILL)
        self.mixed += action == MIXED
        if beside:
            self.read_beside += tokens
            self.idle_client_decodes += len(self.idle)
            self.active_at_decodes.append(len(active))
            for held in active:
                held.emitted += 1
        else:
            self.batches.append(tokens)
        late = [i for i in self.waiting if self.late(i)]
        self.clock_ns += duration
        first = self.reading
        self.reading = None
        tokens_given = len(active) if beside else 0
        for client, request, part in parts:
            resumed = first is not None and first.request == request
            began_ns = first.start_ns if resumed else start_ns
            left = (first.left if resumed else self.case.prompts[request]) - part
            if not resumed:
                self.waiting.remove(request)
            if left:
                self.in_parts += not resumed
                self.reading = Reading(request, client, began_ns, left, first.late if resumed else request in late)
                self.read_at_ns.append(duration)
                continue
            self.running[client] = Running(request)
            self.client[request] = client
            self.prefill_start_ns[request] = began_ns
            self.first_token_ns[request] = self.clock_ns
            tokens_given += 1
        self.log.append((start_ns, self.clock_ns, DECODE if beside else PREFILL, tokens_given))
        self.ready_at_decodes = []
        self.last_read = len(self.log) - 1
        self.retire()

    def compose(self, action: int = PREFILL) -> list[tuple[int, int]]:
        """The batch of a prefill now: (client, request) in the order in which they are taken."""
        if self.case.mixed is not None:
            return [(client, request) for client, request, _ in self.parts(action)]
        if self.case.kv_cache is not None:
            return self.compose_in_memory(action)
        case = self.case
        waiting, running = list(self.waiting), list(self.running)
        batch: list[tuple[int, int]] = []
        tokens = 0
        for client in self.idle:
            queue = self.own(client, waiting, action)
            if not queue and case.stealing and waiting:
                victim = max(range(case.num_clients), key=lambda j: (self.work(j, waiting, running), -j))
                queue = self.own(victim, waiting)
            if not queue:
                continue
            request = queue[0]
            if batch and tokens + case.prompts[request] > case.token_cap:
                break
            tokens += case.prompts[request]
            batch.append((client, request))
            waiting.remove(request)
            running[client] = Running(request)
        return batch

    # Caches that lie with clients.

    def cached(self, request: int) -> int:
        """Tokens of its prompt that its own client need not compute."""
        return self.case.prompts[request] * self.case.moves.cached_millionths // 10**6

    def compose_with_moves(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], int, int, int]:
        """Who starts (client, request), who takes over from whom (thief, victim), and tokens: computed, copied, again.

        Again are those of the computed that somebody has in a cache.
        """
        case, moves = self.case, self.case.moves
        waiting, running = list(self.waiting), list(self.running)
        starts: list[tuple[int, int]] = []
        overs: list[tuple[int, int]] = []
        computed, copied, again = 0, 0, 0
        for client in self.idle:
            victim = client
            if not self.own(client, waiting) and case.stealing and waiting:
                victim = max(range(case.num_clients), key=lambda j: (self.work(j, waiting, running), -j))
            queue = self.own(victim, waiting)
            if not queue:
                continue
            request = queue[0]
            rest, cached, over = case.prompts[request] - self.cached(request), self.cached(request), False
            to_move = 0 if victim == client else cached
            held = self.running[victim]
            if victim != client and held is not None and running[victim] is held and moves.steal != "waiting":
                context = self.context(held.request, held.emitted)
                fits = moves.token_ns > 0 or rest + context <= case.token_cap
                over = fits and (moves.steal == "running" or context < cached)
                to_move = context if over else to_move
            tokens = rest + (0 if moves.token_ns else to_move)
            if starts and computed + tokens > case.token_cap:
                break
            computed += tokens
            if moves.token_ns:
                copied += to_move
            else:
                again += to_move
            if over:
                overs.append((client, victim))
            starter = victim if over else client
            starts.append((starter, request))
            running[starter] = Running(request)
            waiting.remove(request)
        return starts, overs, computed, copied, again

    def prefill_with_moves(self) -> None:
        case, start_ns = self.case, self.clock_ns
        starts, overs, computed, copied, again = self.compose_with_moves()
        copying_ns = copied * case.moves.token_ns
        self.stopped_at_cap += len(starts) < self.ready
        self.clock_ns += self.lasts(self.prefill_ns(computed, self.case) + copying_ns, PREFILL)
        self.batches.append(computed)
        self.migrations += len(overs)
        self.moved += copied
        self.recomputed += again
        self.move_ns += copying_ns
        for thief, victim in overs:
            held = self.running[victim]
            self.running[thief], self.running[victim] = held, None
            self.client[held.request] = thief
            if not case.moves.token_ns:
                held.emitted += 1
                self.token_ns[held.request].append(self.clock_ns)
        robbed = {victim for _, victim in overs}
        for client, request in starts:
            self.waiting.remove(request)
            self.running[client] = Running(request)
            self.client[request] = client
            self.prefill_start_ns[request] = start_ns
            self.first_token_ns[request] = self.clock_ns
            self.token_ns[request] = [self.clock_ns]
            self.steals += case.queues[request] != client
            assert client not in robbed or case.queues[request] == client
        self.log.append((start_ns, self.clock_ns, PREFILL, len(starts) + len(overs)))
        self.ready_at_decodes = []
        self.retire()

    # The KV cache.

    def blocks(self, tokens: int) -> int:
        block = self.case.kv_cache.block_tokens
        return -(-tokens // block) * block

    def context(self, request: int, emitted: int) -> int:
        return self.case.prompts[request] + emitted

    def contexts(self) -> list[int]:
        return [self.context(held.request, held.emitted) for held in self.active]

    @property
    def uncached(self) -> int:
        """vLLM samples a token in one iteration, and computes its keys and values in the next."""
        return 0 if self.case.kv_cache.rule == "keep_growth" else 1

    @property
    def kv_used(self) -> int:
        return sum(self.blocks(tokens - self.uncached) for tokens in self.contexts())

    def kv_after_decode(self, contexts: list[int]) -> int:
        return sum(self.blocks(tokens + 1) for tokens in contexts)

    def scheduled(self) -> tuple[list[Running], list[int], int]:
        """vLLM's rules: whom a decode now serves, clients that it preempts in turn, and the tokens that it takes.

        As its schedulers do it: one running request after another, in the order of starts.
        """
        cache = self.case.kv_cache
        free = (cache.budget_tokens - self.kv_used) // cache.block_tokens
        queue, served, gone, taken = list(self.starts), [], [], 0
        while queue:
            client = queue.pop(0)
            held = self.running[client]
            tokens = self.context(held.request, held.emitted) - 1
            needs = (self.blocks(tokens + 1) - self.blocks(tokens)) // cache.block_tokens
            while free < (1 if cache.rule == "vllm_v0" else needs):
                victim = queue.pop() if queue else client
                gone.append(victim)
                lost = self.running[victim]
                free += self.blocks(self.context(lost.request, lost.emitted) - 1) // cache.block_tokens
                if victim == client:
                    break
            else:
                served.append(held)
                free -= needs
                taken += needs * cache.block_tokens
        return served, gone, taken

    def preempt(self, client: int) -> None:
        held = self.running[client]
        self.starts.remove(client)
        self.running[client] = None
        self.preempted[held.request] = held.emitted
        self.preemptions += 1

    def line(self, action: int) -> list[int]:
        """Preempted requests in queue order, then the others in theirs."""
        order = self.case.order if not self.case.ttft_ns else "fcfs"
        sign = -1 if "longest" in order else 1 if "shortest" in order else 0
        first = sorted(self.preempted, key=lambda i: (sign * self.case.estimates[i], i))
        return first + self.own(0, self.waiting, action)

    def joined(self, request: int) -> tuple[int, bool]:
        """Output tokens after the prefill that takes it, and whether its cache is copied."""
        if request not in self.preempted:
            return 1, False
        if self.case.kv_cache.swap_token_ns:
            return self.preempted[request], True
        return self.preempted[request] + 1, False

    def lets_in(self, request: int, batch: list[int]) -> bool:
        """Whether the request may join those of the batch."""
        cache, case = self.case.kv_cache, self.case
        if not self.active and not batch:
            return True
        contexts = [*self.contexts(), *(self.context(i, self.joined(i)[0]) for i in [*batch, request])]
        if self.uncached:
            return sum(self.blocks(tokens - 1) for tokens in contexts) <= cache.budget_tokens - cache.headroom_tokens
        if self.kv_after_decode(contexts) > cache.budget_tokens - cache.headroom_tokens:
            return False
        if cache.admission == "reserve":
            everyone = [held.request for held in self.active] + batch + [request]
            outputs = [cache.reserve_tokens or case.estimates[i] for i in everyone]
            aside = [self.blocks(case.prompts[i] + n) for i, n in zip(everyone, outputs, strict=True)]
            return sum(aside) <= cache.budget_tokens
        if cache.admission == "predicted":
            people = [(held.request, held.emitted) for held in self.active]
            people += [(i, self.joined(i)[0]) for i in [*batch, request]]
            left = [max(1, case.estimates[i] - emitted) for i, emitted in people]
            for ahead in sorted(set(left)):
                held = [
                    self.context(i, emitted) + ahead + cache.block_tokens - 1
                    for (i, emitted), goes in zip(people, left, strict=True)
                    if goes >= ahead
                ]
                if sum(held) > cache.budget_tokens:
                    return False
        return True

    def prefix(self, action: int) -> list[int]:
        """Who would be let in, had a prefill no cap on tokens."""
        batch: list[int] = []
        for request in self.line(action)[: len(self.idle)]:
            if not self.lets_in(request, batch):
                break
            batch.append(request)
        return batch

    def compose_in_memory(self, action: int) -> list[tuple[int, int]]:
        case, cache = self.case, self.case.kv_cache
        batch: list[tuple[int, int]] = []
        tokens = 0
        most = len(self.idle)
        if cache.cap_levels:
            level = cache.cap_levels + 1 - action
            most = max(1, -(-level * case.num_clients // cache.cap_levels) - len(self.active))
        if not self.prefix(action):
            action = PREFILL  # nobody fits first in this order
        for client, request in zip(self.idle[:most], self.prefix(action), strict=False):
            emitted, copied = self.joined(request)
            computed = 0 if copied else case.prompts[request] + emitted - 1
            if tokens and computed and tokens + computed > case.token_cap:
                break
            tokens += computed
            batch.append((client, request))
        return batch

    def batch_ns(self, requests: list[int], case: Case) -> tuple[int, int]:
        """Duration of a prefill of these by the cost model of ``case``, and the tokens that it computes."""
        joined = {i: self.joined(i) for i in requests}
        computed = sum(self.context(i, n - 1) for i, (n, copied) in joined.items() if not copied)
        copied = sum(self.context(i, n) for i, (n, copied) in joined.items() if copied)
        copying_ns = copied * self.case.kv_cache.swap_token_ns
        return self.swap_out_ns + copying_ns + (self.prefill_ns(computed, case) if computed else 0), computed

    def make_room(self) -> None:
        """Preempt who started last until the next decode has room; under vLLM's rules the decode does that."""
        cache = self.case.kv_cache
        if self.uncached:
            if self.active and not self.scheduled()[0]:
                self.preempt(self.starts[-1])
                self.gave_way_alone += 1
            return
        while self.kv_after_decode(self.contexts()) > cache.budget_tokens:
            client = self.starts[-1]
            held = self.running[client]
            self.preempt(client)
            if cache.swap_token_ns:
                self.swapped += self.context(held.request, held.emitted)
                self.swap_out_ns += self.context(held.request, held.emitted) * cache.swap_token_ns

    def work(self, client: int, waiting: list[int], running: list[Running | None]) -> int:
        """Expected work of a client that can be robbed; -1 where nothing waits in its queue."""
        queue, held = self.own(client, waiting), running[client]
        if not queue:
            return -1
        left = 0 if held is None else max(0, self.case.estimates[held.request] - held.emitted)
        return left + sum(self.case.estimates[i] for i in queue)

    @property
    def ready(self) -> int:
        if self.case.kv_cache is not None:
            return len(self.prefix(PREFILL))
        if self.case.mixed is not None:
            return min(len(self.idle), len(self.waiting) + (self.reading is not None))
        if self.case.queues is None or self.case.stealing:
            return min(len(self.idle), len(self.waiting))
        return sum(1 for client in self.idle if self.own(client, self.waiting))

    @property
    def context_tokens(self) -> int:
        return sum(self.case.prompts[held.request] + held.emitted for held in self.active)

    @property
    def expected(self) -> list[int]:
        """Decodes that each active client is expected to go; 0 or less where the estimate was outlived."""
        return [self.case.estimates[held.request] - held.emitted for held in self.active]

    def request_ns(self) -> int:
        """Time that requests spent in the system, in sum."""
        released = [i for i in range(len(self.case.prompts)) if i not in self.unreleased]
        return sum(self.completion_ns.get(i, self.clock_ns) - self.case.releases_ns[i] for i in released)

    def busy_client_ns(self) -> int:
        return sum((end - start) * clients for start, end, _, clients in self.log) + sum(self.read_at_ns)

    def lasts(self, ns: int, kind: int) -> int:
        """What an iteration lasts that would last ``ns`` without noise."""
        noise = self.case.disturbance
        if noise is None:
            return ns
        count = sum(1 for entry in self.log if entry[2] == kind)
        word = mixed(noise.key ^ mixed(2 * count + (kind == PREFILL)))
        if noise.noise_sd:
            ns = ns * factors(noise.noise_sd)[word * PARTS // 2**32] // FRACTION
        if mixed(word ^ 0x3C6EF372) < noise.straggler_probability * 2**32:
            ns = math.floor(ns * noise.straggler_factor)
            self.stragglers += 1
        return max(1, ns)

    def prefill_ns(self, tokens: int, case: Case) -> int:
        if case.levels:
            return min(time for capacity, time in case.levels if capacity >= tokens)
        return case.alpha_prefill_ns + case.beta_prefill_ns * tokens

    def decode_ns(self, case: Case) -> int:
        served = self.active
        if case.kv_cache is not None and self.uncached:
            served = self.scheduled()[0]
        context = sum(case.prompts[held.request] + held.emitted for held in served)
        return (
            self.swap_out_ns + case.alpha_decode_ns + case.beta_decode_ns * len(served) + case.gamma_decode_ns * context
        )

    def view(self) -> dict[str, int]:
        """The fields of the core's view that have one exact value."""
        case, expected = self.case, self.expected
        on_time = [left for left in expected if left > 0]
        kinds = [kind for _, _, kind, _ in self.log]
        consecutive = next((i for i, kind in enumerate(reversed(kinds)) if kind == DECODE), len(kinds))
        fields = {
            "clock_ns": self.clock_ns,
            "prefills": kinds.count(PREFILL),
            "decodes": kinds.count(DECODE),
            "completed": len(self.completion_ns),
            "num_clients": case.num_clients,
            "active": len(self.active),
            "idle": len(self.idle),
            "waiting": len(self.waiting),
            "ready": self.ready,
            "decode_ns": self.decode_ns(self.told),
            "consecutive_prefills": consecutive,
            "idle_charge": sum(self.ready_at_decodes),
            "waiting_tokens": sum(case.prompts[i] for i in self.waiting),
            "waiting_work": sum(case.estimates[i] for i in self.waiting),
            "context_tokens": self.context_tokens,
            "overdue": len(expected) - len(on_time),
            "remaining": sum(on_time),
            "remaining_squared": sum(left * left for left in on_time),
        }
        for name, (first, last) in WINDOWS.items():
            fields[name] = sum(1 for left in on_time if first <= left <= last)
        if PREFILL in kinds:
            last_prefill = len(kinds) - 1 - kinds[::-1].index(PREFILL)
            if case.mixed is not None:
                last_prefill = self.last_read
            fields["last_prefill_ns"] = self.log[last_prefill][1] - self.log[last_prefill][0]
            fields["last_prefill_decode"] = kinds[: last_prefill + 1].count(DECODE)
        if self.waiting:
            fields["oldest_release_ns"] = min(case.releases_ns[i] for i in self.waiting)
        if case.ttft_ns:
            in_time = [case.releases_ns[i] for i in self.waiting if not self.late(i)]
            fields["ttft_ns"], fields["tpot_ns"] = case.ttft_ns, case.tpot_ns
            fields["late"] = len(self.waiting) - len(in_time)
            fields["in_time_release_ns"] = min(in_time, default=self.clock_ns)
            fields["decoding_ns"] = sum(self.clock_ns - self.first_token_ns[held.request] for held in self.active)
            fields["decoding_tokens"] = sum(held.emitted - 1 for held in self.active)
        if case.queues is None:
            batch = [request for _, request in self.compose()]
            fields["batch_requests"] = len(batch)
            fields["batch_tokens"] = sum(case.prompts[i] for i in batch)
            fields["batch_work"] = sum(case.estimates[i] for i in batch)
            if case.mixed is not None:
                fields["batch_tokens"] = sum(tokens for _, _, tokens in self.parts(PREFILL))
                fields["chunk_tokens"] = sum(tokens for _, _, tokens in self.parts(MIXED))
                fields["mixed_ns"] = self.mixed_ns
                fields["mixed_tokens"], fields["mixed"] = case.mixed.tokens, self.mixed
                fields["reading_tokens"] = 0 if self.reading is None else self.reading.left
            if batch:
                fields["prefill_ns"] = self.prefill_ns(fields["batch_tokens"], self.told)
        if case.kv_cache is not None:
            fields["batch_work"] = sum(max(1, case.estimates[i] - self.preempted.get(i, 0)) for i in batch)
            if batch:
                fields["prefill_ns"], fields["batch_tokens"] = self.batch_ns(batch, self.told)
            fields["kv_budget_tokens"] = case.kv_cache.budget_tokens
            fields["kv_used"] = self.kv_used
            grown = self.kv_after_decode(self.contexts()) - self.kv_used
            fields["kv_growth"] = self.scheduled()[2] if self.uncached else grown
            fields["preempted"] = len(self.preempted)
        return fields

    def counted(self) -> range:
        return range(self.case.uncounted, len(self.case.prompts) - self.case.uncounted)

    def broken_ttft(self) -> set[int]:
        """Counted requests that had their first token too late, or will: that is certain without noise only."""
        case = self.case
        started = {i for i, at in self.first_token_ns.items() if at - case.releases_ns[i] > case.ttft_ns}
        read_late = [self.reading.request] if self.reading is not None and self.reading.late else []
        given_up = [] if case.disturbance else [*read_late, *(i for i in self.waiting if self.late(i))]
        return {i for i in self.counted() if i in started or i in given_up}

    def broken_tpot(self) -> set[int]:
        """Counted requests that have ended too slowly."""
        case = self.case
        return {
            i
            for i in self.counted()
            if i in self.completion_ns
            and self.completion_ns[i] - self.first_token_ns[i] > case.tpot_ns * (case.outputs[i] - 1)
        }

    # What happens.

    def step(self, action: int) -> None:
        if action != DECODE and not self.ready:
            self.invalid_actions += 1
            action = DECODE
        elif action == DECODE and not self.active:
            self.invalid_actions += 1
            action = PREFILL
        if action != DECODE and self.case.mixed is not None:
            self.read(action)
        elif action != DECODE:
            self.prefill(action)
        else:
            self.decode()
        self.let_time_pass()

    def prefill(self, action: int) -> None:
        if self.case.kv_cache is not None:
            self.prefill_in_memory(action)
            return
        if self.case.moves is not None:
            self.prefill_with_moves()
            return
        batch, start_ns = self.compose(action), self.clock_ns
        self.chosen[self.order_of(action)] += 1
        self.overtaken += [request for _, request in batch] != self.waiting[: len(batch)]
        tokens = sum(self.case.prompts[request] for _, request in batch)
        self.stopped_at_cap += len(batch) < self.ready
        self.clock_ns += self.lasts(self.prefill_ns(tokens, self.case), PREFILL)
        self.batches.append(tokens)
        for client, request in batch:
            self.waiting.remove(request)
            self.running[client] = Running(request)
            self.client[request] = client
            self.prefill_start_ns[request] = start_ns
            self.first_token_ns[request] = self.clock_ns
            self.steals += self.case.queues is not None and self.case.queues[request] != client
        self.log.append((start_ns, self.clock_ns, PREFILL, len(batch)))
        self.ready_at_decodes = []
        self.retire()

    def prefill_in_memory(self, action: int) -> None:
        batch, start_ns = self.compose(action), self.clock_ns
        requests = [request for _, request in batch]
        duration, computed = self.batch_ns(requests, self.case)
        self.clock_ns += self.lasts(duration, PREFILL)
        self.swap_out_ns = 0
        if computed:
            self.batches.append(computed)
        for client, request in batch:
            emitted, copied = self.joined(request)
            if request in self.preempted:
                del self.preempted[request]
                if copied:
                    self.swapped += self.context(request, emitted)
                else:
                    self.recomputed += self.context(request, emitted - 1)
            else:
                self.waiting.remove(request)
                self.prefill_start_ns[request] = start_ns
                self.first_token_ns[request] = self.clock_ns
            self.running[client] = Running(request, emitted)
            self.client[request] = client
            self.starts.append(client)
            if not copied:
                self.token_ns.setdefault(request, []).append(self.clock_ns)
        self.log.append((start_ns, self.clock_ns, PREFILL, len(batch)))
        self.ready_at_decodes = []
        self.kv_peak = max(self.kv_peak, self.kv_used)
        self.retire()

    def decode(self) -> None:
        start_ns = self.clock_ns
        self.ready_at_decodes.append(self.ready)
        if self.case.kv_cache is not None and self.uncached:
            for client in self.scheduled()[1]:
                self.preempt(client)
        active = self.active
        self.idle_client_decodes += len(self.idle)
        self.active_at_decodes.append(len(active))
        self.clock_ns += self.lasts(self.decode_ns(self.case), DECODE)
        self.swap_out_ns = 0
        for held in active:
            held.emitted += 1
            self.token_ns.setdefault(held.request, []).append(self.clock_ns)
        if self.case.kv_cache is not None:
            self.kv_peak = max(self.kv_peak, self.kv_used)
        self.log.append((start_ns, self.clock_ns, DECODE, len(active)))
        self.retire()

    def retire(self) -> None:
        for client, held in enumerate(self.running):
            if held is not None and held.emitted == self.case.outputs[held.request]:
                self.completion_ns[held.request] = self.clock_ns
                self.running[client] = None
                if client in self.starts:
                    self.starts.remove(client)

    def let_time_pass(self) -> None:
        """Arrivals up to now; where nothing is left to do, the time until the next."""
        self.release()
        busy = self.active or self.waiting or self.preempted or self.reading
        if self.unreleased and not busy:
            next_ns = self.case.releases_ns[self.unreleased[0]]
            self.jump_ns += next_ns - self.clock_ns
            self.clock_ns = next_ns
            self.release()
        if self.case.kv_cache is not None:
            self.make_room()

    def release(self) -> None:
        while self.unreleased and self.case.releases_ns[self.unreleased[0]] <= self.clock_ns:
            self.arrived_inside += self.case.releases_ns[self.unreleased[0]] < self.clock_ns
            self.waiting.append(self.unreleased.pop(0))
