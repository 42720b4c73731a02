"""Local search on P||Cmax: re-split two clients' requests, with plateau moves, until a target load is met.

A move takes a client above the target and another one, and looks for a split of their requests that leaves the least
excess over the target; among equally good splits it takes the first in a random order, so that a move which gains
nothing still changes both clients (a plateau move). Where many loads are equal, as with outputs cut at a cap, search
without plateau moves gets stuck a few iterations above the bound.

Splits are enumerated in Gray-code order, one addition each, from a random start. A pair with more than
:data:`ENUMERATED` requests leaves a random rest of them where they are.

Only moves are counted, never time, and the random numbers are the function's own (xorshift32; Marsaglia, Xorshift RNGs,
J. Stat. Softw. 8(14), 2003): the same input gives the same assignment on any machine, compiled or not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmsched_env.jit import jit

__all__ = ["ENUMERATED", "next_random", "resplit"]

ENUMERATED = 14
"""Most requests whose splits one move enumerates: 2**14 additions are some 20 microseconds."""


@jit
def next_random(state: int) -> int:
    """One step of xorshift32 on a non-zero 32-bit state; 64-bit integers never overflow here."""
    state ^= (state << 13) & 0xFFFFFFFF
    state ^= state >> 17
    return state ^ ((state << 5) & 0xFFFFFFFF)


@jit
def _gather(
    head: NDArray[np.int64],
    after: NDArray[np.int64],
    client: int,
    room: int,
    out: NDArray[np.int64],
    start: int,
    state: int,
) -> tuple[int, int, bool]:
    """Copy up to ``room`` requests of ``client`` to ``out[start:]``, a uniform sample where it has more.

    Returns:
        (number copied, random state, whether that is all of them).
    """
    seen = 0
    item = head[client]
    while item >= 0:
        if seen < room:
            out[start + seen] = item
        else:
            state = next_random(state)
            place = (state * (seen + 1)) >> 32
            if place < room:
                out[start + place] = item
        seen += 1
        item = after[item]
    return min(seen, room), state, seen <= room


@jit
def _best_split(
    weights: NDArray[np.int64],
    on_first: NDArray[np.bool_],
    best_on_first: NDArray[np.bool_],
    free: int,
    first: int,
    total: int,
    target: int,
) -> int:
    """Enumerate splits of ``weights`` in Gray-code order from ``on_first``; stop at one that cannot be beaten.

    Args:
        weights: loads of the enumerated requests, in units of the search.
        on_first: which of them lie on the first client at the start; overwritten.
        best_on_first: receives the best split found.
        free: how many leading entries may change sides: 2**free splits.
        first: load of the first client at the start, the requests that are not enumerated included.
        total: load of both clients.
        target: load that neither should exceed.

    Returns:
        Load of the first client in the best split.
    """
    ideal = max(0, total - 2 * target)
    best_excess = max(0, first - target) + max(0, total - first - target)
    best_first = first
    best_on_first[:] = on_first
    code = 0
    last = (1 << free) - 1
    while best_excess > ideal and code < last:
        code += 1
        bit = 0
        while not (code >> bit) & 1:
            bit += 1
        if on_first[bit]:
            first -= weights[bit]
            on_first[bit] = False
        else:
            first += weights[bit]
            on_first[bit] = True
        excess = max(0, first - target) + max(0, total - first - target)
        if excess < best_excess:
            best_excess = excess
            best_first = first
            best_on_first[:] = on_first
    return best_first


@jit
def resplit(
    loads: NDArray[np.int64], client_of: NDArray[np.int32], clients: int, target: int, moves: int, seed: int
) -> tuple[int, int]:
    """Search for an assignment whose largest load is at most ``target``.

    Args:
        loads: (n,) int64 non-negative loads.
        client_of: (n,) int32 start; overwritten with the assignment of the least largest load that was met.
        clients: number of clients, at least 2.
        target: largest load wanted, at least the largest single load.
        moves: most pairs to re-split.
        seed: any integer; equal seeds give equal results.

    Returns:
        (largest load of ``client_of``, moves spent).
    """
    n = len(loads)
    head = np.full(clients, -1, np.int64)
    after = np.full(n, -1, np.int64)
    before = np.full(n, -1, np.int64)
    held = np.zeros(clients, np.int64)
    where = client_of.copy()
    for item in range(n):
        client = where[item]
        held[client] += loads[item]
        after[item] = head[client]
        if head[client] >= 0:
            before[head[client]] = item
        head[client] = item
    # over[:num_over] are the clients above the target, place_of their positions in it (-1: not above).
    over = np.empty(clients, np.int64)
    place_of = np.full(clients, -1, np.int64)
    num_over = 0
    for client in range(clients):
        if held[client] > target:
            over[num_over] = client
            place_of[client] = num_over
            num_over += 1
    best = held.max()
    items = np.empty(ENUMERATED, np.int64)
    weights = np.empty(ENUMERATED, np.int64)
    origin = np.empty(ENUMERATED, np.bool_)
    on_first = np.empty(ENUMERATED, np.bool_)
    found = np.empty(ENUMERATED, np.bool_)
    state = (seed * 2654435761 + 0x9E3779B9) & 0xFFFFFFFF
    if state == 0:
        state = 1
    spent = 0
    while num_over > 0 and spent < moves:
        spent += 1
        # Every other move starts from any client: clients with slack must change too, or a hard one keeps it for ever.
        state = next_random(state)
        a = over[(state * num_over) >> 32] if spent & 1 else (state * clients) >> 32
        state = next_random(state)
        b = (state * (clients - 1)) >> 32
        if b >= a:
            b += 1
        # Room that a short second queue leaves goes to the first one, and the other way round.
        half = ENUMERATED // 2
        count_b, state, whole_b = _gather(head, after, b, half, items, 0, state)
        count_a, state, whole_a = _gather(head, after, a, ENUMERATED - count_b, items, count_b, state)
        if not whole_b:
            room = ENUMERATED - count_a
            for k in range(count_a):
                weights[k] = items[count_b + k]
            count_b, state, whole_b = _gather(head, after, b, room, items, 0, state)
            for k in range(count_a):
                items[count_b + k] = weights[k]
        count = count_a + count_b
        first = held[a]
        total = held[a] + held[b]
        state = next_random(state)
        start = state
        # A random order of the items decides which splits come first.
        for k in range(count - 1, 0, -1):
            state = next_random(state)
            other = (state * (k + 1)) >> 32
            item = items[k]
            items[k] = items[other]
            items[other] = item
        for k in range(count):
            weights[k] = loads[items[k]]
            origin[k] = where[items[k]] == a
            on_first[k] = origin[k]
            # With all requests of both clients in it, a split and its mirror image are one: the last item stays.
            if (start >> k) & 1 and (k < count - 1 or not (whole_a and whole_b)):
                on_first[k] = not origin[k]
                first += weights[k] if on_first[k] else -weights[k]
        free = count - 1 if whole_a and whole_b else count
        new_a = _best_split(weights[:count], on_first[:count], found[:count], free, first, total, target)
        old_excess = max(0, held[a] - target) + max(0, held[b] - target)
        new_excess = max(0, new_a - target) + max(0, total - new_a - target)
        if new_excess > old_excess:
            continue
        for k in range(count):
            if found[k] == origin[k]:
                continue
            item = items[k]
            source, sink = (a, b) if origin[k] else (b, a)
            if before[item] >= 0:
                after[before[item]] = after[item]
            else:
                head[source] = after[item]
            if after[item] >= 0:
                before[after[item]] = before[item]
            before[item] = -1
            after[item] = head[sink]
            if head[sink] >= 0:
                before[head[sink]] = item
            head[sink] = item
            where[item] = sink
        held[a] = new_a
        held[b] = total - new_a
        for client in (a, b):
            if held[client] > target and place_of[client] < 0:
                over[num_over] = client
                place_of[client] = num_over
                num_over += 1
            elif held[client] <= target and place_of[client] >= 0:
                num_over -= 1
                moved = over[num_over]
                over[place_of[client]] = moved
                place_of[moved] = place_of[client]
                place_of[client] = -1
        if new_excess < old_excess or num_over == 0:
            largest = target
            for k in range(num_over):
                largest = max(largest, held[over[k]])
            if num_over == 0:
                largest = held.max()
            if largest < best:
                best = largest
                client_of[:] = where
    return best, spent
