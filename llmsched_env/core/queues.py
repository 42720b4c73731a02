"""The queues of an episode: who waits where, who is taken next, and what a prefill now would hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.bitset import find_from, insert, remove
from llmsched_env.core.kv import admit, begin_batch, emitted_at
from llmsched_env.core.layout import END, ESTIMATE, HEAD, PROMPT, QUEUE, QUEUE_WORK, RUNNING
from llmsched_env.core.memory import clients_at, release_ns_at, release_order_at, requests_at
from llmsched_env.core.migration import cached_tokens, expect_moves
from llmsched_env.core.mixed import preview_mixed
from llmsched_env.core.orders import enlist, following
from llmsched_env.core.stealing import changed
from llmsched_env.jit import inlined, jit

__all__ = ["join_heads", "leave_heads", "next_in_line", "preview", "release", "resume", "take"]

Ints = NDArray[np.int32]
Record = Any


@inlined
def join_heads(s: Record, k: Record, requests: Ints, position: int) -> None:
    """Count the request at ``position``, now the head of an idle client's own queue, among what is ready."""
    insert(k.own_ready_address, k.num_clients, requests[position, QUEUE])
    s.own_ready += 1
    s.own_tokens += requests[position, PROMPT]
    s.own_work += requests[position, ESTIMATE]
    if k.moving:
        s.own_cached += cached_tokens(k, position)


@inlined
def leave_heads(s: Record, k: Record, requests: Ints, position: int) -> None:
    """The opposite of :func:`join_heads`."""
    remove(k.own_ready_address, k.num_clients, requests[position, QUEUE])
    s.own_ready -= 1
    s.own_tokens -= requests[position, PROMPT]
    s.own_work -= requests[position, ESTIMATE]
    if k.moving:
        s.own_cached -= cached_tokens(k, position)


@inlined
def take(s: Record, k: Record, queue: int, position: int, client: int) -> None:
    """Remove the request at ``position``, for own queues its head, from ``queue`` for ``client``: busy from here on."""
    clients = clients_at(k)
    requests = requests_at(k)
    remove(k.waiting_address, k.num_requests, position)
    remove(k.idle_address, k.num_clients, client)
    if clients[queue, HEAD] != position:
        return
    head = find_from(k.waiting_address, k.num_requests, position + 1)
    if k.shared_queue:
        clients[0, HEAD] = head
        return
    if head >= clients[queue, END]:
        head = -1
    clients[queue, QUEUE_WORK] -= requests[position, ESTIMATE]
    if k.stealing:
        changed(k, queue)
    if queue == client:
        leave_heads(s, k, requests, position)
    else:
        s.steals += 1
        if clients[queue, RUNNING] < 0:
            # A robbed idle client offers its next request instead.
            leave_heads(s, k, requests, position)
            if head >= 0:
                join_heads(s, k, requests, head)
    clients[queue, HEAD] = head


@inlined
def resume(v: Record, k: Record, position: int, client: int) -> None:
    """Remove a preempted request from the line for ``client``: busy from here on."""
    remove(k.preempted_address, k.num_requests, position)
    remove(k.idle_address, k.num_clients, client)
    v.preempted -= 1


@jit
def next_in_line(s: Record, k: Record, order: int, position: int) -> int:
    """Where the KV cache is a budget: who comes after ``position``, or -1; the first one after -1.

    Preempted requests in queue order, then those that have not started, in ``order``.
    """
    if position < 0 or emitted_at(k)[position] > 0:
        found = find_from(k.preempted_address, k.num_requests, position + 1)
        if found >= 0:
            return found
        position = -1
    return following(s, k, order, position)


@jit
def release(v: Record, s: Record, k: Record) -> None:
    """Put what has arrived by now into its queue."""
    clients = clients_at(k)
    requests = requests_at(k)
    release_ns = release_ns_at(k)
    release_order = release_order_at(k)
    while s.next_release < k.num_requests and release_ns[s.next_release] <= v.clock_ns:
        position = release_order[s.next_release]
        estimate = requests[position, ESTIMATE]
        # It arrived inside the last iteration: the time since then counts as waiting.
        s.request_ns += v.clock_ns - release_ns[s.next_release]
        s.next_release += 1
        insert(k.waiting_address, k.num_requests, position)
        if k.ranked:
            enlist(k, position)
        v.waiting += 1
        v.waiting_tokens += requests[position, PROMPT]
        v.waiting_work += estimate
        queue = requests[position, QUEUE]
        head = clients[queue, HEAD]
        ahead = head < 0 or position < head
        if k.shared_queue:
            if position < s.window_from:
                s.window_from = 0
                v.batch_requests = 0
                v.batch_tokens = 0
                v.batch_work = 0
            s.window_full = 0
        else:
            clients[queue, QUEUE_WORK] += estimate
            if k.moving:
                s.waiting_cached += cached_tokens(k, position)
            if k.stealing:
                changed(k, queue)
            if ahead and clients[queue, RUNNING] < 0:
                if head >= 0:
                    leave_heads(s, k, requests, head)
                join_heads(s, k, requests, position)
        if ahead:
            clients[queue, HEAD] = position


