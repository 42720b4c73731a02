"""The KV cache as a budget of tokens: who is let in, what each decode takes, and who gives way when it would overflow.

An active client holds its request's prompt and the output tokens so far, in whole blocks. Where there is no room for
what the next decode takes, the client that started last is *preempted*, again and again, until there is. What it has
emitted stays emitted. A prefill takes preempted requests before all others, in queue order: it computes prompt and
emitted tokens anew, and gives the next token; or, where they were swapped, it copies them back, which gives none.

There are three rules of when that is (config.KV_RULES). `keep_growth`: between iterations there is always room for the
next decode; a prefill leaves it, and whoever has to give way does so as soon as an iteration ends. vLLM's: a prefill
leaves no such room, the decode itself preempts before it begins, and the token that was sampled last has no cache yet,
so that a client holds one token less. `vllm_v1` preempts where a block is needed and none is free; `vllm_v0` where none
is free at a client's turn, in the order of starts, be it needed or not.

Words of the array `kv` (int64): by position, tokens emitted when it was preempted, and when its first token came; by
client, its neighbours in the order of starts; clients by (context - decodes) modulo the block, among which the next
decode finds those whose blocks are full; scratch for `predicted`, two a slot of the ring.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmsched_env.core.layout import DUE, ESTIMATE, PROMPT, RUNNING, Records
from llmsched_env.core.memory import clients_at, requests_at
from llmsched_env.core.pointers import array_at
from llmsched_env.jit import inlined, jit

__all__ = [
    "BY_PREDICTION",
    "BY_RESERVE",
    "KEEP_GROWTH",
    "VLLM_V0",
    "admit",
    "allocated",
    "begin_batch",
    "emitted_at",
    "first_token_ns_at",
    "free_memory",
    "hold_memory",
    "kv_words",
    "next_growth",
    "preview_decode",
    "too_full",
]

BY_RESERVE, BY_PREDICTION = 1, 2
"""Kinds of admission; 0 is by what fits now (config.ADMISSIONS)."""

KEEP_GROWTH, VLLM_V0 = 0, 1
"""Rules; above the former are vLLM's (config.KV_RULES)."""

BELOW, ABOVE = 0, 1


def kv_words(setup: Records) -> int:
    """Size of `kv` for a (1,) `SETUP`."""
    k = setup[0]
    if k["kv_budget"] == 0:
        return 0
    return int(2 * (k["num_requests"] + k["num_clients"] + k["ring_mask"] + 1) + k["kv_block"])


@inlined
def emitted_at(k: Any) -> Any:
    """(n,) int64: output tokens that a request had emitted when it was preempted; 0 where it never was."""
    return array_at(k.kv_address, (k.num_requests,), np.int64)


@inlined
def first_token_ns_at(k: Any) -> Any:
    """(n,) int64: when a preempted request had its first token (with promises only)."""
    return array_at(k.kv_address + 8 * k.num_requests, (k.num_requests,), np.int64)


@inlined
def _links_at(k: Any) -> Any:
    """(J, 2) int64: the client that started before an active client, and the one that did after; -1 for none."""
    return array_at(k.kv_address + 16 * k.num_requests, (k.num_clients, 2), np.int64)


@inlined
def _phases_at(k: Any) -> Any:
    """(block,) int64: active clients by (context - decodes) modulo the block."""
    return array_at(k.kv_address + 16 * (k.num_requests + k.num_clients), (k.kv_block,), np.int64)


@inlined
def _future_at(k: Any) -> Any:
    """(R, 2) int64 scratch: clients that are expected to finish by decode, and the sum of their context - decodes."""
    first = k.kv_address + 16 * (k.num_requests + k.num_clients) + 8 * k.kv_block
    return array_at(first, (k.ring_mask + 1, 2), np.int64)


@inlined
def allocated(k: Any, tokens: int) -> int:
    """Tokens in whole blocks."""
    return (tokens + k.kv_block - 1) // k.kv_block * k.kv_block


@inlined
def next_growth(v: Any, k: Any) -> int:
    """What the next decode takes: a block for each client whose blocks are full."""
    return k.kv_block * _phases_at(k)[-v.decodes % k.kv_block]


@inlined
def _held(v: Any, k: Any, client: int) -> int:
    """Tokens that an active client has in the cache."""
    clients = clients_at(k)
    requests = requests_at(k)
    position = clients[client, RUNNING]
    emitted = v.decodes - clients[client, DUE] + requests[position, ESTIMATE]
    return requests[position, PROMPT] + emitted - k.kv_uncached


@inlined
def _short(k: Any, used: int, growth: int, last_held: int) -> bool:
    """Whether somebody has to give way for a decode that takes ``growth``; the last client to start holds so much."""
    free = k.kv_budget - used
    if k.kv_rule == VLLM_V0:
        # A client asks for a free block at its turn, so one has to be left for the last, unless it is that last block.
        free -= free % k.kv_block
        return growth > free or (growth == free and last_held % k.kv_block != 0)
    return growth > free


@inlined
def too_full(v: Any, s: Any, k: Any) -> bool:
    """Whether a decode now has to preempt the client that started last."""
    if s.kv_last_started < 0:
        return False
    return _short(k, v.kv_used, next_growth(v, k), _held(v, k, s.kv_last_started))


