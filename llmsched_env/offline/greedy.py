"""Assignments that take a millisecond: round robin and longest processing time first (LPT)."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

__all__ = ["lpt", "round_robin"]


def round_robin(num_requests: int, clients: int) -> NDArray[np.int32]:
    """Request i to client i mod ``clients``: what a router does that knows no lengths.

    Returns:
        (n,) int32 client of each request.
    """
    return np.arange(num_requests, dtype=np.int32) % np.int32(clients)


def lpt(loads: NDArray[np.int64], clients: int) -> NDArray[np.int32]:
    """Longest load first, each to the client with the least load so far; all ties to the lower index.

    At most 4/3 - 1/(3 clients) times the optimum (Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl.
    Math. 17, 1969). O(n log n + n log clients).

    Args:
        loads: (n,) non-negative loads.
        clients: number of clients, at least 1.

    Returns:
        (n,) int32 client of each request.
    """
    client_of = np.empty(len(loads), np.int32)
    heap = [(0, client) for client in range(clients)]
    values = loads.tolist()
    for request in np.argsort(-loads, kind="stable").tolist():
        load, client = heap[0]
        client_of[request] = client
        heapq.heapreplace(heap, (load + values[request], client))
    return client_of
