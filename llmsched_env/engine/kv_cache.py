"""The KV cache as a budget of tokens: who is let in, what each decode takes, and who gives way when it would overflow.

A client holds its request's prompt and the output tokens so far, in whole blocks. Where there is no room for what the
next decode takes, the client that started last, or that with the smallest estimate, is *preempted*, again and again,
until there is. What it has emitted stays emitted. It comes back before all others, in queue order: its prompt and
emitted tokens are computed anew, which gives the next token; or, where they were swapped, copied back, which gives
none.

There are three rules of when that is (config.KV_RULES). `keep_growth`: between iterations there is always room for the
next decode; an admission leaves it, and whoever has to give way does so as soon as an iteration ends. vLLM's: an
admission leaves no such room, the decode itself preempts before it begins, and the token that was sampled last has no
cache yet, so that a client holds one token less. `vllm_v1` preempts where a block is needed and none is free; `vllm_v0`
where none is free at a client's turn, in the order of starts, be it needed or not.
"""

from __future__ import annotations

from typing import Any

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.arrays import int32s, int64s
from llmsched_env.engine.iteration import Iteration
from llmsched_env.engine.prefix_cache import PrefixCache
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.view import View


class KVCache:
    """The cache of an episode, and the clients that hold a part of it, in the order in which they started.

    Attributes:
        problem: the case.
        enabled: whether the cache is a limit.
        budget: tokens that it holds.
        block: tokens that are allocated at a time.
        headroom: tokens that an admission leaves free.
        rule: codes.KEEP_GROWTH, VLLM_V0 or VLLM_V1.
        admission: codes.FITS, RESERVE or PREDICTED.
        reserve_tokens: output tokens set aside for each request; 0 for its estimate.
        by_estimate: whether who gives way is the client with the smallest estimate, and not the last.
        swap_token_ns: time to copy a token's cache out or back; 0: preempted requests are computed again.
        uncached: tokens of a running request that have no cache yet.
        clients: the episode's table of clients.
        last: client that started last, -1 for none.
        below: (J,) int32: the client that started before each; -1 for none.
        above: (J,) int32: the one that started after it.
        phases: (block,) int64: clients by (tokens held - decodes) modulo the block: the next decode finds those whose
            blocks are full.
        emitted: (n,) int32: tokens that a request had emitted when it was preempted last, by position; 0 for never.
        reserved: tokens set aside.
        swap_out_ns: time of the copying out that the next iteration waits for.
        batch: tokens taken by the iteration that is being composed.
        batch_growth: what those will take in the decode after it.
        batch_reserved: what is set aside for those.
        company: whether somebody is in the cache besides those.
        this_growth: tokens that the decode of that iteration takes.
        next_growth: what the decode after it takes for those that are active now.
        later: 1 where who joins beside a decode starts a decode later than now, else 0.
        ending: (mask + 1,) int32: scratch: clients expected to finish, by decode.
        ending_context: (mask + 1,) int64: scratch: sum of their tokens held - decodes.
        shares: whether blocks are shared and kept (prefix_cache.py).
        prefix: which ones.
    """

    problem: ProblemData
    enabled: cython.bint
    budget: cython.longlong
    block: cython.longlong
    headroom: cython.longlong
    rule: cython.int
    admission: cython.int
    reserve_tokens: cython.longlong
    swap_token_ns: cython.longlong
    by_estimate: cython.bint
    uncached: cython.longlong
    clients: cython.int[:, ::1]
    last: cython.int
    below: cython.int[::1]
    above: cython.int[::1]
    phases: cython.longlong[::1]
    emitted: cython.int[::1]
    reserved: cython.longlong
    swap_out_ns: cython.longlong
    batch: cython.longlong
    batch_growth: cython.longlong
    batch_reserved: cython.longlong
    company: cython.bint
    this_growth: cython.longlong
    next_growth: cython.longlong
    later: cython.longlong
    ending: cython.int[::1]
    ending_context: cython.longlong[::1]
    shares: cython.bint
    prefix: PrefixCache

    def __init__(
        self,
        problem: ProblemData,
        clients: Any,
        budget: int = 0,
        block: int = 1,
        headroom: int = 0,
        rule: int = 0,
        admission: int = 0,
        reserve_tokens: int = 0,
        swap_token_ns: int = 0,
        by_estimate: bool = False,
        prefix_caching: bool = False,
    ) -> None:
        self.problem = problem
        self.enabled = budget > 0
        self.budget = budget
        self.block = block
        self.headroom = headroom
        self.rule = rule
        self.admission = admission
        self.reserve_tokens = reserve_tokens
        self.swap_token_ns = swap_token_ns
        self.by_estimate = by_estimate
        self.uncached = 0 if rule == codes.KEEP_GROWTH else 1
        self.clients = clients
        self.last = -1
        size = problem.num_clients if budget > 0 else 1
        self.below = int32s(size, -1)
        self.above = int32s(size, -1)
        self.phases = int64s(block)
        self.emitted = int32s(problem.num_requests if budget > 0 else 1)
        self.reserved = 0
        self.swap_out_ns = 0
        self.batch = 0
        self.batch_growth = 0
        self.batch_reserved = 0
        self.company = False
        self.this_growth = 0
        self.next_growth = 0
        self.later = 0
        ring = problem.ring_mask + 1 if admission == codes.PREDICTED else 1
        self.ending = int32s(ring)
        self.ending_context = int64s(ring)
        self.shares = prefix_caching
        self.prefix = PrefixCache(problem, prefix_caching, budget // block, block)

    def assign(self, other: KVCache) -> cython.void:
        """Take over another one's state, of the same problem; what is scratch does not count."""
        i: cython.int
        if not self.enabled:
            return
        self.assign_clients(other)
        for i in range(self.emitted.shape[0]):
            self.emitted[i] = other.emitted[i]
        self.prefix.assign(other.prefix)

    def assign_clients(self, other: KVCache) -> cython.void:
        """Take over what clients hold, of a cache of the same sizes."""
        i: cython.int
        for i in range(self.below.shape[0]):
            self.below[i] = other.below[i]
            self.above[i] = other.above[i]
        for i in range(self.phases.shape[0]):
            self.phases[i] = other.phases[i]
        self.last = other.last
        self.reserved = other.reserved
        self.swap_out_ns = other.swap_out_ns

    def allocated(self, tokens: cython.longlong) -> cython.longlong:
        """Tokens in whole blocks."""
        return (tokens + self.block - 1) // self.block * self.block

    def growth_at(self, decodes: cython.longlong) -> cython.longlong:
        """What the decode after ``decodes`` takes: a block for each client whose blocks are full."""
        return self.block * self.phases[(self.block - decodes % self.block) % self.block]

    def phase(self, tokens: cython.longlong, decodes: cython.longlong) -> cython.longlong:
        """Where a client that holds ``tokens`` now is counted."""
        return (tokens + self.block - decodes % self.block) % self.block

    def holds(self, v: View, client: cython.int) -> cython.longlong:
        """Tokens that an active client has in the cache."""
        prompt: cython.longlong = self.problem.requests[self.clients[client, codes.RUNNING], codes.PROMPT]
        return prompt + v.decodes - self.clients[client, codes.BASE] - self.uncached

    # Clients come and go.

    def enter(self, v: View, client: cython.int, context: cython.longlong) -> cython.void:
        """The client starts with so many tokens of context."""
        tokens: cython.longlong = context - self.uncached
        self.below[client] = self.last
        self.above[client] = -1
        if self.last >= 0:
            self.above[self.last] = client
        self.last = client
        self.phases[self.phase(tokens, v.decodes)] += 1
        if not self.shares:  # else all rows of the iteration together
            v.kv_used += self.allocated(tokens)
        self.reserved += self.aside(self.clients[client, codes.RUNNING])

    def leave(self, v: View, client: cython.int, context: cython.longlong) -> cython.void:
        """The client stops with so many tokens of context: complete or preempted."""
        tokens: cython.longlong = context - self.uncached
        below: cython.int = self.below[client]
        above: cython.int = self.above[client]
        if below >= 0:
            self.above[below] = above
        if above >= 0:
            self.below[above] = below
        else:
            self.last = below
        self.phases[self.phase(tokens, v.decodes)] -= 1
        v.kv_used -= self.given_back(self.clients[client, codes.RUNNING], tokens)
        self.reserved -= self.aside(self.clients[client, codes.RUNNING])

    def given_back(self, position: cython.int, tokens: cython.longlong) -> cython.longlong:
        """What gets free where a request gives up the so many tokens that it holds."""
        return self.prefix.release(position, tokens) if self.shares else self.allocated(tokens)

    def aside(self, position: cython.int) -> cython.longlong:
        """What is set aside for a request where admission is by reserve."""
        output: cython.longlong = self.reserve_tokens
        if output == 0:
            output = self.problem.requests[position, codes.ESTIMATE]
        return self.allocated(self.problem.requests[position, codes.PROMPT] + output)

    def reads(self, position: cython.int, computed: cython.longlong) -> cython.longlong:
        """Tokens that a request takes whose prefill is chunked, ``computed`` so far."""
        if self.rule == codes.KEEP_GROWTH:  # all that it will need at its first token
            return self.allocated(self.problem.requests[position, codes.PROMPT] + self.emitted[position] + 1)
        return self.allocated(computed)

    # Who gives way.

    def victim(self, v: View) -> cython.int:
        """The active client that gives way next where room is kept: the last, or that of the smallest estimate."""
        client: cython.int = self.last
        found: cython.int = self.last
        tokens: cython.longlong
        least: cython.longlong = -1
        while self.by_estimate and client >= 0:
            tokens = self.problem.requests[self.clients[client, codes.RUNNING], codes.ESTIMATE]
            tokens = max(tokens, v.decodes - self.clients[client, codes.BASE])
            if least < 0 or tokens < least:
                least = tokens
                found = client
            client = self.below[client]
        return found

    def short(self, used: cython.longlong, growth: cython.longlong, last_held: cython.longlong) -> cython.bint:
        """Whether somebody has to give way for a decode that takes ``growth``; the last to start holds so much."""
        free: cython.longlong = self.budget - used
        if self.rule == codes.VLLM_V0:
            # A client asks for a free block at its turn, so one has to be left for the last, unless it is that last.
            free -= free % self.block
            return growth > free or (growth == free and last_held % self.block != 0)
        return growth > free

    def plan_decode(self, v: View, it: Iteration, reading: cython.int, computed: cython.longlong) -> cython.void:
        """vLLM's rules: who gives way for a decode now, whom it then serves, and what it takes.

        Args:
            v: the view.
            it: takes the answer.
            reading: position of the request whose prefill is chunked; -1 without one.
            computed: tokens of it so far.
        """
        i: cython.int
        used: cython.longlong = v.kv_used
        held: cython.longlong
        client: cython.int = self.last
        it.growth = self.growth_at(v.decodes)
        it.served = v.active
        it.context = v.context_tokens
        it.victims = 0
        it.drops_reading = False
        if reading >= 0 and it.growth > self.budget - used:
            it.drops_reading = True
            used -= self.would_give_back(reading, computed)
        while client >= 0:
            held = self.holds(v, client)
            if not self.short(used, it.growth, held):
                break
            used -= self.would_give_back(self.clients[client, codes.RUNNING], held)
            if held % self.block == 0:
                it.growth -= self.block
            it.victims += 1
            it.served -= 1
            it.context -= held + self.uncached
            client = self.below[client]
        if self.shares:
            if it.drops_reading:
                self.prefix.keep(reading)
            client = self.last
            for i in range(it.victims):  # noqa: B007  # a C variable
                self.prefix.keep(self.clients[client, codes.RUNNING])
                client = self.below[client]

    def would_give_back(self, position: cython.int, tokens: cython.longlong) -> cython.longlong:
        """What would get free if the request gave way, after those of whom this has been asked in this plan."""
        return self.prefix.give_up(position, tokens) if self.shares else self.allocated(tokens)

    # Who is let in.

    def begin(
        self, v: View, it: Iteration, decoding: cython.bint, reading: cython.int, context: cython.longlong
    ) -> cython.void:
        """Nobody has joined the iteration that is being composed but the request whose prefill is chunked.

        Args:
            v: the view.
            it: the iteration; its decode is planned.
            decoding: whether it has one.
            reading: position of the request whose prefill is chunked; -1 without one.
            context: tokens of that one's context when it is computed.
        """
        client: cython.int = self.last
        base: cython.longlong
        i: cython.int
        position: cython.int
        self.batch = it.taken
        self.batch_growth = 0
        self.batch_reserved = 0
        self.this_growth = it.growth if decoding else 0
        self.next_growth = 0
        if self.rule == codes.KEEP_GROWTH:
            self.next_growth = self.growth_at(v.decodes + 1 if decoding else v.decodes)
            if it.rows > 0 and it.left == 0 and context % self.block == 0:
                self.batch_growth = self.block  # for the request whose prompt ends
        if self.shares:
            self.prefix.begin()
            if it.rows > 0:
                self.prefix.mark_on(reading, context - 1 - it.left - it.tokens[0], context - 1 - it.left)
        self.company = v.active > 0 or reading >= 0
        self.later = 1 if decoding else 0
        if self.admission != codes.PREDICTED:
            return
        for i in range(self.ending.shape[0]):
            self.ending[i] = 0
            self.ending_context[i] = 0
        while client >= 0:
            position = self.clients[client, codes.RUNNING]
            base = self.clients[client, codes.BASE]
            self.expect(
                v,
                self.problem.requests[position, codes.PROMPT] + v.decodes - base,
                base + self.problem.requests[position, codes.ESTIMATE],
                0,
            )
            client = self.below[client]
        if reading >= 0:
            self.expect(v, context, self.due(v, reading, context), self.later)

    def due(self, v: View, position: cython.int, context: cython.longlong) -> cython.longlong:
        """Decode at which a request is expected to finish that starts now with so many tokens of context."""
        tokens: cython.longlong = context - self.problem.requests[position, codes.PROMPT]
        return v.decodes + self.problem.requests[position, codes.ESTIMATE] - tokens

    def expect(self, v: View, context: cython.longlong, due: cython.longlong, later: cython.longlong) -> cython.void:
        """Add a request to the scratch; one that has outlived its estimate is expected to finish in the next decode.

        Args:
            v: the view.
            context: tokens that it holds when it decodes.
            due: decode at which it is expected to finish, if it decodes from now on.
            later: decodes until it does.
        """
        slot: cython.longlong = ((due if due > v.decodes else v.decodes + 1) + later) & self.problem.ring_mask
        self.ending[slot] += 1
        self.ending_context[slot] += context - v.decodes - later

    def expected_to_fit(self, v: View) -> cython.bint:
        """Whether at no decode to come more is held than there is, if all finish as expected and nobody else joins.

        What is held grows up to the decode at which the next one finishes. A request's blocks are full but for at most
        one token less than a block.
        """
        clients: cython.longlong = 0
        context: cython.longlong = 0
        decode: cython.longlong = v.decodes + self.problem.ring_mask + 1
        slot: cython.longlong
        while decode > v.decodes:
            slot = decode & self.problem.ring_mask
            if self.ending[slot] > 0:
                clients += self.ending[slot]
                context += self.ending_context[slot]
                if context + clients * (decode + self.block - 1) > self.budget:
                    return False
            decode -= 1
        return True

    def admit(self, v: View, position: cython.int, part: cython.longlong) -> cython.bint:
        """Whether the request at ``position`` may join the iteration that is being composed; if so, it has joined.

        One that would be alone in the cache joins in any case: alone each of them fits, all along.

        Args:
            v: the view.
            position: of the request, the last one looked up in the prefix cache.
            part: tokens of its chunk; -1 where it is computed whole, or copied.
        """
        emitted: cython.longlong = self.emitted[position]
        context: cython.longlong = self.problem.requests[position, codes.PROMPT] + emitted + 1
        held: cython.longlong
        grows: cython.longlong = 0
        aside: cython.longlong = 0
        alone: cython.bint = not self.company and self.batch == 0
        if emitted > 0 and self.swap_token_ns > 0:
            context -= 1
        held = self.allocated(context - self.uncached)
        if self.shares:  # what others hold, too, takes no room
            held -= self.prefix.in_use * self.block
        if self.rule == codes.KEEP_GROWTH and part < 0 and context % self.block == 0:
            grows = self.block
        if not alone and (
            v.kv_used + self.this_growth + self.batch + held + self.next_growth + self.batch_growth + grows
            > self.budget - self.headroom
        ):
            return False
        if self.admission == codes.RESERVE:
            aside = self.aside(position)
            if not alone and self.reserved + self.batch_reserved + aside > self.budget:
                return False
        elif self.admission == codes.PREDICTED:
            self.expect(v, context, self.due(v, position, context), self.later)
            if not alone and not self.expected_to_fit(v):
                return False
        if part >= 0 and self.rule != codes.KEEP_GROWTH:
            held = self.allocated(part)
            if self.shares:
                held += (self.prefix.hit - self.prefix.in_use) * self.block
        if self.shares:
            self.prefix.mark(position, self.prefix.hit * self.block + part if part >= 0 else context - 1)
        self.batch += held
        self.batch_growth += grows
        self.batch_reserved += aside
        return True
