"""Other futures of a running episode: what is known of each length by now, and the same moment with other lengths.

What a scheduler has seen, it has seen: the clock, who waits, who runs since when, and the estimates. The lengths of
unfinished requests decide one thing only, the decode at which each active client finishes. So an episode moves to a
case with other lengths by filling its ring anew, at whatever size holds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.bitset import find_from
from llmsched_env.core.kv import emitted_at
from llmsched_env.core.layout import BUCKET, DUE, ESTIMATE, EXPECTED, HELD, NEXT, OUTPUT, PROMPT, RUNNING
from llmsched_env.core.memory import clients_at, release_order_at, requests_at, ring_at
from llmsched_env.core.transition import NEVER
from llmsched_env.jit import inlined, jit

__all__ = ["count_emitted", "end_arrivals", "refill"]


@inlined
def _emitted(v: Any, clients: Any, requests: Any, client: int) -> int:
    """Output tokens of the running request so far: one by its prefill, one by each decode since."""
    return v.decodes - clients[client, DUE] + requests[clients[client, RUNNING], ESTIMATE]


@jit
def count_emitted(views: Any, states: Any, setups: Any, out: NDArray[np.int32]) -> None:
    """Write to ``out``, (n,) by position, the output tokens so far: all of them where a request is complete."""
    v, s, k = views[0], states[0], setups[0]
    clients = clients_at(k)
    requests = requests_at(k)
    release_order = release_order_at(k)
    out[:] = requests[:, OUTPUT]
    position = find_from(k.waiting_address, k.num_requests, 0)
    while position >= 0:
        out[position] = 0
        position = find_from(k.waiting_address, k.num_requests, position + 1)
    if v.preempted > 0:
        position = find_from(k.preempted_address, k.num_requests, 0)
        while position >= 0:
            out[position] = emitted_at(k)[position]
            position = find_from(k.preempted_address, k.num_requests, position + 1)
    if v.reading_tokens > 0:
        out[s.reading_position] = 0
    for i in range(s.next_release, k.num_requests):
        out[release_order[i]] = 0
    for client in range(k.num_clients):
        if clients[client, RUNNING] >= 0:
            out[clients[client, RUNNING]] = _emitted(v, clients, requests, client)


@jit
def refill(views: Any, setups: Any) -> None:
    """Fill the empty ring of an episode from its clients and the lengths of their requests.

    Each length exceeds what its request has emitted. What is *expected* comes from estimates, and so does not change.
    """
    v, k = views[0], setups[0]
    clients = clients_at(k)
    requests = requests_at(k)
    ring = ring_at(k)
    mask = k.ring_mask
    for client in range(k.num_clients):
        position = clients[client, RUNNING]
        if position < 0:
            continue
        output = requests[position, OUTPUT]
        clients[client, HELD] = requests[position, PROMPT] + output
        slot = (v.decodes + output - _emitted(v, clients, requests, client)) & mask
        clients[client, NEXT] = ring[slot, BUCKET]
        ring[slot, BUCKET] = client
        if clients[client, DUE] > v.decodes:
            ring[clients[client, DUE] & mask, EXPECTED] += 1


@jit
def end_arrivals(views: Any, states: Any, setups: Any) -> None:
    """Let nothing more arrive: requests not released by now count as complete."""
    v, s, k = views[0], states[0], setups[0]
    v.completed += k.num_requests - s.next_release
    s.next_release = k.num_requests
    s.next_release_ns = NEVER
