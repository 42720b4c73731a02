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

import cython
import numpy as np

from llmsched_env.engine import bitset, codes
from llmsched_env.engine.arrays import table_of, zero_words


class Tournament:
    """The matches of an episode.

    Attributes:
        enabled: whether clients steal.
        num_clients: J.
        leaves: blocks of eight clients.
        clients: the episode's table of clients, which has their queues.
        stale: the set of blocks that must be weighed again.
        nodes: (2 * leaves, 3) int64: the client with the most work, counted from decode 0, of those that run and keep
            to their estimate; that of the others; first decode at which one of the former joins the latter. Work and
            index are packed into one integer, the index such that the lower one is larger.
    """

    enabled: cython.bint
    num_clients: cython.int
    leaves: cython.int
    stale: cython.ulonglong[::1]
    clients: cython.int[:, ::1]
    nodes: cython.longlong[:, ::1]

    def __init__(self, enabled: bool, num_clients: int, clients: Any) -> None:
        self.enabled = enabled
        self.num_clients = num_clients
        self.leaves = ((num_clients - 1) >> 3) + 1
        self.clients = clients
        self.stale = zero_words(bitset.words_needed(self.leaves))
        self.nodes = table_of(np.zeros((2 * self.leaves if enabled else 1, 3), np.int64))
        if enabled:
            for block in range(self.leaves):
                bitset.insert(self.stale, 0, self.leaves, block)

    def assign(self, other: Tournament) -> cython.void:
        """Take over another one's state."""
        i: cython.int
        if not self.enabled:
            return
        for i in range(self.stale.shape[0]):
            self.stale[i] = other.stale[i]
        for i in range(self.nodes.shape[0]):
            self.nodes[i, 0] = other.nodes[i, 0]
            self.nodes[i, 1] = other.nodes[i, 1]
            self.nodes[i, 2] = other.nodes[i, 2]

    def changed(self, client: cython.int) -> cython.void:
        """The work of ``client``, or whether it runs, has changed."""
        if self.enabled:
            bitset.insert(self.stale, 0, self.leaves, client >> 3)

    def victim(self, decodes: cython.longlong) -> cython.int:
        """Client with the most expected work among those with a waiting request (there is one); ties: the first."""
        node: cython.int
        key: cython.longlong
        block: cython.int = bitset.find_from(self.stale, 0, self.leaves, 0)
        while block >= 0:
            bitset.remove(self.stale, 0, self.leaves, block)
            self.weigh(decodes, block)
            block = bitset.find_from(self.stale, 0, self.leaves, block + 1)
        while self.nodes[1, 2] <= decodes:
            node = 1
            while node < self.leaves:
                node *= 2
                if self.nodes[node, 2] > decodes:
                    node += 1
            self.weigh(decodes, node - self.leaves)
        key = self.nodes[1, 0] - (decodes << 31)
        key = max(key, self.nodes[1, 1])
        return self.num_clients - 1 - cython.cast(cython.int, key & 0x7FFFFFFF)

    def weigh(self, decodes: cython.longlong, block: cython.int) -> cython.void:
        """Take up the present state of a block, and play its matches up to the root."""
        running: cython.longlong = -1
        still: cython.longlong = -1
        expires: cython.longlong = 0x7FFFFFFF  # later than any decode
        work: cython.longlong
        due: cython.longlong
        index: cython.longlong
        key: cython.longlong
        client: cython.int
        other: cython.int
        node: cython.int
        end: cython.int = (block + 1) << 3
        end = min(end, self.num_clients)
        for client in range(block << 3, end):
            work = self.clients[client, codes.WORK]
            if work <= 0:
                continue
            index = self.num_clients - 1 - client
            due = self.clients[client, codes.DUE]
            if due > decodes:
                key = ((work + due) << 31) | index
                running = max(running, key)
                expires = min(expires, due)
            else:
                key = (work << 31) | index
                still = max(still, key)
        node = self.leaves + block
        while True:
            self.nodes[node, 0] = running
            self.nodes[node, 1] = still
            self.nodes[node, 2] = expires
            if node <= 1:
                return
            other = node ^ 1
            running = max(running, self.nodes[other, 0])
            still = max(still, self.nodes[other, 1])
            expires = min(expires, self.nodes[other, 2])
            node >>= 1
