"""Who is next: the orders that a prefill may take waiting requests in, chosen anew at each prefill.

An order is a ranking, by release or by estimated output length, and whether those that are *late* (see promises.py) go
behind all others. Positions are numbers of release here. Late ones are those before ``s.late_until``, since whoever
came earlier is late earlier; so by release no more is needed than the set of those that wait. For each other ranking
there are two sets, of ranks: of the waiting requests that are not late, and of those that are.
"""

from __future__ import annotations

from typing import Any

from llmsched_env.core.bitset import find_from, insert, remove
from llmsched_env.core.layout import RANKINGS
from llmsched_env.core.memory import ranking_at
from llmsched_env.jit import inlined, jit

__all__ = ["enlist", "following", "strike", "turn_late"]


@inlined
def _ranks(k: Any, ranking: int, late: int) -> int:
    """Address of a set of ranks."""
    return k.ranked_address + (2 * ranking + late) * k.ranked_bytes


@inlined
def enlist(k: Any, position: int) -> None:
    """Note that the request waits; it is not late yet."""
    for ranking in range(RANKINGS):
        insert(_ranks(k, ranking, 0), k.num_requests, ranking_at(k)[position, ranking])


@inlined
def strike(s: Any, k: Any, position: int) -> None:
    """Note that the request waits no more."""
    late = 1 if position < s.late_until else 0
    for ranking in range(RANKINGS):
        remove(_ranks(k, ranking, late), k.num_requests, ranking_at(k)[position, ranking])


@inlined
def turn_late(k: Any, position: int) -> None:
    """Note that a waiting request is late from now on."""
    for ranking in range(RANKINGS):
        rank = ranking_at(k)[position, ranking]
        remove(_ranks(k, ranking, 0), k.num_requests, rank)
        insert(_ranks(k, ranking, 1), k.num_requests, rank)


@jit
def following(s: Any, k: Any, order: int, position: int) -> int:
    """Position of the waiting request that comes after ``position`` in this order, or -1; the first one after -1."""
    n = k.num_requests
    late_last = order & 1
    if order < 2:
        if not late_last:
            return find_from(k.waiting_address, n, position + 1)
        late = 0 <= position < s.late_until
        if not late:
            found = find_from(k.waiting_address, n, max(position + 1, s.late_until))
            if found >= 0:
                return found
        found = find_from(k.waiting_address, n, position + 1 if late else 0)
        return found if found < s.late_until else -1
    ranking = (order >> 1) - 1
    table = ranking_at(k)
    rank = table[position, ranking] if position >= 0 else -1
    in_time, late = _ranks(k, ranking, 0), _ranks(k, ranking, 1)
    if late_last:
        found = -1
        if position < 0 or position >= s.late_until:
            found = find_from(in_time, n, rank + 1)
            rank = -1
        if found < 0:
            found = find_from(late, n, rank + 1)
    else:
        found, other = find_from(in_time, n, rank + 1), find_from(late, n, rank + 1)
        if found < 0 or 0 <= other < found:
            found = other
    return table[found, RANKINGS + ranking] if found >= 0 else -1