@jit
def preview_decode(v: Any, s: Any, k: Any) -> None:
    """vLLM's rules: whom a decode now would serve, once it has preempted for it, and what it would take."""
    links = _links_at(k)
    used = v.kv_used
    v.kv_growth = next_growth(v, k)
    s.kv_decoding = v.active
    s.kv_decoding_context = v.context_tokens
    client = s.kv_last_started
    while client >= 0:
        held = _held(v, k, client)
        if not _short(k, used, v.kv_growth, held):
            return
        used -= allocated(k, held)
        if held % k.kv_block == 0:
            v.kv_growth -= k.kv_block
        s.kv_decoding -= 1
        s.kv_decoding_context -= held + k.kv_uncached
        client = links[client, BELOW]


@inlined
def hold_memory(v: Any, s: Any, k: Any, client: int, tokens: int) -> None:
    """The client starts with so many tokens of context."""
    tokens -= k.kv_uncached
    links = _links_at(k)
    links[client, BELOW] = s.kv_last_started
    links[client, ABOVE] = -1
    if s.kv_last_started >= 0:
        links[s.kv_last_started, ABOVE] = client
    s.kv_last_started = client
    _phases_at(k)[(tokens - v.decodes) % k.kv_block] += 1
    v.kv_used += allocated(k, tokens)
    s.kv_peak = max(s.kv_peak, v.kv_used)
    s.kv_reserved += _reserve(k, clients_at(k)[client, RUNNING])


@inlined
def free_memory(v: Any, s: Any, k: Any, client: int, tokens: int) -> None:
    """The client stops with so many tokens of context: complete or preempted."""
    tokens -= k.kv_uncached
    links = _links_at(k)
    below, above = links[client, BELOW], links[client, ABOVE]
    if below >= 0:
        links[below, ABOVE] = above
    if above >= 0:
        links[above, BELOW] = below
    else:
        s.kv_last_started = below
    _phases_at(k)[(tokens - v.decodes) % k.kv_block] -= 1
    v.kv_used -= allocated(k, tokens)
    s.kv_reserved -= _reserve(k, clients_at(k)[client, RUNNING])


@inlined
def _reserve(k: Any, position: int) -> int:
    """What is set aside for a request where admission is by reserve."""
    requests = requests_at(k)
    output = k.kv_reserve if k.kv_reserve > 0 else requests[position, ESTIMATE]
    return allocated(k, requests[position, PROMPT] + output)


@jit
def begin_batch(v: Any, s: Any, k: Any) -> None:
    """Nobody has joined the batch that is being composed."""
    s.kv_batch = 0
    s.kv_batch_growth = 0
    s.kv_batch_reserved = 0
    if k.kv_admission != BY_PREDICTION:
        return
    future = _future_at(k)
    future[:, :] = 0
    clients = clients_at(k)
    requests = requests_at(k)
    links = _links_at(k)
    client = s.kv_last_started
    while client >= 0:
        position = clients[client, RUNNING]
        emitted = v.decodes - clients[client, DUE] + requests[position, ESTIMATE]
        _expect(v, k, requests[position, PROMPT] + emitted, clients[client, DUE])
        client = links[client, BELOW]


@inlined
def _expect(v: Any, k: Any, context: int, due: int) -> None:
    """Add a request to the scratch; one that has outlived its estimate is expected to finish in the next decode."""
    future = _future_at(k)
    slot = max(due, v.decodes + 1) & k.ring_mask
    future[slot, 0] += 1
    future[slot, 1] += context - v.decodes


@inlined
def _expected_to_fit(v: Any, k: Any) -> bool:
    """Whether at no decode to come more is held than there is, if all finish as expected and nobody else joins.

    What is held grows up to the decode at which the next one finishes. A request's blocks are full but for at most one
    token less than a block.
    """
    future = _future_at(k)
    clients = 0
    context = 0
    decode = v.decodes + k.ring_mask
    while decode > v.decodes:
        slot = decode & k.ring_mask
        if future[slot, 0] > 0:
            clients += future[slot, 0]
            context += future[slot, 1]
            if context + clients * (decode + k.kv_block - 1) > k.kv_budget:
                return False
        decode -= 1
    return True


@jit
def admit(v: Any, s: Any, k: Any, position: int) -> bool:
    """Whether the request at ``position`` may join the batch that is being composed; if so, it has joined.

    A request that nobody is active beside joins in any case: alone each of them fits, all along.
    """
    requests = requests_at(k)
    emitted = emitted_at(k)[position]
    context = requests[position, PROMPT] + emitted + (0 if emitted > 0 and k.swap_token_ns > 0 else 1)
    held = allocated(k, context - k.kv_uncached)
    grows = k.kv_block if k.kv_rule == KEEP_GROWTH and context % k.kv_block == 0 else 0
    reserve = _reserve(k, position)
    if v.active > 0 or s.kv_batch > 0:
        growth = grows
        if k.kv_rule == KEEP_GROWTH:
            growth += next_growth(v, k) + s.kv_batch_growth
        if v.kv_used + s.kv_batch + held + growth > k.kv_budget - k.kv_headroom:
            return False
        if k.kv_admission == BY_RESERVE and s.kv_reserved + s.kv_batch_reserved + reserve > k.kv_budget:
            return False
    if k.kv_admission == BY_PREDICTION:
        tokens = context - requests[position, PROMPT]
        _expect(v, k, context, v.decodes + requests[position, ESTIMATE] - tokens)
        if (v.active > 0 or s.kv_batch > 0) and not _expected_to_fit(v, k):
            return False
    s.kv_batch += held
    s.kv_batch_growth += grows
    s.kv_batch_reserved += reserve
    return True
