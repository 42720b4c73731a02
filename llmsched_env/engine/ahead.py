"""Reading a little of each line of memory that a step will read, so that it is on its way.

With many copies, what a step reads has left the near caches since the last one. What these return means nothing.
"""

from __future__ import annotations

import cython

from llmsched_env.engine import bitset, codes, ring
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.view import Totals, View


def episode(e: Episode) -> cython.longlong:
    """Read of each of its first lines."""
    return e.ring_mask + e.has_slo + e.num_clients + e.settles + cython.cast(cython.longlong, e.recomposes)


def parts(e: Episode, v: View, t: Totals) -> cython.longlong:
    """Read of each line of its view, its totals and its queues."""
    seen: cython.longlong = v.clock_ns + v.ready + v.consecutive_prefills + v.due_16 + v.alpha_prefill_ns
    seen += t.busy_client_ns + t.invalid_actions + t.jump_ns + e.line.oldest
    if e.has_queues:
        seen += e.queues.own_ready + e.queues.num_clients + e.queues.tournament.leaves
    return seen


def decodes(e: Episode, now: cython.longlong) -> cython.longlong:
    """Read of each line of the ring that the next decode will."""
    mask: cython.longlong = e.ring_mask
    seen: cython.longlong = e.ring[ring.expected(mask, now + 2)] + e.ring[ring.expected(mask, now + 17)]
    seen += e.ring[ring.expected(mask, now + 65)] + e.ring[ring.expected(mask, now + 257)]
    return seen + cython.cast(cython.longlong, e.idle[0])


def heads(e: Episode, now: cython.longlong) -> cython.longlong:
    """Read of each request that a prefill takes from a client's own queue, and of the ring where it will finish."""
    seen: cython.longlong = 0
    position: cython.int
    client: cython.int = bitset.find_from(e.queues.ready, 0, e.num_clients, 0)
    while client >= 0:
        position = e.clients[client, codes.HEAD]
        seen += e.ring[ring.ending(e.ring_mask, now + e.problem.requests[position, codes.OUTPUT])]
        client = bitset.find_from(e.queues.ready, 0, e.num_clients, client + 1)
    return seen
