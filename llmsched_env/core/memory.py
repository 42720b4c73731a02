"""The arrays of an episode, found through the addresses in its `SETUP` record.

Compiled code that passes a dozen arrays from function to function spends most of its time on reference counts and on
copying their descriptors; passing three records and looking an array up where it is needed costs two loads. The
addresses are written by :class:`llmsched_env.core.episode.Memory`, which owns the arrays and outlives every call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmsched_env.core.layout import (
    CLIENT_COLUMNS,
    ITERATION,
    LEVEL_COLUMNS,
    RANKINGS,
    REQUEST_COLUMNS,
    RING_COLUMNS,
    SERVED,
    TOURNAMENT_COLUMNS,
)
from llmsched_env.core.pointers import array_at
from llmsched_env.jit import inlined, jit

__all__ = [
    "bits_at",
    "clients_at",
    "copy_episode",
    "kv_at",
    "levels_at",
    "log_at",
    "ranking_at",
    "release_ns_at",
    "release_order_at",
    "requests_at",
    "ring_at",
    "served_at",
    "started_at",
    "tournament_at",
]


@inlined
def clients_at(k: Any) -> Any:
    """(J, CLIENT_COLUMNS) int32."""
    return array_at(k.clients_address, (k.num_clients, CLIENT_COLUMNS), np.int32)


@inlined
def ring_at(k: Any) -> Any:
    """(R, RING_COLUMNS) int32."""
    return array_at(k.ring_address, (k.ring_mask + 1, RING_COLUMNS), np.int32)


@inlined
def bits_at(k: Any) -> Any:
    """(bit_words,) uint64: the words of the sets."""
    return array_at(k.waiting_address, (k.bit_words,), np.uint64)


@inlined
def tournament_at(k: Any) -> Any:
    """(2 * leaves, TOURNAMENT_COLUMNS) int64; only where ``k.stealing``."""
    return array_at(k.tournament_address, (k.num_nodes, TOURNAMENT_COLUMNS), np.int64)


@inlined
def requests_at(k: Any) -> Any:
    """(n, REQUEST_COLUMNS) int32."""
    return array_at(k.requests_address, (k.num_requests, REQUEST_COLUMNS), np.int32)


@inlined
def release_order_at(k: Any) -> Any:
    """(n,) int32: position of each request, by number."""
    return array_at(k.release_order_address, (k.num_requests,), np.int32)


@inlined
def release_ns_at(k: Any) -> Any:
    """(n,) int64."""
    return array_at(k.release_address, (k.num_requests,), np.int64)


@inlined
def levels_at(k: Any) -> Any:
    """(num_levels, LEVEL_COLUMNS) int64."""
    return array_at(k.levels_address, (k.num_levels, LEVEL_COLUMNS), np.int64)


@inlined
def ranking_at(k: Any) -> Any:
    """(n, 2 * RANKINGS) int32: rank of each position in each ranking, then position of each rank; ``k.ranked`` only."""
    return array_at(k.ranking_address, (k.num_requests, 2 * RANKINGS), np.int32)


@inlined
def started_at(k: Any) -> Any:
    """(J,) int64: when the running request of each client had its first token; only where ``k.serving``."""
    return array_at(k.started_address, (k.num_clients,), np.int64)


@inlined
def kv_at(k: Any) -> Any:
    """(kv_words,) int64; only where ``k.kv_budget`` is not 0."""
    return array_at(k.kv_address, (k.kv_words,), np.int64)


@inlined
def log_at(k: Any) -> Any:
    """(log_capacity,) `ITERATION`."""
    return array_at(k.log_address, (k.log_capacity,), ITERATION)


@inlined
def served_at(k: Any) -> Any:
    """(n,) `SERVED`; only where ``k.served_address`` is not 0."""
    return array_at(k.served_address, (k.num_requests,), SERVED)


@jit
def copy_episode(views: Any, states: Any, setups: Any, source: int, target: int) -> None:
    """Overwrite episode ``target`` of a block with ``source``: same instance, recordings excepted."""
    views[target] = views[source]
    states[target] = states[source]
    clients_at(setups[target])[:, :] = clients_at(setups[source])
    ring_at(setups[target])[:, :] = ring_at(setups[source])
    bits_at(setups[target])[:] = bits_at(setups[source])
    if setups[source].stealing:
        tournament_at(setups[target])[:, :] = tournament_at(setups[source])
    if setups[source].serving:
        started_at(setups[target])[:] = started_at(setups[source])
    if setups[source].kv_budget > 0:
        kv_at(setups[target])[:] = kv_at(setups[source])
