"""Two promises to each request, and what comes of them: time to first token (TTFT) and time per output token (TPOT).

A request keeps the first if its prefill ends at most ``ttft_ns`` after its release, the second if from then on it takes
at most ``tpot_ns`` for each further token, in the mean. It is *late* as soon as not even the shortest prefill there is
could keep the first if it began now. *Lost* are the counted requests (numbers ``first_counted`` to ``last_counted``
- 1; the others are the warm-up and the cut end) that break a promise, each from the moment when that is certain
whatever its length: when it is late, has had its first token too late, or has ended too slowly. Goodput is the share
not lost. Where iterations do not last what schedulers are told (noise.py), late is who is late by what they are told,
which is not certain: lateness is counted with the first token.
"""

from __future__ import annotations

from typing import Any

from llmsched_env.core.bitset import contains, find_from
from llmsched_env.core.layout import OUTPUT, RUNNING
from llmsched_env.core.memory import clients_at, release_ns_at, requests_at, started_at
from llmsched_env.core.orders import strike, turn_late
from llmsched_env.jit import inlined

__all__ = ["end_decoding", "leave_queue", "note_late", "note_read_late", "start_decoding"]


@inlined
def _counted(k: Any, position: int) -> bool:
    return k.first_counted <= position < k.last_counted


@inlined
def note_late(v: Any, s: Any, k: Any) -> None:
    """Find out who has become late by now."""
    release_ns = release_ns_at(k)
    last_ns = v.clock_ns + k.least_prefill_ns - k.ttft_ns
    while s.late_until < s.next_release and release_ns[s.late_until] < last_ns:
        position = s.late_until
        s.late_until += 1
        if contains(k.waiting_address, k.num_requests, position):
            v.late += 1
            if k.ranked:
                turn_late(k, position)
            if _counted(k, position) and not k.disturbed:
                s.lost += 1
                s.lost_ttft += 1
    first = find_from(k.waiting_address, k.num_requests, s.late_until)
    v.in_time_release_ns = release_ns[first] if first >= 0 else v.clock_ns


@inlined
def leave_queue(v: Any, s: Any, k: Any, position: int) -> None:
    """A prefill takes the request."""
    if position < s.late_until:
        v.late -= 1
    if k.ranked:
        strike(s, k, position)


@inlined
def start_decoding(v: Any, s: Any, k: Any, client: int, position: int) -> None:
    """The request has its first token now."""
    started_at(k)[client] = v.clock_ns
    if not _counted(k, position):
        return
    ttft_ns = v.clock_ns - release_ns_at(k)[position]
    s.counted_started += 1
    s.ttft_ns += ttft_ns
    # Those before `late_until` are lost already, but where nobody can say for certain who is late.
    if ttft_ns > k.ttft_ns and (position >= s.late_until or k.disturbed):
        s.lost += 1
        s.lost_ttft += 1


@inlined
def note_read_late(v: Any, s: Any, k: Any, position: int) -> None:
    """The request has its first token now; since its reading began, when it was in time, others have turned late."""
    if k.disturbed or position >= s.late_until or not _counted(k, position):
        return  # it counts like any other
    if v.clock_ns - release_ns_at(k)[position] > k.ttft_ns:
        s.lost += 1
        s.lost_ttft += 1


@inlined
def end_decoding(v: Any, s: Any, k: Any, client: int) -> None:
    """The request on ``client`` is complete."""
    position = clients_at(k)[client, RUNNING]
    first_token_ns = started_at(k)[client]
    decodes = requests_at(k)[position, OUTPUT] - 1
    elapsed_ns = v.clock_ns - first_token_ns
    v.decoding_ns -= elapsed_ns
    v.decoding_tokens -= decodes
    if decodes == 0 or not _counted(k, position):
        return
    s.counted_decoded += 1
    s.tpot_ns += elapsed_ns / decodes
    if elapsed_ns > k.tpot_ns * decodes:
        s.lost_tpot += 1
        if first_token_ns - release_ns_at(k)[position] <= k.ttft_ns:
            s.lost += 1
