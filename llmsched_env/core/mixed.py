"""Mixed iterations: what is read beside a decode (chunked prefill).

Prompts are read in queue order, one after another, so at most one has been read in part. Its request waits no more; it
holds a client, which is idle until the whole prompt is read, and goes before all others, also in a prefill.
"""

from __future__ import annotations

from typing import Any

from llmsched_env.core.layout import ESTIMATE, PROMPT
from llmsched_env.core.memory import requests_at
from llmsched_env.core.orders import following
from llmsched_env.jit import inlined, jit

__all__ = ["chunk_room", "part_read", "preview_mixed"]


@inlined
def chunk_room(v: Any, k: Any) -> int:
    """Most prompt tokens beside a decode now."""
    return max(0, k.mixed_budget - v.active) if k.mixed_counts_active else k.mixed_budget


@inlined
def part_read(prompt: int, tokens: int, room: int, whole: bool) -> int:
    """How much is read of a prompt in an iteration with room for ``room`` tokens, ``tokens`` of them taken.

    ``whole``: all of it or nothing, and all of the first one in any case.
    """
    if tokens + prompt <= room:
        return prompt
    if whole:
        return prompt if tokens == 0 and room > 0 else 0
    return room - tokens


@jit
def preview_mixed(v: Any, s: Any, k: Any) -> None:
    """What a prefill now would hold, and what a mixed iteration would read."""
    requests = requests_at(k)
    reading = 1 if v.reading_tokens > 0 else 0
    v.ready = min(v.idle, v.waiting + reading)
    v.batch_requests = 0
    v.batch_tokens = 0
    v.batch_work = 0
    v.chunk_tokens = 0
    room = chunk_room(v, k)
    batch, chunk = True, True
    position = -1
    for i in range(v.ready):
        if i == 0 and reading:
            prompt, estimate = v.reading_tokens, requests[s.reading_position, ESTIMATE]
        else:
            position = following(s, k, k.order, position)
            prompt, estimate = requests[position, PROMPT], requests[position, ESTIMATE]
        if batch:
            batch = i == 0 or v.batch_tokens + prompt <= k.token_cap
        if batch:
            v.batch_requests += 1
            v.batch_tokens += prompt
            v.batch_work += estimate
        if chunk:
            part = part_read(prompt, v.chunk_tokens, room, k.mixed_whole_prompts)
            v.chunk_tokens += part
            chunk = part == prompt
        if not batch and not chunk:
            return
