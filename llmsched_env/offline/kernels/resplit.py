"""Re-splits of the requests of two clients, move by move (`llmsched_env/offline/resplit.py`)."""

from __future__ import annotations

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline.kernels import xorshift


def excess_over(load: cython.longlong, target: cython.longlong) -> cython.longlong:
    """How far a load lies above the target."""
    return load - target if load > target else 0


def best_split(
    weights: cython.longlong[::1],
    on_first: cython.uchar[::1],
    best_on_first: cython.uchar[::1],
    count: cython.int,
    free: cython.int,
    first: cython.longlong,
    total: cython.longlong,
    target: cython.longlong,
) -> cython.longlong:
    """Enumerate splits of ``weights`` in Gray-code order from ``on_first``; stop at one that cannot be beaten.

    Args:
        weights: loads of the enumerated requests.
        on_first: which of them lie on the first client at the start; overwritten.
        best_on_first: receives the best split found.
        count: how many requests.
        free: how many leading ones may change sides: 2**free splits.
        first: load of the first client at the start, the requests that are not enumerated included.
        total: load of both clients.
        target: load that neither should exceed.

    Returns:
        Load of the first client in the best split.
    """
    ideal: cython.longlong = excess_over(total, 2 * target)
    best_excess: cython.longlong = excess_over(first, target) + excess_over(total - first, target)
    best_first: cython.longlong = first
    excess: cython.longlong
    code: cython.longlong = 0
    last: cython.longlong = (1 << free) - 1
    bit: cython.int
    k: cython.int
    for k in range(count):
        best_on_first[k] = on_first[k]
    while best_excess > ideal and code < last:
        code += 1
        bit = 0
        while ((code >> bit) & 1) == 0:
            bit += 1
        if on_first[bit]:
            first -= weights[bit]
            on_first[bit] = 0
        else:
            first += weights[bit]
            on_first[bit] = 1
        excess = excess_over(first, target) + excess_over(total - first, target)
        if excess < best_excess:
            best_excess = excess
            best_first = first
            for k in range(count):
                best_on_first[k] = on_first[k]
    return best_first


