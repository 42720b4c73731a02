"""Search for starts of requests at given prefills, and for the prefills' instants (`llmsched_env/offline/joint`)."""

from __future__ import annotations

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline.kernels import xorshift


def above(value: cython.longlong, limit: cython.longlong) -> cython.longlong:
    """How far a value lies above a limit."""
    return value - limit if value > limit else 0


class Instants:
    """Prefills at instants of a count of decodes, and the one that each request starts in.

    A request that starts at prefill a holds a client until the first prefill that comes once its decodes are done:
    over the *gaps* a to ``end_of`` - 1, of which gap k lies between prefills k and k + 1. In no gap are more clients
    held than there are, and no prefill reads more than its cap: what exceeds is penalised, and weights of what stays
    violated grow where ``growth`` is not 0.

    Penalties are integers, in tokens times weight, so that a search is the same on every machine.

    Attributes:
        num_requests: n.
        num_free: those that may be moved; the others, which are the last ones, hold their clients where they are.
        num_clients: J.
        num_prefills: K.
        horizon: D: decodes in all; no request ends later.
        token_cap: most prompt tokens of a prefill.
        client_weight: tokens that a client too many counts as.
        state: of the random numbers.
        decodes: (n,) decodes of each request.
        prompts: (n,) prompt tokens.
        instants: (K,) decodes before each prefill, ascending.
        start_of: (n,) the prefill that each request starts in.
        end_of: (n,) the prefill that may take its client again; K where none does.
        held: (K,) clients held in each gap.
        held_then: (K,) the same with the move that is tried.
        load: (K,) prompt tokens of each prefill.
        held_weights: (K,) of a client too many.
        load_weights: (K,) of a token too many.
        next_at: (D + 2,) the first prefill at or after each count of decodes.
        first_of: (K + D + 2,) a request that starts at each prefill, then one that is done at each count of decodes,
            -1 where none is: the heads of lists,
        after: (2, n) whose next requests these are, -1 at the end,
        before: (2, n) and those before, -1 at the head.
        changed: (n,) requests whose end changes in the move that is tried.
        new_end: (n,) their ends.
        best_start: (n,) ``start_of`` where least was violated.
        best_instants: (K,) ``instants`` there.
        least: what was violated there, in tokens.
        quantiles: (4096,) of the exponential distribution, in 4096ths.
        unit: a weight of 1.
        near: half of the moves of one request lead at most so many prefills away.
        look_every: moves between two looks at what is violated.
    """

    num_requests: cython.int
    num_free: cython.int
    num_clients: cython.int
    num_prefills: cython.int
    horizon: cython.int
    token_cap: cython.longlong
    client_weight: cython.longlong
    state: cython.longlong
    decodes: cython.int[::1]
    prompts: cython.int[::1]
    instants: cython.int[::1]
    start_of: cython.int[::1]
    end_of: cython.int[::1]
    held: cython.longlong[::1]
    held_then: cython.longlong[::1]
    load: cython.longlong[::1]
    held_weights: cython.longlong[::1]
    load_weights: cython.longlong[::1]
    next_at: cython.int[::1]
    first_of: cython.int[::1]
    after: cython.int[:, ::1]
    before: cython.int[:, ::1]
    changed: cython.int[::1]
    new_end: cython.int[::1]
    best_start: cython.int[::1]
    best_instants: cython.int[::1]
    least: cython.longlong
    quantiles: cython.longlong[::1]
    unit: cython.longlong
    near: cython.int
    look_every: cython.longlong

    def __init__(
        self,
        decodes: NDArray[np.int32],
        prompts: NDArray[np.int32],
        instants: NDArray[np.int32],
        start_of: NDArray[np.int32],
        num_clients: int,
        horizon: int,
        token_cap: int,
        seed: int,
        pinned: int = 0,
    ) -> None:
        n, count = len(decodes), len(instants)
        self.num_requests = n
        self.num_free = n - pinned
        self.num_clients = num_clients
        self.num_prefills = count
        self.horizon = horizon
        self.token_cap = token_cap
        self.client_weight = max(1, int(prompts.sum()) // n)
        self.state = (seed * 2654435761 + 0x9E3779B9) & 0xFFFFFFFF or 1
        self.unit = 256
        self.near = 4
        self.look_every = 2048
        self.decodes = memoryview(np.array(decodes, np.int32))
        self.prompts = memoryview(np.array(prompts, np.int32))
        self.instants = memoryview(np.array(instants, np.int32))
        self.start_of = memoryview(np.array(start_of, np.int32))
        self.end_of = memoryview(np.zeros(n, np.int32))
        self.held = memoryview(np.zeros(count, np.int64))
        self.held_then = memoryview(np.zeros(count, np.int64))
        self.load = memoryview(np.zeros(count, np.int64))
        self.held_weights = memoryview(np.full(count, self.unit, np.int64))
        self.load_weights = memoryview(np.full(count, self.unit, np.int64))
        self.next_at = memoryview(np.zeros(horizon + 2, np.int32))
        self.first_of = memoryview(np.full(count + horizon + 2, -1, np.int32))
        self.after = memoryview(np.full((2, n), -1, np.int32))
        self.before = memoryview(np.full((2, n), -1, np.int32))
        self.changed = memoryview(np.zeros(n, np.int32))
        self.new_end = memoryview(np.zeros(n, np.int32))
        self.best_start = memoryview(np.array(start_of, np.int32))
        self.best_instants = memoryview(np.array(instants, np.int32))
        self.least = 2**62
        chances = (np.arange(4096) + 0.5) / 4096
        self.quantiles = memoryview(np.rint(-np.log(chances) * 4096).astype(np.int64))
        self.enter()

    def run(self, moves: int, temperatures: NDArray[np.int64], *, shifts: int, growth: int) -> int:
        """Search; ``best_start`` and ``best_instants`` receive the best that was met.

        Args:
            moves: how many to try.
            temperatures: (stages,) in weighted tokens, one after another for equal shares of the moves.
            shifts: of 1000 moves, how many move an instant.
            growth: by how much the weight of what is violated grows, per client or token, at each look at it.

        Returns:
            What is violated at the best, in tokens; 0 where nothing is.
        """
        stages: cython.longlong[::1] = memoryview(np.ascontiguousarray(temperatures, np.int64))
        most: cython.longlong = moves
        share: cython.int = shifts
        more: cython.longlong = growth
        with cython.nogil:
            self.search(most, stages, share, more)
        return int(self.least)

    def enter(self) -> cython.void:
        """Count clients and tokens of the starts as they are; starts that would end too late come earlier."""
        i: cython.int
        k: cython.int = 0
        x: cython.int
        for x in range(self.horizon + 2):
            while k < self.num_prefills and self.instants[k] < x:
                k += 1
            self.next_at[x] = k
        for i in range(self.num_requests):
            while self.start_of[i] > 0 and self.instants[self.start_of[i]] + self.decodes[i] > self.horizon:
                self.start_of[i] -= 1
            self.end_of[i] = self.end(i, self.start_of[i])
            self.hold(self.start_of[i], self.end_of[i], 1)
            self.load[self.start_of[i]] += self.prompts[i]
            self.link(0, i, self.start_of[i])
            self.link(1, i, self.done_at(i))

    def done_at(self, i: cython.int) -> cython.int:
        """The list of those that are done when this request is."""
        done: cython.int = self.instants[self.start_of[i]] + self.decodes[i]
        return self.num_prefills + done

    def link(self, kind: cython.int, i: cython.int, place: cython.int) -> cython.void:
        """Put a request into a list."""
        head: cython.int = self.first_of[place]
        self.after[kind, i] = head
        self.before[kind, i] = -1
        if head >= 0:
            self.before[kind, head] = i
        self.first_of[place] = i

    def unlink(self, kind: cython.int, i: cython.int, place: cython.int) -> cython.void:
        """Take it out again."""
        if self.before[kind, i] >= 0:
            self.after[kind, self.before[kind, i]] = self.after[kind, i]
        else:
            self.first_of[place] = self.after[kind, i]
        if self.after[kind, i] >= 0:
            self.before[kind, self.after[kind, i]] = self.before[kind, i]

    def start(self, i: cython.int, k: cython.int, end: cython.int) -> cython.void:
        """Let a request start at a prefill and end at another; who is held and read is counted elsewhere."""
        self.unlink(0, i, self.start_of[i])
        self.unlink(1, i, self.done_at(i))
        self.start_of[i] = k
        self.end_of[i] = end
        self.link(0, i, k)
        self.link(1, i, self.done_at(i))

    def end(self, i: cython.int, start: cython.int) -> cython.int:
        """The prefill that may take the client of a request that starts at ``start``."""
        free: cython.int = self.next_at[self.instants[start] + self.decodes[i]]
        return free if free > start else start + 1

    def hold(self, first: cython.int, last: cython.int, change: cython.longlong) -> cython.void:
        """Enter clients of the gaps ``first`` to ``last`` - 1."""
        k: cython.int
        for k in range(first, last):
            self.held[k] += change

    def drawn(self, below: cython.longlong) -> cython.int:
        """A random number from 0 to ``below`` - 1."""
        number: cython.int
        self.state = xorshift.next_random(self.state)
        number = cython.cast(cython.int, (self.state * below) >> 32)
        return number

    def taken(self, loss: cython.longlong, temperature: cython.longlong) -> cython.bint:
        """Whether a move that costs so much is made."""
        return loss <= 0 or loss <= (temperature * self.quantiles[self.drawn(4096)]) >> 12

    def search(
        self, moves: cython.longlong, stages: cython.longlong[::1], shifts: cython.int, growth: cython.longlong
    ) -> cython.void:
        """Move until nothing is violated, or ``moves`` are spent."""
        m: cython.longlong
        stage: cython.Py_ssize_t = 0
        per_stage: cython.longlong = moves // stages.shape[0] + 1
        kind: cython.int
        for m in range(moves):
            if m % self.look_every == 0 and self.look(growth) == 0:
                return
            if m >= (stage + 1) * per_stage:
                stage += 1
            kind = self.drawn(1000)
            if kind < shifts:
                self.try_shift(stages[stage])
            elif kind & 1:
                self.try_start(stages[stage])
            else:
                self.try_swap(stages[stage])
        self.look(0)

    def look(self, growth: cython.longlong) -> cython.longlong:
        """What is violated, in tokens; kept where it is the least so far, and its weights grow."""
        k: cython.int
        i: cython.int
        clients: cython.longlong
        tokens: cython.longlong
        total: cython.longlong = 0
        for k in range(self.num_prefills):
            clients = above(self.held[k], self.num_clients)
            tokens = above(self.load[k], self.token_cap)
            total += clients * self.client_weight + tokens
            self.held_weights[k] += growth * clients
            if tokens > 0:
                self.load_weights[k] += growth
        if total < self.least:
            self.least = total
            for i in range(self.num_requests):
                self.best_start[i] = self.start_of[i]
            for k in range(self.num_prefills):
                self.best_instants[k] = self.instants[k]
        return total

    def held_cost(self, first: cython.int, last: cython.int, change: cython.longlong) -> cython.longlong:
        """What the penalty grows by where ``change`` more clients are held over gaps ``first`` to ``last`` - 1."""
        k: cython.int
        cost: cython.longlong = 0
        for k in range(first, last):
            cost += self.held_weights[k] * (
                above(self.held[k] + change, self.num_clients) - above(self.held[k], self.num_clients)
            )
        return cost * self.client_weight

    def load_cost(self, k: cython.int, change: cython.longlong) -> cython.longlong:
        """The same where a prefill reads ``change`` more tokens."""
        more: cython.longlong = above(self.load[k] + change, self.token_cap) - above(self.load[k], self.token_cap)
        more *= self.load_weights[k]
        return more

    def try_start(self, temperature: cython.longlong) -> cython.void:
        """Let a request start at another prefill."""
        i: cython.int = self.drawn(self.num_free)
        old: cython.int = self.start_of[i]
        new: cython.int
        was: cython.int = self.end_of[i]
        then: cython.int
        cost: cython.longlong
        if self.drawn(2):
            new = self.drawn(self.num_prefills)
        else:
            new = old + self.drawn(2 * self.near + 1) - self.near
        if new < 0 or new >= self.num_prefills or new == old:
            return
        if self.instants[new] + self.decodes[i] > self.horizon:
            return
        then = self.end(i, new)
        cost = self.load_cost(old, -self.prompts[i]) + self.load_cost(new, self.prompts[i])
        if was <= new or then <= old:
            cost += self.held_cost(old, was, -1) + self.held_cost(new, then, 1)
        else:
            cost += self.held_cost(old, new, -1) + self.held_cost(new, old, 1)
            cost += self.held_cost(then, was, -1) + self.held_cost(was, then, 1)
        if self.taken(cost, temperature):
            self.hold(old, was, -1)
            self.hold(new, then, 1)
            self.load[old] -= self.prompts[i]
            self.load[new] += self.prompts[i]
            self.start(i, new, then)

    def try_swap(self, temperature: cython.longlong) -> cython.void:
        """Let two requests change places."""
        i: cython.int = self.drawn(self.num_free)
        j: cython.int = self.drawn(self.num_free)
        a: cython.int = self.start_of[i]
        b: cython.int = self.start_of[j]
        more: cython.longlong = self.prompts[j] - self.prompts[i]
        i_end: cython.int
        j_end: cython.int
        cost: cython.longlong
        if a == b:
            return
        if self.instants[b] + self.decodes[i] > self.horizon or self.instants[a] + self.decodes[j] > self.horizon:
            return
        i_end = self.end(i, b)
        j_end = self.end(j, a)
        cost = self.load_cost(a, more) + self.load_cost(b, -more)
        # At a, who starts there ends at j_end in place of end_of[i]; at b likewise.
        cost += self.changed_cost(self.end_of[i], j_end)
        self.change(self.end_of[i], j_end)
        cost += self.changed_cost(self.end_of[j], i_end)
        if self.taken(cost, temperature):
            self.change(self.end_of[j], i_end)
            self.load[a] += more
            self.load[b] -= more
            self.start(i, b, i_end)
            self.start(j, a, j_end)
        else:
            self.change(j_end, self.end_of[i])

    def changed_cost(self, old: cython.int, new: cython.int) -> cython.longlong:
        """What the penalty grows by where a client is held until ``new`` in place of ``old``."""
        return self.held_cost(old, new, 1) + self.held_cost(new, old, -1)

    def change(self, old: cython.int, new: cython.int) -> cython.void:
        """Hold a client until ``new`` in place of ``old``."""
        self.hold(old, new, 1)
        self.hold(new, old, -1)

    def try_shift(self, temperature: cython.longlong) -> cython.void:
        """Move an instant, not past its neighbours."""
        k: cython.int
        old: cython.int
        new: cython.int
        by: cython.int = 1
        size: cython.int = self.drawn(100)
        count: cython.int
        i: cython.int
        if self.num_prefills < 2:
            return
        k = 1 + self.drawn(self.num_prefills - 1)
        old = self.instants[k]
        if size < 5:
            by = 1 + self.drawn(30)
        elif size < 45:
            by = 1 + self.drawn(3)
        new = old + by if self.drawn(2) else old - by
        if new < self.instants[k - 1] or new >= self.horizon:
            return
        if k + 1 < self.num_prefills and new > self.instants[k + 1]:
            return
        self.move_instant(k, old, new)
        count = self.ends_after(k, min(old, new), max(old, new))
        if count >= 0 and self.taken(self.shift_cost(count), temperature):
            for i in range(count):
                self.end_of[self.changed[i]] = self.new_end[i]
            i = self.first_of[k]
            while i >= 0:
                self.unlink(1, i, self.done_at(i) + old - new)
                self.link(1, i, self.done_at(i))
                i = self.after[0, i]
            for i in range(self.num_prefills):
                self.held[i] = self.held_then[i]
        else:
            self.move_instant(k, new, old)

    def move_instant(self, k: cython.int, old: cython.int, new: cython.int) -> cython.void:
        """Set an instant, and what comes next at each count of decodes."""
        x: cython.int
        self.instants[k] = new
        for x in range(old + 1, new + 1):
            self.next_at[x] = k
        for x in range(new + 1, old + 1):
            self.next_at[x] = k + 1

    def ends_after(self, k: cython.int, low: cython.int, high: cython.int) -> cython.int:
        """Who ends elsewhere now that instant k has moved between two counts; -1 where one would end too late."""
        i: cython.int = self.first_of[k]
        x: cython.int
        count: cython.int = 0
        while i >= 0:
            if self.instants[k] + self.decodes[i] > self.horizon:
                return -1
            self.changed[count] = i
            self.new_end[count] = self.end(i, k)
            count += 1
            i = self.after[0, i]
        for x in range(low + 1, high + 1):
            i = self.first_of[self.num_prefills + x]
            while i >= 0:
                if self.start_of[i] != k:
                    self.changed[count] = i
                    self.new_end[count] = self.end(i, self.start_of[i])
                    count += 1
                i = self.after[1, i]
        return count

    def shift_cost(self, count: cython.int) -> cython.longlong:
        """What the penalty grows by with ``count`` new ends; ``held_then`` receives the clients held."""
        i: cython.int
        k: cython.int
        r: cython.int
        cost: cython.longlong = 0
        for k in range(self.num_prefills):
            self.held_then[k] = self.held[k]
        for i in range(count):
            r = self.changed[i]
            for k in range(self.end_of[r], self.new_end[i]):
                self.held_then[k] += 1
            for k in range(self.new_end[i], self.end_of[r]):
                self.held_then[k] -= 1
        for k in range(self.num_prefills):
            cost += self.held_weights[k] * (
                above(self.held_then[k], self.num_clients) - above(self.held[k], self.num_clients)
            )
        return cost * self.client_weight
