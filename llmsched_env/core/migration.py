"""What stealing costs where caches lie with clients: prefixes cached at home, and running requests that move.

A share of each prompt is cached at the client in whose queue it waits; that client computes the rest only. A thief
brings what is cached over, or takes the victim's running request in place of a waiting one (its whole context moves,
and the victim starts its own head). Tokens are copied in ``move_token_ns`` each, or computed again where that is 0.
"""

from __future__ import annotations

from typing import Any

from llmsched_env.core.layout import DUE, ESTIMATE, HELD, PROMPT, RUNNING
from llmsched_env.core.memory import clients_at, requests_at
from llmsched_env.jit import inlined, jit

__all__ = ["WAITING", "cached_tokens", "context_to_move", "expect_moves"]

WAITING, RUNNING_ONES, CHEAPER = 0, 1, 2
"""What a thief takes (config.STEALS)."""


@inlined
def cached_tokens(k: Any, position: int) -> int:
    """Tokens of a request's prompt that are cached at home; never all of them."""
    return requests_at(k)[position, PROMPT] * k.cached_millionths // 1_000_000


@inlined
def context_to_move(v: Any, k: Any, queue: int, position: int) -> int:
    """Context of the running request that a thief takes from ``queue``; 0 where it takes the head, at ``position``.

    That is where none has run before this prefill; where moving it is no cheaper, if that is what decides; and where
    context and head together would be too much to compute for any prefill.
    """
    if k.steal == WAITING:
        return 0
    clients = clients_at(k)
    requests = requests_at(k)
    running = clients[queue, RUNNING]
    if running < 0 or clients[queue, HELD] == 0:
        return 0
    context = requests[running, PROMPT] + v.decodes - clients[queue, DUE] + requests[running, ESTIMATE]
    cached = cached_tokens(k, position)
    if k.steal == CHEAPER and context >= cached:
        return 0
    if k.move_token_ns == 0 and context + requests[position, PROMPT] - cached > k.token_cap:
        return 0
    return context


@jit
def expect_moves(v: Any, s: Any, k: Any) -> None:
    """Correct the preview of client queues: prompts are cached in part, and each theft moves what is usual.

    That is the cached part of an average waiting request, or the context of an average active client.
    """
    stolen = v.ready - s.own_ready
    cached = s.waiting_cached - s.own_cached
    if v.ready < v.waiting:
        cached = stolen * s.waiting_cached // v.waiting
    moved = cached
    if k.steal != WAITING and stolen > 0 and v.active > 0:
        running = min(stolen, v.active)
        context = running * v.context_tokens // v.active + (stolen - running) * cached // stolen
        if k.steal == RUNNING_ONES or context < cached:
            moved = context
    if stolen == 0:
        cached, moved = 0, 0
    v.batch_tokens -= s.own_cached + cached
    s.moves_ahead = moved if k.move_token_ns > 0 else 0
    if k.move_token_ns == 0:
        v.batch_tokens += moved
