"""What a recording of requests holds, whatever format it was in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmsched_env.workload.prefix_blocks import PrefixBlocks
from llmsched_env.workload.requests import Requests

__all__ = ["PrefixBlocks", "Trace"]

Column = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trace:
    """A recording, as :func:`~llmsched_env.workload.read_trace` returns it: n requests in the order of arrival.

    Attributes:
        format: the format it was read as, one of ``FORMATS`` in ``llmsched_env.workload.trace_formats``.
        release_ns: (n,) arrivals in ns since the first row of the file, never decreasing.
        prompt_tokens: (n,) at least 1.
        output_tokens: (n,) at least 1.
        predicted_tokens: (n,) at least 1, or ``None`` where the file has none.
        skipped: rows left out because they have no output (or, in ShareGPT, no answer).
        has_times: whether the file says when requests arrive. If not, all arrive at 0, and a rate must come from
            elsewhere.
        notes: what was assumed, estimated or left out, one sentence each.
        prefix_blocks: of prompts, where the file has them.
        session_ids: (n,) requests of one conversation have the same number, from 0 on; -1 where a row names none.
            ``None`` where the file has no conversations.
    """

    format: str
    release_ns: Column
    prompt_tokens: Column
    output_tokens: Column
    predicted_tokens: Column | None = None
    skipped: int = 0
    has_times: bool = True
    notes: tuple[str, ...] = ()
    prefix_blocks: PrefixBlocks | None = None
    session_ids: Column | None = None

    def __len__(self) -> int:
        return len(self.release_ns)

    @property
    def arrival_s(self) -> NDArray[np.float64]:
        """(n,) arrivals in seconds since the first row of the file."""
        return self.release_ns / 1e9

    def take(self, rows: Column) -> Trace:
        """Some of the requests, in the order of ``rows``, their times as they are."""
        return Trace(
            self.format,
            self.release_ns[rows],
            self.prompt_tokens[rows],
            self.output_tokens[rows],
            None if self.predicted_tokens is None else self.predicted_tokens[rows],
            self.skipped,
            self.has_times,
            self.notes,
            None if self.prefix_blocks is None else self.prefix_blocks.take(rows),
            None if self.session_ids is None else self.session_ids[rows],
        )

    def requests(self, first: int = 0, end: int | None = None, *, mean_output_tokens: float | None = None) -> Requests:
        """Requests ``first`` to ``end - 1`` (all by default), with times counted from the first of them.

        Args:
            first: index of the first.
            end: past the last.
            mean_output_tokens: what a blind policy may know; ``None``: the mean of these requests.

        Raises:
            WorkloadError: no request in this range.
        """
        rows = slice(first, end)
        release = self.release_ns[rows]
        return Requests.of(
            self.prompt_tokens[rows],
            self.output_tokens[rows],
            release_ns=release - release[:1],
            predicted_tokens=None if self.predicted_tokens is None else self.predicted_tokens[rows],
            mean_output_tokens=mean_output_tokens,
            prefix_blocks=self.prefix_blocks and self.prefix_blocks.take(np.arange(len(self))[rows]),
        )
