"""Chunked prefill: the prompt tokens that are computed beside a decode.

Prompts are computed in the order of the line, one after another, so at most one request has a chunked prefill under
way. It waits no more; it holds a client, which is idle until the whole prompt is computed, and goes before all others,
also in a prefill.
"""

from __future__ import annotations

import cython


class Chunked:
    """The options of mixed iterations, and the request whose prefill is chunked.

    Attributes:
        budget: most prompt tokens beside a decode; 0: no mixed iterations.
        counts_active: whether each client that decodes takes a token of that budget.
        whole_prompts: whether prompts are never chunked.
        within_slack: whether they wait for the running requests' next tokens (token_slack.py).
        position: of the request whose prefill is chunked; -1 without one.
        client: that it holds.
        computed: tokens that have been read; what is left is in the view.
        cached: those of them that were in the cache when it began.
        start_ns: when its reading began.
        late: whether it was past its TTFT deadline then.
    """

    budget: cython.longlong
    counts_active: cython.bint
    whole_prompts: cython.bint
    within_slack: cython.bint
    position: cython.int
    client: cython.int
    computed: cython.longlong
    cached: cython.longlong
    start_ns: cython.longlong
    late: cython.bint

    def __init__(
        self, budget: int = 0, counts_active: bool = False, whole_prompts: bool = False, within_slack: bool = False
    ) -> None:
        self.budget = budget
        self.counts_active = counts_active
        self.whole_prompts = whole_prompts
        self.within_slack = within_slack
        self.position = -1
        self.client = 0
        self.computed = 0
        self.cached = 0
        self.start_ns = 0
        self.late = False

    def assign(self, other: Chunked) -> cython.void:
        """Take over another one's state."""
        self.position = other.position
        self.client = other.client
        self.computed = other.computed
        self.cached = other.cached
        self.start_ns = other.start_ns
        self.late = other.late

    def room(self, served: cython.longlong) -> cython.longlong:
        """Most prompt tokens beside a decode of so many clients."""
        if not self.counts_active:
            return self.budget
        return self.budget - served if self.budget > served else 0

    def part(
        self, tokens: cython.longlong, taken: cython.longlong, room: cython.longlong, whole: cython.bint
    ) -> cython.longlong:
        """How many of ``tokens`` are computed in an iteration with ``room``, of which so much is ``taken``.

        ``whole``: all of them or none, and all of the first request's in any case.
        """
        if taken + tokens <= room:
            return tokens
        if whole:
            return tokens if taken == 0 and room > 0 else 0
        return room - taken
