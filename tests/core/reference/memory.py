"""The KV cache: who holds how much, who is let in, and who gives way."""

from __future__ import annotations

from typing import NamedTuple

from .durations import Durations
from .prefixes import Key
from .state import Running


class Row(NamedTuple):
    """What an iteration does for a request that does not decode in it."""

    client: int
    request: int
    emitted: int  # output tokens before
    before: int  # tokens computed before, or cached
    tokens: int  # that it computes
    copied: int  # tokens that it copies in
    left: int  # tokens to compute after it
    cached: int = 0  # tokens that were in the prefix cache when its reading began

    @property
    def finishes(self) -> bool:
        """Whether the request is active after it."""
        return self.left == 0

    @property
    def joins_with(self) -> int:
        """Output tokens once it is active: with its whole context computed it has the next one."""
        return self.emitted + (0 if self.copied else 1)


class Memory(Durations):
    """Where there is no KV budget, nothing here is called but `takes_room`, `lets_in` and `settle_memory`."""

    def blocks(self, tokens: int) -> int:
        block = self.case.kv_cache.block_tokens
        return -(-tokens // block) * block

    @property
    def vllm(self) -> bool:
        """Whether the rules are vLLM's: it samples a token in one iteration and computes its cache in the next."""
        return self.case.kv_cache is not None and self.case.kv_cache.rule != "keep_growth"

    def holds(self, client: int) -> int:
        """Tokens in the cache of a client that runs, or reads."""
        reading, held = self.reading, self.running[client]
        if held is not None:
            return self.context(held.request, held.emitted) - (1 if self.vllm else 0)
        return reading.computed if self.vllm else reading.whole + 1

    @property
    def kv_used(self) -> int:
        if self.pool is not None:
            return self.pool.used * self.case.kv_cache.block_tokens
        holders = [client for client, held in enumerate(self.running) if held is not None]
        if self.reading is not None:
            holders.append(self.reading.client)
        return sum(self.blocks(self.holds(client)) for client in holders)

    def growth(self, served: list[Running]) -> int:
        """What a decode of these takes."""
        held = [self.context(one.request, one.emitted) - (1 if self.vllm else 0) for one in served]
        return sum(self.blocks(tokens + 1) - self.blocks(tokens) for tokens in held)

    def scheduled(self) -> tuple[list[Running], list[int]]:
        """vLLM's rules: whom an iteration that decodes serves, and the clients that it preempts, in turn.

        As its schedulers do it: one running request after another, in the order of starts. The one whose prefill is
        chunked is the last of them, and asks for nothing here.
        """
        cache = self.case.kv_cache
        free = (cache.budget_tokens - self.kv_used) // cache.block_tokens
        queue = [*self.starts, *([self.reading.client] if self.reading is not None else [])]
        served, gone = [], []
        trial = self.pool.copy() if self.pool is not None else None
        while queue:
            client = queue.pop(0)
            held = self.running[client]
            if held is None:
                break
            needs = self.growth([held]) // cache.block_tokens
            while free < (1 if cache.rule == "vllm_v0" else needs):
                victim = queue.pop() if queue else client
                gone.append(victim)
                held_by = self.running[victim] or self.reading
                if trial is None:
                    free += self.blocks(self.holds(victim)) // cache.block_tokens
                else:
                    free += trial.release(held_by.request, self.holds(victim))
                if victim == client:
                    break
            else:
                served.append(held)
                free -= needs
        return served, gone

    def has_blocks_for(self, row: Row, served: list[Running]) -> bool:
        """Whether the one whose prefill is chunked can go on so far, after what a decode of the served takes."""
        if not self.vllm:
            return True  # its blocks were taken when it was let in
        takes = self.blocks(row.before + row.tokens) - self.blocks(row.before)
        return self.kv_used + self.growth(served) + takes <= self.case.kv_cache.budget_tokens

    def lets_in(self, row: Row, rows: list[Row], served: list[Running]) -> bool:
        """Whether the row may join those before it, in an iteration that serves these."""
        cache = self.case.kv_cache
        if cache is None or not (self.active or rows or self.reading):
            return True
        together = [*rows, row]
        most = cache.budget_tokens - cache.headroom_tokens
        if self.vllm:
            if self.pool is not None:
                return self.shares_room(row, rows, served) <= most
            held = [self.holds(self.running.index(one)) + (one in served) for one in self.active]
            held += [one.before + one.tokens for one in rows] + [row.tokens + row.left]
            return sum(self.blocks(tokens) for tokens in held) <= most
        contexts = [self.context(one.request, one.emitted) + (one in served) + 1 for one in self.active]
        contexts += [self.context(one.request, one.joins_with) + one.finishes for one in together]
        if sum(self.blocks(tokens) for tokens in contexts) > most:
            return False
        if cache.admission == "reserve":
            return self.reserved(together) <= cache.budget_tokens
        return cache.admission == "fits" or self.expected_to_fit(together, bool(served))

    def shares_room(self, row: Row, rows: list[Row], served: list[Running]) -> int:
        """Tokens in use once the whole row has been computed, in blocks that rows before it may share."""
        used = self.kv_used + self.growth(served)
        joined: dict[Key, int] = {}
        for one in [*rows, row]:
            whole = one.before + one.tokens + (one.left if one is row else 0)
            chunked = self.reading is not None and self.reading.request == one.request
            _, busy = self.pool.hits(one.request, whole, joined) if not chunked else (0, 0)
            start = one.before if chunked else busy * self.pool.block
            used += self.blocks(whole) - self.blocks(start)
            joined.update(self.joined_by(one, joined))
        return used

    def joined_by(self, row: Row, joined: dict[Key, int]) -> dict[Key, int]:
        """Blocks of its prompt that a row of an iteration refers to."""
        chunked = self.reading is not None and self.reading.request == row.request
        have = self.pool.held[row.request] if chunked else row.before // self.pool.block
        if not chunked and self.pool.own(row.request):
            have = self.pool.held[row.request]
        there = {*self.pool.references, *self.pool.free, *joined}
        new = self.pool.known_after(row.request, have, row.before, row.before + row.tokens, there)
        return dict.fromkeys([*self.pool.keys(row.request)[:have], *new], 1)

    def give_up_blocks(self, client: int) -> None:
        held = self.running[client] or self.reading
        if self.pool is not None:
            self.pool.release(held.request, self.holds(client))

    def take_blocks(self, rows: list[Row], served: list[Running]) -> None:
        """An iteration begins, of which these are the rows and the served."""
        if self.pool is None:
            return
        reading = None if self.reading is None else self.reading.request
        taken = [(row.request, row.before, row.before + row.tokens, row.request != reading) for row in rows]
        self.pool.take(taken, self.growth(served) // self.pool.block)

    def reserved(self, together: list[Row]) -> int:
        case, cache = self.case, self.case.kv_cache
        everyone = [one.request for one in [*self.active, *together]]
        outputs = [cache.reserve_tokens or case.estimates[i] for i in everyone]
        return sum(self.blocks(case.prompts[i] + n) for i, n in zip(everyone, outputs, strict=True))

    def expected_to_fit(self, together: list[Row], beside: bool) -> bool:
        """Whether there is room at every decode to come, if all end as estimated and nobody else joins.

        Those who join beside a decode do so at its end: they hold a token less, and go a decode further, seen from now.
        """
        case, cache = self.case, self.case.kv_cache
        people = [(one.request, one.emitted, 0) for one in self.active]
        people += [(one.request, one.joins_with, int(beside)) for one in together]
        ends = [max(1, case.estimates[i] - emitted) + later for i, emitted, later in people]
        for ahead in sorted(set(ends)):
            held = [
                self.context(i, emitted) + ahead - later + cache.block_tokens - 1
                for (i, emitted, later), end in zip(people, ends, strict=True)
                if end >= ahead
            ]
            if sum(held) > cache.budget_tokens:
                return False
        return True

    def preempt(self, client: int) -> None:
        """Its request goes back in line: with its output tokens, or, where it has none, as if it had never begun."""
        self.preemptions += 1
        self.give_up_blocks(client)
        if self.reading is not None and self.reading.client == client:
            lost, self.reading = self.reading, None
            self.recomputed += lost.computed - lost.cached
            self.gave_way_reading += 1
            if lost.emitted:
                self.preempted[lost.request] = lost.emitted
            else:
                self.waiting = sorted([*self.waiting, lost.request])
            return
        held = self.running[client]
        self.starts.remove(client)
        self.running[client] = None
        self.preempted[held.request] = held.emitted

    def expected_output(self, client: int) -> int:
        """Of the request that it runs: the estimate, or what has been emitted, where that is more."""
        held = self.running[client]
        return max(held.emitted, self.case.estimates[held.request])

    def settle_memory(self) -> None:
        """Preempt until the next decode has room, who started last or who is expected to be shortest.

        Under vLLM's rules the decode does that.
        """
        cache = self.case.kv_cache
        if cache is None:
            return
        if self.vllm:
            if self.active and not self.scheduled()[0]:
                self.preempt(self.starts[-1])
                self.gave_way_alone += 1
            return
        while self.kv_used + self.growth(self.active) > cache.budget_tokens:
            if self.reading is not None:
                self.preempt(self.reading.client)
                continue
            client = self.starts[-1]
            if cache.victim == "least_estimate":
                client = min(reversed(self.starts), key=self.expected_output)
            held = self.running[client]
            self.preempt(client)
            if cache.swap_token_ns:
                self.swapped += self.context(held.request, held.emitted)
                self.swap_out_ns += self.context(held.request, held.emitted) * cache.swap_token_ns
