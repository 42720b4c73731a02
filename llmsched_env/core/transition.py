"""The one transition function: a prefill or a decode, and what follows from it.

Everything that simulates (the environments, whole-episode studies, planners) calls :func:`advance`. A decode touches
only the clients that finish in it, found in a ring of buckets by decode count; a prefill only the clients that take
part, found in a bitset. Nothing here allocates.

Arguments are named alike throughout: ``v`` a `VIEW` record, ``s`` a `STATE` record, ``k`` a `SETUP` record, through
which the arrays are found (:mod:`llmsched_env.core.memory`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.bitset import contains, find_from, insert, remove
from llmsched_env.core.kv import (
    KEEP_GROWTH,
    VLLM_V0,
    admit,
    begin_batch,
    emitted_at,
    first_token_ns_at,
    free_memory,
    hold_memory,
    next_growth,
    preview_decode,
    too_full,
)
from llmsched_env.core.layout import (
    BATCH,
    BUCKET,
    CAPACITY_TOKENS,
    DUE,
    ESTIMATE,
    EXPECTED,
    HEAD,
    HELD,
    LEVEL_NS,
    NEXT,
    OUTPUT,
    PROMPT,
    RUNNING,
)
from llmsched_env.core.memory import (
    clients_at,
    levels_at,
    log_at,
    release_ns_at,
    release_order_at,
    requests_at,
    ring_at,
    served_at,
    started_at,
)
from llmsched_env.core.migration import cached_tokens, context_to_move
from llmsched_env.core.mixed import chunk_room, part_read
from llmsched_env.core.noise import decode_lasts, mixed_lasts, prefill_lasts
from llmsched_env.core.orders import following
from llmsched_env.core.promises import end_decoding, leave_queue, note_late, note_read_late, start_decoding
from llmsched_env.core.queues import join_heads, next_in_line, preview, release, resume, take
from llmsched_env.core.recording import note_preemption, note_resumption, note_start
from llmsched_env.core.stealing import blocks_needed, changed, victim
from llmsched_env.jit import inlined, jit

__all__ = ["DECODE", "MIXED", "PREFILL", "advance", "start_episode"]

DECODE = 0
PREFILL = 1
MIXED = 2
"""Where there are mixed iterations; else a second kind of prefill, if any."""

NEVER = np.int64(2**63 - 1)

Ints = NDArray[np.int32]
Record = Any


@inlined
def prefill_duration(k: Record, tokens: int) -> int:
    """Duration in ns of a prefill of ``tokens`` prompt tokens (affine, or the smallest level that holds them)."""
    if k.num_levels == 0:
        return k.alpha_prefill_ns + k.beta_prefill_ns * tokens
    levels = levels_at(k)
    level = 0
    while level < k.num_levels - 1 and levels[level, CAPACITY_TOKENS] < tokens:
        level += 1
    return levels[level, LEVEL_NS]


@inlined
def mixed_duration(v: Record, k: Record) -> int:
    """Duration in ns of a mixed iteration now; that of a decode where nothing would be read."""
    tokens, active = v.chunk_tokens, v.active
    if tokens == 0:
        return v.decode_ns
    if k.mixed_overlaps:
        alone = prefill_duration(k, tokens)
        return max(alone, v.decode_ns) if active > 0 else alone
    duration = k.mixed_alpha_ns + k.mixed_beta_prompt_ns * tokens + k.mixed_beta_active_ns * active
    duration += k.mixed_interference_ns * active * active // (active + tokens)
    return duration + k.gamma_decode_ns * v.context_tokens


@jit
def start_episode(v: Record, s: Record, k: Record) -> None:
    """Put zeroed arrays into the state before the first iteration: every client idle, the clock at the first release.

    ``clients[END]`` must hold the ends of the queues; ``v`` its constants.
    """
    clients = clients_at(k)
    ring = ring_at(k)
    clients[:, RUNNING] = -1
    clients[:, HEAD] = -1
    clients[:, NEXT] = -1
    ring[:, BUCKET] = -1
    for client in range(k.num_clients):
        insert(k.idle_address, k.num_clients, client)
    if k.stealing:
        for block in range(blocks_needed(k.num_clients)):
            insert(k.stale_address, blocks_needed(k.num_clients), block)
    v.num_clients = k.num_clients
    v.idle = k.num_clients
    v.alpha_prefill_ns = k.alpha_prefill_ns
    v.alpha_decode_ns = k.alpha_decode_ns
    v.beta_decode_ns = k.beta_decode_ns
    v.token_cap = k.token_cap
    v.ttft_ns = k.ttft_ns
    v.tpot_ns = k.tpot_ns
    v.kv_budget = k.kv_budget
    v.mixed_budget = k.mixed_budget
    s.kv_last_started = -1
    s.min_active = k.num_clients
    s.min_batch_tokens = np.int64(2**62)
    _settle(v, s, k)


@jit
def advance(
    v: Record,
    s: Record,
    k: Record,
    action: int,
) -> None:
    """Run one iteration, then release what has arrived, or jump to the next arrival where nothing is left to do.

    Action 0 is a decode; 1 and above are prefills, one for each order or cap on active clients to choose from; or, with
    mixed iterations, 1 is a prefill and 2 a mixed one. An infeasible action is replaced by a feasible one, a prefill by
    the first of these, and counted. The episode must not be over.
    """
    if action >= PREFILL:
        if v.ready == 0:
            s.invalid_actions += 1
            action = DECODE
    elif v.active == 0:
        s.invalid_actions += 1
        action = PREFILL
    start_ns = v.clock_ns
    decodes, mixed = v.decodes, v.mixed
    if k.kv_rule != KEEP_GROWTH and action == DECODE:
        _make_room(v, s, k)
    busy = v.active
    changed = True
    if action >= PREFILL:
        busy = _prefill(v, s, k, action)
    else:
        changed = _decode(v, s, k, decode_lasts(v, s, k) if k.disturbed else v.decode_ns)
    if k.log_capacity > 0:
        entry = log_at(k)[s.logged]
        entry.start_ns = start_ns
        entry.end_ns = v.clock_ns
        entry.prefill = v.decodes == decodes
        entry.clients = busy
        entry.mixed = v.mixed > mixed
        s.logged += 1
    if changed or s.next_release_ns <= v.clock_ns or k.settling:
        _settle(v, s, k)


@inlined
def _decode(v: Record, s: Record, k: Record, duration: int) -> bool:
    """Returns whether a request was completed."""
    clients = clients_at(k)
    ring = ring_at(k)
    active = v.active
    v.clock_ns += duration
    s.busy_client_ns += duration * active
    s.request_ns += duration * (v.waiting + v.preempted + active + (1 if v.reading_tokens > 0 else 0))
    s.swap_out_ns = 0
    s.idle_client_decodes += v.idle
    v.idle_charge += v.ready
    v.decodes += 1
    v.consecutive_prefills = 0
    v.context_tokens += active
    s.min_active = min(s.min_active, active)
    if k.serving:
        v.decoding_ns += duration * active
        v.decoding_tokens += active
    if k.kv_budget > 0:
        v.kv_used += v.kv_growth
        s.kv_peak = max(s.kv_peak, v.kv_used)

    # What is expected moves one decode nearer: each window takes in its far end and gives up its near one.
    now = v.decodes
    mask = k.ring_mask
    slot = now & mask
    expected_now = ring[slot, EXPECTED]
    on_time = active - v.overdue
    v.remaining_squared += on_time - 2 * v.remaining
    v.remaining -= on_time
    at_1 = ring[(now + 1) & mask, EXPECTED]
    at_4 = ring[(now + 4) & mask, EXPECTED] if mask > 4 else 0
    at_16 = ring[(now + 16) & mask, EXPECTED] if mask > 16 else 0
    at_64 = ring[(now + 64) & mask, EXPECTED] if mask > 64 else 0
    at_256 = ring[(now + 256) & mask, EXPECTED] if mask > 256 else 0
    v.due_1 += at_1 - expected_now
    v.due_4 += at_4 - at_1
    v.due_16 += at_16 - at_4
    v.due_64 += at_64 - at_16
    v.due_256 += at_256 - at_64
    ring[slot, EXPECTED] = 0

    v.overdue += expected_now
    client = ring[slot, BUCKET]
    if client < 0:
        v.decode_ns += k.gamma_decode_ns * active
        return False
    ring[slot, BUCKET] = -1
    finished = 0
    early = 0
    held = 0
    while client >= 0:
        due = clients[client, DUE]
        if due > now:
            early += 1
            _forget(v, ring, due - now, due & mask)
        finished += 1
        held += clients[client, HELD]
        _complete(v, s, k, client)
        client = clients[client, NEXT]
    v.overdue -= finished - early
    _leave(v, finished, held)
    return True


@inlined
def _prefill(v: Record, s: Record, k: Record, action: int) -> int:
    """Take requests as ``action`` says. Returns the number of clients that took part."""
    order = k.order  # one of `ORDER_CODES`; 0 without promises
    most = k.num_clients
    if k.cap_levels > 0:
        level = k.cap_levels + PREFILL - action
        most = max(1, -(-level * k.num_clients // k.cap_levels) - v.active)
    else:
        order += action - PREFILL
    if k.kv_budget > 0:
        return _prefill_in_memory(v, s, k, order, most)
    if k.mixed_budget > 0:
        return _read(v, s, k, action == MIXED)
    if k.moving:
        return _prefill_moving(v, s, k)
    clients = clients_at(k)
    requests = requests_at(k)
    start_ns = v.clock_ns
    waiting = v.waiting
    active = v.active
    in_system = waiting + active
    tokens = 0
    work = 0
    count = 0
    # Whoever may take something: with queues of their own and no stealing, only those whose queue is not empty.
    takers = k.idle_address if k.shared_queue or k.stealing else k.own_ready_address
    client = find_from(takers, k.num_clients, 0)
    position = -1
    while client >= 0 and waiting > 0 and count < most:
        if k.shared_queue:
            queue = 0
        elif clients[client, HEAD] >= 0:
            queue = client
        else:
            queue = victim(v, k)
        position = clients[queue, HEAD] if order == 0 else following(s, k, order, position)
        prompt = requests[position, PROMPT]
        if count > 0 and tokens + prompt > k.token_cap:
            break
        estimate = requests[position, ESTIMATE]
        take(s, k, queue, position, client)
        if k.serving:
            leave_queue(v, s, k, position)
        clients[client, RUNNING] = position
        clients[client, DUE] = v.decodes + estimate - 1
        clients[count, BATCH] = client
        tokens += prompt
        work += estimate
        count += 1
        waiting -= 1
        client = find_from(takers, k.num_clients, client + 1)

    v.waiting = waiting
    v.waiting_tokens -= tokens
    v.waiting_work -= work
    v.context_tokens += tokens + count
    duration = prefill_lasts(v, k, tokens, 0) if k.disturbed else prefill_duration(k, tokens)
    _spend_prefill(v, s, duration, tokens, count, in_system)
    if k.serving:
        v.decoding_ns += v.last_prefill_ns * active
    s.window_from = 0
    s.window_full = 0
    v.batch_requests = 0
    v.batch_tokens = 0
    v.batch_work = 0
    finished = 0
    held = 0
    for i in range(count):
        client = clients[i, BATCH]
        if _start(v, s, k, client, start_ns, 1, False):
            finished += 1
            held += clients[client, HELD]
    if finished > 0:
        _leave(v, finished, held)
    s.max_active = max(s.max_active, v.active)
    return count


@inlined
def _spend_prefill(v: Record, s: Record, duration: int, tokens: int, count: int, in_system: int) -> None:
    """Count a prefill of ``tokens`` that ``count`` clients took part in."""
    v.clock_ns += duration
    v.prefills += 1
    v.consecutive_prefills += 1
    v.last_prefill_decode = v.decodes
    v.idle_charge = 0
    v.last_prefill_ns = duration
    v.idle -= count
    v.active += count
    s.prefill_time_ns += duration
    s.busy_client_ns += duration * count
    s.request_ns += duration * in_system
    if tokens > 0:
        s.max_batch_tokens = max(s.max_batch_tokens, tokens)
        s.min_batch_tokens = min(s.min_batch_tokens, tokens)


@jit
def _prefill_in_memory(v: Record, s: Record, k: Record, order: int, most: int) -> int:
    """As :func:`_prefill` on a shared queue, where the KV cache is a budget: preempted requests first.

    Where the first in this order does not fit, it goes by the order of action 1, in which somebody does.
    """
    clients = clients_at(k)
    requests = requests_at(k)
    emitted = emitted_at(k)
    start_ns = v.clock_ns
    active = v.active
    in_system = v.waiting + v.preempted + active
    computed = 0  # tokens that are prefilled
    copied = 0  # tokens that are swapped in
    count = 0
    position = -1
    client = find_from(k.idle_address, k.num_clients, 0)
    begin_batch(v, s, k)
    if not admit(v, s, k, next_in_line(s, k, order, -1)):
        order = k.order
    begin_batch(v, s, k)
    while client >= 0 and count < most:
        position = next_in_line(s, k, order, position)
        if position < 0:
            break
        before = emitted[position]
        context = requests[position, PROMPT] + before
        swapped = before > 0 and k.swap_token_ns > 0
        if not swapped and computed > 0 and computed + context > k.token_cap:
            break
        if not admit(v, s, k, position):
            break
        if before > 0:
            resume(v, k, position, client)
        else:
            v.waiting_tokens -= requests[position, PROMPT]
            v.waiting_work -= requests[position, ESTIMATE]
            take(s, k, 0, position, client)
            if k.serving:
                leave_queue(v, s, k, position)
            v.waiting -= 1
        clients[client, RUNNING] = position
        clients[count, BATCH] = client
        if swapped:
            copied += context
        else:
            computed += context
        count += 1
        client = find_from(k.idle_address, k.num_clients, client + 1)

    copying_ns = copied * k.swap_token_ns
    duration = s.swap_out_ns + copying_ns + (prefill_duration(k, computed) if computed > 0 else 0)
    if k.disturbed:
        duration = prefill_lasts(v, k, computed, s.swap_out_ns + copying_ns)
    s.swap_out_ns = 0
    s.swap_ns += copying_ns
    s.swapped_tokens += copied
    _spend_prefill(v, s, duration, computed, count, in_system)
    if k.serving:
        v.decoding_ns += duration * active
    for i in range(count):
        client = clients[i, BATCH]
        position = clients[client, RUNNING]
        tokens = emitted[position]
        if tokens == 0 or k.swap_token_ns == 0:
            tokens += 1
        context = requests[position, PROMPT] + tokens
        v.context_tokens += context
        hold_memory(v, s, k, client, context)
        clients[client, DUE] = v.decodes + requests[position, ESTIMATE] - tokens
    finished = 0
    held = 0
    for i in range(count):
        client = clients[i, BATCH]
        position = clients[client, RUNNING]
        tokens = v.decodes - clients[client, DUE] + requests[position, ESTIMATE]
        before = emitted[position]
        if before > 0 and k.swap_token_ns == 0:
            s.resumed_by_prefill += 1
            s.recomputed_tokens += requests[position, PROMPT] + before
        if _start(v, s, k, client, start_ns, tokens, before > 0):
            finished += 1
            held += clients[client, HELD]
    if finished > 0:
        _leave(v, finished, held)
    s.max_active = max(s.max_active, v.active)
    return count


@jit
def _read(v: Record, s: Record, k: Record, mixed: bool) -> int:
    """A prefill, or a mixed iteration, where a prompt may have been read in part. Returns who had a token.

    A mixed iteration with nothing to read is a decode; one with nobody active counts as a prefill.
    """
    clients = clients_at(k)
    requests = requests_at(k)
    start_ns = v.clock_ns
    active = v.active
    if mixed and v.chunk_tokens == 0:
        _decode(v, s, k, decode_lasts(v, s, k) if k.disturbed else v.decode_ns)
        return active
    in_system = v.waiting + active + (1 if v.reading_tokens > 0 else 0)
    room = chunk_room(v, k) if mixed else k.token_cap
    whole = not mixed or k.mixed_whole_prompts > 0
    first_start_ns = start_ns
    first_in_time = False
    tokens = 0
    count = 0
    if v.reading_tokens > 0:
        tokens = part_read(v.reading_tokens, 0, room, whole)
        v.reading_tokens -= tokens
        if v.reading_tokens == 0:
            clients[s.reading_client, RUNNING] = s.reading_position
            clients[0, BATCH] = s.reading_client
            first_start_ns = s.reading_start_ns
            first_in_time = s.reading_late == 0
            count = 1
    position = -1
    client = find_from(k.idle_address, k.num_clients, 0)
    while client >= 0 and v.waiting > 0 and v.reading_tokens == 0:
        position = following(s, k, k.order, position)
        prompt = requests[position, PROMPT]
        part = part_read(prompt, tokens, room, whole)
        if part == 0:
            break
        take(s, k, 0, position, client)
        if k.serving:
            leave_queue(v, s, k, position)
        v.waiting -= 1
        v.waiting_tokens -= prompt
        v.waiting_work -= requests[position, ESTIMATE]
        tokens += part
        if part == prompt:
            clients[client, RUNNING] = position
            clients[count, BATCH] = client
            count += 1
        else:
            s.reading_client = client
            s.reading_position = position
            s.reading_start_ns = start_ns
            s.reading_late = position < s.late_until
            v.reading_tokens = prompt - part
        client = find_from(k.idle_address, k.num_clients, client + 1)

    partly = 1 if v.reading_tokens > 0 else 0
    duration = v.mixed_ns if mixed else prefill_duration(k, tokens)
    if k.disturbed:
        duration = mixed_lasts(v, k) if mixed else prefill_lasts(v, k, tokens, 0)
    s.busy_client_ns += duration * partly
    v.mixed += 1 if mixed else 0
    if mixed and active > 0:
        s.busy_client_ns += duration * count
        s.request_ns += duration * (in_system - v.waiting - active - partly)
        _decode(v, s, k, duration)
        v.last_prefill_decode = v.decodes
        v.idle_charge = 0
        v.last_prefill_ns = duration
        v.idle -= count
        v.active += count
    else:
        _spend_prefill(v, s, duration, tokens, count, in_system)
        if k.serving:
            v.decoding_ns += duration * active
    finished = 0
    held = 0
    for i in range(count):
        client = clients[i, BATCH]
        position = clients[client, RUNNING]
        v.context_tokens += requests[position, PROMPT] + 1
        clients[client, DUE] = v.decodes + requests[position, ESTIMATE] - 1
        if k.serving and i == 0 and first_in_time:
            note_read_late(v, s, k, position)
        if _start(v, s, k, client, first_start_ns if i == 0 else start_ns, 1, False):
            finished += 1
            held += clients[client, HELD]
    if finished > 0:
        _leave(v, finished, held)
    s.max_active = max(s.max_active, v.active)
    return count + active if mixed else count


@jit
def _prefill_moving(v: Record, s: Record, k: Record) -> int:
    """As :func:`_prefill` on client queues, where a thief has tokens to move or takes over a running request.

    Such a request's new client counts as taking part, as does the victim, which starts its own head.
    """
    clients = clients_at(k)
    requests = requests_at(k)
    start_ns = v.clock_ns
    in_system = v.waiting + v.active
    computed = 0  # tokens that are prefilled
    again = 0  # ... of which another client holds
    copied = 0  # tokens that are copied
    started = 0
    moved = 0
    takers = k.idle_address if k.stealing else k.own_ready_address
    client = find_from(takers, k.num_clients, 0)
    while client >= 0 and v.waiting > 0:
        queue = client if clients[client, HEAD] >= 0 else victim(v, k)
        position = clients[queue, HEAD]
        cached = cached_tokens(k, position)
        tokens = requests[position, PROMPT] - cached
        context = 0
        to_move = 0
        if queue != client:
            context = context_to_move(v, k, queue, position)
            to_move = context if context > 0 else cached
            if k.move_token_ns == 0:
                tokens += to_move
        if started > 0 and computed + tokens > k.token_cap:
            break
        computed += tokens
        if k.move_token_ns == 0:
            again += to_move
        else:
            copied += to_move
        starter = client
        if context > 0:
            starter = queue
            moved += 1
            clients[k.num_clients - moved, BATCH] = client  # from the other end than those that start
            _take_over(v, s, k, queue, client, context)
        take(s, k, queue, position, starter)
        clients[starter, RUNNING] = position
        clients[starter, DUE] = v.decodes + requests[position, ESTIMATE] - 1
        clients[starter, HELD] = 0
        clients[started, BATCH] = starter
        started += 1
        v.waiting -= 1
        v.waiting_tokens -= requests[position, PROMPT]
        v.waiting_work -= requests[position, ESTIMATE]
        v.context_tokens += requests[position, PROMPT] + 1
        s.waiting_cached -= cached
        client = find_from(takers, k.num_clients, client + 1)

    copying_ns = copied * k.move_token_ns
    s.move_ns += copying_ns
    s.moved_tokens += copied
    s.recomputed_tokens += again
    s.migrations += moved
    duration = prefill_duration(k, computed) + copying_ns
    if k.disturbed:
        duration = prefill_lasts(v, k, computed, copying_ns)
    _spend_prefill(v, s, duration, computed, started + moved, in_system)
    finished = 0
    held = 0
    for i in range(started):
        client = clients[i, BATCH]
        if _start(v, s, k, client, start_ns, 1, False):
            finished += 1
            held += clients[client, HELD]
    for i in range(moved):
        client = clients[k.num_clients - 1 - i, BATCH]
        tokens = v.decodes - clients[client, DUE] + requests[clients[client, RUNNING], ESTIMATE]
        if k.move_token_ns == 0:
            s.resumed_by_prefill += 1
        if _start(v, s, k, client, start_ns, tokens, True):
            finished += 1
            held += clients[client, HELD]
    if finished > 0:
        _leave(v, finished, held)
    s.max_active = max(s.max_active, v.active)
    return started + moved


@inlined
def _take_over(v: Record, s: Record, k: Record, source: int, client: int, context: int) -> None:
    """The idle ``client`` takes the request that ``source`` runs; that one is idle then, with the head of its queue."""
    clients = clients_at(k)
    requests = requests_at(k)
    position = clients[source, RUNNING]
    tokens = context - requests[position, PROMPT]
    _unhook(v, k, source, tokens)
    if k.served_address != 0:
        note_preemption(v, s, k, position)
    if k.move_token_ns == 0:
        tokens += 1
    v.context_tokens += tokens + requests[position, PROMPT] - context
    v.active -= 1
    v.idle += 1
    clients[source, RUNNING] = -1
    insert(k.idle_address, k.num_clients, source)
    join_heads(s, k, requests, clients[source, HEAD])
    remove(k.idle_address, k.num_clients, client)
    clients[client, RUNNING] = position
    clients[client, DUE] = v.decodes + requests[position, ESTIMATE] - tokens


@inlined
def _unhook(v: Record, k: Record, client: int, tokens: int) -> None:
    """Take an active client, whose request has so many output tokens, out of what will finish and what is expected."""
    clients = clients_at(k)
    ring = ring_at(k)
    due = clients[client, DUE]
    slot = (v.decodes + requests_at(k)[clients[client, RUNNING], OUTPUT] - tokens) & k.ring_mask
    if ring[slot, BUCKET] == client:
        ring[slot, BUCKET] = clients[client, NEXT]
    else:
        other = ring[slot, BUCKET]
        while clients[other, NEXT] != client:
            other = clients[other, NEXT]
        clients[other, NEXT] = clients[client, NEXT]
    if due > v.decodes:
        _forget(v, ring, due - v.decodes, due & k.ring_mask)
    else:
        v.overdue -= 1


@inlined
def _preempt(v: Record, s: Record, k: Record, client: int) -> None:
    """Take its request off an active client: it waits before all others, and goes on from what it has emitted."""
    clients = clients_at(k)
    position = clients[client, RUNNING]
    requests = requests_at(k)
    tokens = v.decodes - clients[client, DUE] + requests[position, ESTIMATE]
    _unhook(v, k, client, tokens)
    context = requests[position, PROMPT] + tokens
    emitted_at(k)[position] = tokens
    if k.serving:
        first_token_ns_at(k)[position] = started_at(k)[client]
        v.decoding_ns -= v.clock_ns - started_at(k)[client]
        v.decoding_tokens -= tokens - 1
    if k.served_address != 0:
        note_preemption(v, s, k, position)
    free_memory(v, s, k, client, context)
    copying_ns = context * k.swap_token_ns
    if copying_ns > 0:
        s.swap_out_ns += copying_ns
        s.swap_ns += copying_ns
        s.swapped_tokens += context
    v.context_tokens -= context
    v.active -= 1
    v.idle += 1
    v.preempted += 1
    s.preemptions += 1
    clients[client, RUNNING] = -1
    clients[client, DUE] = 0
    insert(k.idle_address, k.num_clients, client)
    insert(k.preempted_address, k.num_requests, position)


@inlined
def _make_room(v: Record, s: Record, k: Record) -> None:
    """Preempt whoever has to give way for the next decode."""
    while too_full(v, s, k):
        _preempt(v, s, k, s.kv_last_started)
    v.kv_growth = next_growth(v, k)


@inlined
def _start(v: Record, s: Record, k: Record, client: int, start_ns: int, tokens: int, resumed: bool) -> bool:
    """End of its prefill: the request has so many output tokens. Returns whether they are all."""
    clients = clients_at(k)
    ring = ring_at(k)
    requests = requests_at(k)
    position = clients[client, RUNNING]
    decodes = requests[position, OUTPUT] - tokens
    clients[client, HELD] = requests[position, PROMPT] + requests[position, OUTPUT]
    if k.served_address != 0:
        if resumed:
            note_resumption(v, k, client, position, tokens)
        else:
            note_start(v, k, client, position, start_ns)
    if k.serving:
        if resumed:
            started_at(k)[client] = first_token_ns_at(k)[position]
            v.decoding_ns += v.clock_ns - started_at(k)[client]
            v.decoding_tokens += tokens - 1
        else:
            start_decoding(v, s, k, client, position)
    if decodes == 0:
        _complete(v, s, k, client)
        return True
    mask = k.ring_mask
    slot = (v.decodes + decodes) & mask
    clients[client, NEXT] = ring[slot, BUCKET]
    ring[slot, BUCKET] = client
    expected = requests[position, ESTIMATE] - tokens
    if expected <= 0:
        v.overdue += 1
        return False
    ring[(v.decodes + expected) & mask, EXPECTED] += 1
    v.last_due = max(v.last_due, v.decodes + expected)
    v.remaining += expected
    v.remaining_squared += np.int64(expected) * np.int64(expected)
    if expected <= 1:
        v.due_1 += 1
    elif expected <= 4:
        v.due_4 += 1
    elif expected <= 16:
        v.due_16 += 1
    elif expected <= 64:
        v.due_64 += 1
    elif expected <= 256:
        v.due_256 += 1
    return False


@inlined
def _forget(v: Record, ring: Ints, remaining: int, slot: int) -> None:
    """A request finished before its estimate: take it out of what is expected."""
    ring[slot, EXPECTED] -= 1
    while v.last_due > v.decodes and ring[v.last_due & (len(ring) - 1), EXPECTED] == 0:
        v.last_due -= 1
    v.remaining -= remaining
    v.remaining_squared -= np.int64(remaining) * np.int64(remaining)
    if remaining <= 1:
        v.due_1 -= 1
    elif remaining <= 4:
        v.due_4 -= 1
    elif remaining <= 16:
        v.due_16 -= 1
    elif remaining <= 64:
        v.due_64 -= 1
    elif remaining <= 256:
        v.due_256 -= 1


@inlined
def _complete(v: Record, s: Record, k: Record, client: int) -> None:
    """Free a client; :func:`_leave` counts it."""
    clients = clients_at(k)
    requests = requests_at(k)
    if k.served_address != 0:
        served_at(k)[clients[client, RUNNING]].completion_ns = v.clock_ns
    if k.serving:
        end_decoding(v, s, k, client)
    if k.kv_budget > 0:
        free_memory(v, s, k, client, clients[client, HELD])
    clients[client, RUNNING] = -1
    clients[client, DUE] = 0
    insert(k.idle_address, k.num_clients, client)
    if not k.shared_queue and clients[client, HEAD] >= 0:
        join_heads(s, k, requests, clients[client, HEAD])
        if k.stealing:
            changed(k, client)


@inlined
def _leave(v: Record, finished: int, held: int) -> None:
    """Count out ``finished`` requests, which held ``held`` tokens."""
    v.context_tokens -= held
    v.completed += finished
    v.active -= finished
    v.idle += finished


@inlined
def _settle(v: Record, s: Record, k: Record) -> None:
    """Bring the view up to the clock: arrivals, a jump over time in which there is nothing to do, what comes next."""
    release_ns = release_ns_at(k)
    if s.next_release < k.num_requests:
        release(v, s, k)
        if v.active == 0 and v.waiting == 0 and v.preempted == 0 and v.reading_tokens == 0:
            target = release_ns[s.next_release]
            s.jump_ns += target - v.clock_ns
            v.clock_ns = target
            release(v, s, k)
    s.next_release_ns = release_ns[s.next_release] if s.next_release < k.num_requests else NEVER
    if k.serving:
        note_late(v, s, k)
    # Under vllm_v0 one that is alone and has no free block gives way to itself, and comes back by a prefill.
    if k.kv_budget > 0 and (k.kv_rule == KEEP_GROWTH or (k.kv_rule == VLLM_V0 and v.active == 1)):
        _make_room(v, s, k)
    preview(v, s, k)
    if k.kv_budget > 0:
        v.prefill_ns = s.swap_out_ns + s.kv_batch_copied * k.swap_token_ns
        if v.batch_tokens > 0 or s.kv_batch_copied == 0:
            v.prefill_ns += prefill_duration(k, v.batch_tokens)
    else:
        v.prefill_ns = prefill_duration(k, v.batch_tokens) + s.moves_ahead * k.move_token_ns
    active, context = v.active, v.context_tokens
    if k.kv_rule != KEEP_GROWTH:
        preview_decode(v, s, k)
        active, context = s.kv_decoding, s.kv_decoding_context
    v.decode_ns = k.alpha_decode_ns + k.beta_decode_ns * active + k.gamma_decode_ns * context + s.swap_out_ns
    if k.mixed_budget > 0:
        v.mixed_ns = mixed_duration(v, k)
    v.oldest_release_ns = v.clock_ns
    if v.waiting > 0 and k.arrivals == 0:
        v.oldest_release_ns = k.first_release_ns
    elif v.waiting > 0:
        release_order = release_order_at(k)
        while not contains(k.waiting_address, k.num_requests, release_order[s.oldest_position]):
            s.oldest_position += 1
        v.oldest_release_ns = release_ns[s.oldest_position]
