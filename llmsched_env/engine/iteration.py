"""One iteration as it is composed: a batch of rows beside a decode, or without one."""

from __future__ import annotations

import cython

from llmsched_env.engine.arrays import int32s, int64s


class Iteration:
    """Who joins, with how many tokens, and what gives way for it. Nothing has happened yet.

    Each row is a request that is computed (in part, or whole), or copied back into the cache. A preview is an iteration
    that is composed and not run.

    Attributes:
        rows: how many requests join; the one whose prefill is chunked comes first.
        position: (J + 1,) int32: of each row.
        client: (J + 1,) int32: that takes it; known when it is run.
        tokens: (J + 1,) int64: tokens that it computes; 0 where it is copied.
        cached: (J + 1,) int64: tokens of each row that joins which are in the cache already, with prefix caching.
        computed: tokens computed, in sum.
        copied: tokens copied in.
        work: estimated output tokens of the rows that are left to emit.
        left: tokens that the last row has left to compute after this iteration; 0 at the end of its prompt.
        served: active clients that have a token.
        context: tokens of context that they hold.
        growth: tokens of the KV cache that this takes.
        taken: tokens of the KV cache that the rows take.
        victims: active clients that give way for it, those that started last.
        drops_reading: whether the request whose prefill is chunked gives way.
        moved: clients that take over a running request: the last entries of ``client``.
        again: tokens computed that some client holds already.
        carried: tokens copied from one client to another.
        ready: clients that would start something, were there no cap on tokens.
    """

    rows: cython.int
    position: cython.int[::1]
    client: cython.int[::1]
    tokens: cython.longlong[::1]
    cached: cython.longlong[::1]
    computed: cython.longlong
    copied: cython.longlong
    work: cython.longlong
    left: cython.longlong
    served: cython.longlong
    context: cython.longlong
    growth: cython.longlong
    taken: cython.longlong
    victims: cython.int
    drops_reading: cython.bint
    moved: cython.int
    again: cython.longlong
    carried: cython.longlong
    ready: cython.longlong

    def __init__(self, num_clients: int) -> None:
        self.position = int32s(num_clients + 1)
        self.client = int32s(num_clients + 1)
        self.tokens = int64s(num_clients + 1)
        self.cached = int64s(num_clients + 1)
        self.rows = 0
        self.computed = 0
        self.copied = 0
        self.work = 0
        self.left = 0
        self.served = 0
        self.context = 0
        self.growth = 0
        self.taken = 0
        self.moved = 0
        self.again = 0
        self.carried = 0
        self.victims = 0
        self.drops_reading = False
        self.ready = 0

    def clear(self) -> cython.void:
        """Nobody has joined."""
        self.rows = 0
        self.computed = 0
        self.copied = 0
        self.work = 0
        self.left = 0
        self.taken = 0
        self.moved = 0
        self.again = 0
        self.carried = 0
        self.ready = 0

    def add(self, position: cython.int, tokens: cython.longlong, work: cython.longlong) -> cython.void:
        """The request at ``position`` computes so many tokens."""
        self.position[self.rows] = position
        self.tokens[self.rows] = tokens
        self.rows += 1
        self.computed += tokens
        self.work += work

    def assign(self, other: Iteration) -> cython.void:
        """Take over another one's rows."""
        i: cython.int
        for i in range(other.rows):
            self.position[i] = other.position[i]
            self.tokens[i] = other.tokens[i]
            self.cached[i] = other.cached[i]
        self.rows = other.rows
        self.computed = other.computed
        self.copied = other.copied
        self.work = other.work
        self.left = other.left
        self.served = other.served
        self.context = other.context
        self.growth = other.growth
        self.taken = other.taken
        self.victims = other.victims
        self.drops_reading = other.drops_reading
        self.ready = other.ready