@jit
def _preview_in_order(v: Record, s: Record, k: Record) -> None:
    """The batch of a shared queue in an order in which it may change at any place: composed anew."""
    requests = requests_at(k)
    v.batch_requests = 0
    v.batch_tokens = 0
    v.batch_work = 0
    position = -1
    while v.batch_requests < v.ready:
        position = following(s, k, k.order, position)
        prompt = requests[position, PROMPT]
        if v.batch_requests > 0 and v.batch_tokens + prompt > k.token_cap:
            return
        v.batch_requests += 1
        v.batch_tokens += prompt
        v.batch_work += requests[position, ESTIMATE]


@jit
def _preview_in_memory(v: Record, s: Record, k: Record) -> None:
    """The same where the KV cache is a budget: ready are as many idle clients as it lets in, were there no cap."""
    requests = requests_at(k)
    emitted = emitted_at(k)
    v.ready = 0
    v.batch_requests = 0
    v.batch_tokens = 0
    v.batch_work = 0
    s.kv_batch_copied = 0
    most = min(v.idle, v.waiting + v.preempted)
    position = -1
    full = False
    begin_batch(v, s, k)
    while v.ready < most:
        position = next_in_line(s, k, k.order, position)
        if not admit(v, s, k, position):
            return
        v.ready += 1
        context = requests[position, PROMPT] + emitted[position]
        swapped = emitted[position] > 0 and k.swap_token_ns > 0
        full = full or (not swapped and v.batch_tokens > 0 and v.batch_tokens + context > k.token_cap)
        if full:
            continue
        v.batch_requests += 1
        v.batch_work += max(1, requests[position, ESTIMATE] - emitted[position])
        if swapped:
            s.kv_batch_copied += context
        else:
            v.batch_tokens += context


@inlined
def preview(v: Record, s: Record, k: Record) -> None:
    """What a prefill now would hold.

    Shared queue: exactly that batch in the order of action 1, extended as clients fall idle. Client queues: the heads
    of the idle clients' own queues, plus an average waiting request for each steal, cut in proportion at the cap; an
    expectation, since only composing the batch tells whom a thief would rob, and what that moves.
    """
    clients = clients_at(k)
    requests = requests_at(k)
    if k.kv_budget > 0:
        _preview_in_memory(v, s, k)
        return
    if k.mixed_budget > 0:
        preview_mixed(v, s, k)
        return
    if k.shared_queue:
        v.ready = min(v.idle, v.waiting)
        if k.order != 0:
            _preview_in_order(v, s, k)
            return
        while v.batch_requests < v.ready and s.window_full == 0:
            position = (
                clients[0, HEAD]
                if v.batch_requests == 0
                else find_from(k.waiting_address, k.num_requests, s.window_from)
            )
            prompt = requests[position, PROMPT]
            if v.batch_requests > 0 and v.batch_tokens + prompt > k.token_cap:
                s.window_full = 1
            else:
                v.batch_requests += 1
                v.batch_tokens += prompt
                v.batch_work += requests[position, ESTIMATE]
                s.window_from = position + 1
        return
    v.ready = s.own_ready
    v.batch_tokens = s.own_tokens
    v.batch_work = s.own_work
    if k.stealing:
        v.ready = min(v.idle, v.waiting)
        stolen = v.ready - s.own_ready
        if v.ready == v.waiting:
            v.batch_tokens = v.waiting_tokens
            v.batch_work = v.waiting_work
        elif stolen > 0:
            v.batch_tokens += stolen * v.waiting_tokens // v.waiting
            v.batch_work += stolen * v.waiting_work // v.waiting
    if k.moving:
        expect_moves(v, s, k)
    v.batch_requests = v.ready
    if v.batch_tokens > k.token_cap and v.ready > 1:
        v.batch_requests = max(1, v.ready * k.token_cap // v.batch_tokens)
        v.batch_work = v.batch_work * v.batch_requests // v.ready
        v.batch_tokens = k.token_cap
        s.moves_ahead = s.moves_ahead * v.batch_requests // v.ready
