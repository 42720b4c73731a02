"""What is kept of each request's course where an episode is recorded: who served it when, and its worst token gap.

While a request is decoded without a break, its tokens end with the decodes of the log, so nothing is kept of them.
"""

from __future__ import annotations

from typing import Any

from llmsched_env.core.memory import log_at, served_at
from llmsched_env.jit import inlined, jit

__all__ = ["note_preemption", "note_resumption", "note_start"]


@inlined
def note_start(v: Any, k: Any, client: int, position: int, start_ns: int) -> None:
    """The request has its first token now, of a prefill that began at ``start_ns``."""
    entry = served_at(k)[position]
    entry.client = client
    entry.decode = v.decodes
    entry.prefill_start_ns = start_ns
    entry.first_token_ns = v.clock_ns
    entry.token_ns = v.clock_ns
    entry.tokens = 1


@jit
def note_preemption(v: Any, s: Any, k: Any, position: int) -> None:
    """The request is preempted or moves now, after the last decode: the gaps between its tokens since it was taken."""
    entry = served_at(k)[position]
    log = log_at(k)
    left = v.decodes - entry.decode
    after_ns = -1
    i = s.logged - 1
    while left > 0 and i >= 0:
        if not log[i].prefill:
            if after_ns >= 0:
                entry.gap_ns = max(entry.gap_ns, after_ns - log[i].end_ns)
            else:
                entry.preempted_ns = log[i].end_ns
            after_ns = log[i].end_ns
            left -= 1
        i -= 1
    if after_ns >= 0:
        entry.gap_ns = max(entry.gap_ns, after_ns - entry.token_ns)
    else:
        entry.preempted_ns = entry.token_ns


@inlined
def note_resumption(v: Any, k: Any, client: int, position: int, tokens: int) -> None:
    """The request goes on with so many tokens, the last of them just now unless its cache was copied."""
    entry = served_at(k)[position]
    entry.client = client
    entry.decode = v.decodes
    entry.tokens = tokens
    if k.swap_token_ns > 0 or k.move_token_ns > 0:
        entry.token_ns = entry.preempted_ns
    else:
        entry.gap_ns = max(entry.gap_ns, v.clock_ns - entry.preempted_ns)
        entry.token_ns = v.clock_ns