class Resplit:
    """A search for an assignment whose largest load is at most the target.

    Attributes:
        num_requests: n.
        num_clients: J, at least 2.
        target: largest load wanted, at least the largest single load.
        state: of the random numbers.
        loads: (n,) int64 non-negative loads.
        best_of: (n,) int32: client of each request, in the best assignment met.
        client_of: (n,) int32: in the current one.
        head: (J,) int64: first request of each client's list, -1 at the end of a list.
        after: (n,) int64: the next one in the list.
        before: (n,) int64: the one before.
        held: (J,) int64: load of each client.
        over: (J,) int64: the first ``num_over`` are the clients above the target.
        place_of: (J,) int64: their positions there, -1 for a client that is not above.
        num_over: clients above the target.
        best: largest load of ``best_of``.
        most: requests that one move enumerates.
        whole: whether the last move enumerates all requests of its two clients.
        items: (most,) int64: those requests.
        weights: (most,) int64: their loads.
        origin: (most,) uint8: which lie on the first client.
        on_first: (most,) uint8: the same, as splits are enumerated.
        found: (most,) uint8: the best split.
    """

    num_requests: cython.int
    num_clients: cython.int
    target: cython.longlong
    state: cython.longlong
    loads: cython.longlong[::1]
    best_of: cython.int[::1]
    client_of: cython.int[::1]
    head: cython.longlong[::1]
    after: cython.longlong[::1]
    before: cython.longlong[::1]
    held: cython.longlong[::1]
    over: cython.longlong[::1]
    place_of: cython.longlong[::1]
    num_over: cython.int
    best: cython.longlong
    most: cython.int
    whole: cython.bint
    items: cython.longlong[::1]
    weights: cython.longlong[::1]
    origin: cython.uchar[::1]
    on_first: cython.uchar[::1]
    found: cython.uchar[::1]

    def __init__(
        self,
        loads: NDArray[np.int64],
        client_of: NDArray[np.int32],
        num_clients: int,
        target: int,
        most: int,
        state: int,
    ) -> None:
        n = len(loads)
        self.num_requests = n
        self.num_clients = num_clients
        self.target = target
        self.state = state
        self.loads = memoryview(loads)
        self.best_of = memoryview(client_of)
        self.client_of = memoryview(client_of.copy())
        self.head = memoryview(np.full(num_clients, -1, np.int64))
        self.after = memoryview(np.full(n, -1, np.int64))
        self.before = memoryview(np.full(n, -1, np.int64))
        self.held = memoryview(np.zeros(num_clients, np.int64))
        self.over = memoryview(np.zeros(num_clients, np.int64))
        self.place_of = memoryview(np.full(num_clients, -1, np.int64))
        self.num_over = 0
        self.best = 0
        self.most = most
        self.whole = False
        self.items = memoryview(np.zeros(most, np.int64))
        self.weights = memoryview(np.zeros(most, np.int64))
        self.origin = memoryview(np.zeros(most, np.uint8))
        self.on_first = memoryview(np.zeros(most, np.uint8))
        self.found = memoryview(np.zeros(most, np.uint8))

    def run(self, moves: int) -> tuple[int, int]:
        """Search. ``client_of``, as given, receives the best assignment; returns its largest load, and moves spent."""
        most: cython.longlong = moves
        spent: cython.longlong
        with cython.nogil:
            self.start()
            spent = self.search(most)
        return int(self.best), int(spent)

    def start(self) -> cython.void:
        """Enter the requests in their clients' lists."""
        item: cython.longlong
        client: cython.longlong
        for item in range(self.num_requests):
            client = self.client_of[item]
            self.held[client] += self.loads[item]
            self.push(item, client)
        for client in range(self.num_clients):
            self.update_over(client)
        self.best = self.largest()

    def search(self, moves: cython.longlong) -> cython.longlong:
        """Move until no client is above the target, or ``moves`` are spent; returns how many were."""
        spent: cython.longlong = 0
        a: cython.longlong
        b: cython.longlong
        while self.num_over > 0 and spent < moves:
            spent += 1
            # Every other move starts from any client: clients with slack must change too, or a hard one keeps it for
            # ever.
            if spent & 1:
                a = self.over[self.drawn(self.num_over)]
            else:
                a = self.drawn(self.num_clients)
            b = self.drawn(self.num_clients - 1)
            if b >= a:
                b += 1
            self.move(a, b)
        return spent

    def move(self, a: cython.longlong, b: cython.longlong) -> cython.void:
        """Split the requests of two clients anew, unless that leaves more above the target."""
        count: cython.int = self.choose(a, b)
        total: cython.longlong = self.held[a] + self.held[b]
        first: cython.longlong = self.begin(a, count)
        old_excess: cython.longlong = excess_over(self.held[a], self.target) + excess_over(self.held[b], self.target)
        new_excess: cython.longlong
        free: cython.int = count - 1 if self.whole else count
        k: cython.int
        first = best_split(self.weights, self.on_first, self.found, count, free, first, total, self.target)
        new_excess = excess_over(first, self.target) + excess_over(total - first, self.target)
        if new_excess > old_excess:
            return
        for k in range(count):
            if self.found[k] != self.origin[k]:
                self.take_out(self.items[k])
                self.push(self.items[k], b if self.origin[k] else a)
        self.held[a] = first
        self.held[b] = total - first
        self.update_over(a)
        self.update_over(b)
        if new_excess < old_excess or self.num_over == 0:
            self.keep_if_best()

    def choose(self, a: cython.longlong, b: cython.longlong) -> cython.int:
        """Choose the requests that a move enumerates, in a random order; returns how many."""
        half: cython.int = self.most // 2
        seen_b: cython.int = self.gather(b, half, 0)
        count_b: cython.int = min(seen_b, half)
        room_a: cython.int = self.most - count_b
        seen_a: cython.int = self.gather(a, room_a, count_b)
        count_a: cython.int = min(seen_a, room_a)
        room_b: cython.int = half
        k: cython.int
        # Room that a short second queue leaves goes to the first one, and the other way round.
        if seen_b > half:
            room_b = self.most - count_a
            for k in range(count_a):
                self.weights[k] = self.items[count_b + k]
            seen_b = self.gather(b, room_b, 0)
            count_b = min(seen_b, room_b)
            for k in range(count_a):
                self.items[count_b + k] = self.weights[k]
        self.whole = seen_a <= room_a and seen_b <= room_b
        return count_a + count_b

    def gather(self, client: cython.longlong, room: cython.int, start: cython.int) -> cython.int:
        """Copy requests of a client to ``items[start:]``, a uniform sample where there is no room for all of them.

        Returns:
            How many the client has.
        """
        seen: cython.int = 0
        place: cython.longlong
        item: cython.longlong = self.head[client]
        while item >= 0:
            if seen < room:
                self.items[start + seen] = item
            else:
                place = self.drawn(seen + 1)
                if place < room:
                    self.items[start + place] = item
            seen += 1
            item = self.after[item]
        return seen

    def begin(self, a: cython.longlong, count: cython.int) -> cython.longlong:
        """Begin the enumeration at a random split, its order too; returns the load of the first client there."""
        first: cython.longlong = self.held[a]
        k: cython.int
        other: cython.longlong
        item: cython.longlong
        start: cython.longlong
        self.state = xorshift.next_random(self.state)
        start = self.state
        # A random order of the items decides which splits come first.
        for k in range(count - 1, 0, -1):
            other = self.drawn(k + 1)
            item = self.items[k]
            self.items[k] = self.items[other]
            self.items[other] = item
        for k in range(count):
            item = self.items[k]
            self.weights[k] = self.loads[item]
            self.origin[k] = 1 if self.client_of[item] == a else 0
            self.on_first[k] = self.origin[k]
            # With all requests of both clients in it, a split and its mirror image are one: the last item stays.
            if (start >> k) & 1 and (k < count - 1 or not self.whole):
                self.on_first[k] = 1 - self.origin[k]
                first += self.weights[k] if self.on_first[k] else -self.weights[k]
        return first

    def drawn(self, below: cython.longlong) -> cython.longlong:
        """A random number from 0 to ``below`` - 1."""
        self.state = xorshift.next_random(self.state)
        return (self.state * below) >> 32

    def push(self, item: cython.longlong, client: cython.longlong) -> cython.void:
        """Put a request at the head of a client's list."""
        self.before[item] = -1
        self.after[item] = self.head[client]
        if self.head[client] >= 0:
            self.before[self.head[client]] = item
        self.head[client] = item
        self.client_of[item] = cython.cast(cython.int, client)

    def take_out(self, item: cython.longlong) -> cython.void:
        """Take a request out of its client's list."""
        if self.before[item] >= 0:
            self.after[self.before[item]] = self.after[item]
        else:
            self.head[self.client_of[item]] = self.after[item]
        if self.after[item] >= 0:
            self.before[self.after[item]] = self.before[item]

    def update_over(self, client: cython.longlong) -> cython.void:
        """Enter the client among those above the target, or take it out."""
        moved: cython.longlong
        if self.held[client] > self.target and self.place_of[client] < 0:
            self.over[self.num_over] = client
            self.place_of[client] = self.num_over
            self.num_over += 1
        elif self.held[client] <= self.target and self.place_of[client] >= 0:
            self.num_over -= 1
            moved = self.over[self.num_over]
            self.over[self.place_of[client]] = moved
            self.place_of[moved] = self.place_of[client]
            self.place_of[client] = -1

    def largest(self) -> cython.longlong:
        """The largest load."""
        client: cython.int
        most: cython.longlong = 0
        for client in range(self.num_clients):
            most = max(most, self.held[client])
        return most

    def keep_if_best(self) -> cython.void:
        """Copy the current assignment where its largest load is the least so far."""
        item: cython.int
        k: cython.int
        largest: cython.longlong = self.target
        for k in range(self.num_over):
            largest = max(largest, self.held[self.over[k]])
        if self.num_over == 0:
            largest = self.largest()
        if largest < self.best:
            self.best = largest
            for item in range(self.num_requests):
                self.best_of[item] = self.client_of[item]
