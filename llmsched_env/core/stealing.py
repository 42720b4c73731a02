"""Whom a thief robs: the client with the most expected work among those with a waiting request.

A client's expected work is its queue plus what its running request has left, which shrinks by one a decode while the
request keeps to its estimate, and is nothing once it is overdue or the client idle. A maximum over all of them is kept
in a tournament of small blocks of clients (leaves L..2L-1, node i above 2i and 2i+1). Counted from decode 0, the work
of running clients does not change, so a node keeps the best of those apart from the best of the others, and the first
decode at which one of the former becomes one of the latter. What changes a client only marks its block as stale:
episodes that never steal pay nothing else, and a steal costs O(log J).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmsched_env.core.bitset import find_from, insert, remove
from llmsched_env.core.layout import BEST_RUNNING, BEST_STILL, DUE, EXPIRES, QUEUE_WORK
from llmsched_env.core.memory import clients_at, tournament_at
from llmsched_env.jit import inlined, jit

__all__ = ["blocks_needed", "changed", "victim"]

BLOCK_SHIFT = 3
NOBODY = np.int64(-1)
LATER = np.int64(2**62)


@inlined
def blocks_needed(num_clients: int) -> int:
    """Leaves of the tournament."""
    return ((num_clients - 1) >> BLOCK_SHIFT) + 1


@inlined
def changed(k: Any, client: int) -> None:
    """Note that the work of ``client``, or whether it runs, has changed."""
    insert(k.stale_address, blocks_needed(k.num_clients), client >> BLOCK_SHIFT)


@jit
def victim(v: Any, k: Any) -> int:
    """Client with the most expected work among those with a waiting request, of which there is one; ties: the first."""
    tournament = tournament_at(k)
    leaves = blocks_needed(k.num_clients)
    block = find_from(k.stale_address, leaves, 0)
    while block >= 0:
        remove(k.stale_address, leaves, block)
        _weigh(v, k, block)
        block = find_from(k.stale_address, leaves, block + 1)
    while tournament[1, EXPIRES] <= v.decodes:
        node = 1
        while node < leaves:
            node *= 2
            if tournament[node, EXPIRES] > v.decodes:
                node += 1
        _weigh(v, k, node - leaves)
    # Work and index are packed into one integer, the index such that the lower one is larger.
    key = max(tournament[1, BEST_RUNNING] - (np.int64(v.decodes) << 31), tournament[1, BEST_STILL])
    return k.num_clients - 1 - (key & 0x7FFFFFFF)


@inlined
def _weigh(v: Any, k: Any, block: int) -> None:
    """Take up the present state of a block, and play its matches up to the root."""
    clients = clients_at(k)
    tournament = tournament_at(k)
    running, still, expires = NOBODY, NOBODY, LATER
    first = block << BLOCK_SHIFT
    for client in range(first, min(first + (1 << BLOCK_SHIFT), k.num_clients)):
        work = np.int64(clients[client, QUEUE_WORK])
        if work > 0:
            index = k.num_clients - 1 - client
            due = np.int64(clients[client, DUE])
            if due > v.decodes:
                running = max(running, ((work + due) << 31) | index)
                expires = min(expires, due)
            else:
                still = max(still, (work << 31) | index)
    node = blocks_needed(k.num_clients) + block
    while True:
        tournament[node, BEST_RUNNING] = running
        tournament[node, BEST_STILL] = still
        tournament[node, EXPIRES] = expires
        if node <= 1:
            return
        other = node ^ 1
        running = max(running, tournament[other, BEST_RUNNING])
        still = max(still, tournament[other, BEST_STILL])
        expires = min(expires, tournament[other, EXPIRES])
        node >>= 1
