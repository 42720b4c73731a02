"""The order of a queue as a number a request: whoever has the smaller one is taken first, ties by release."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["queue_key", "volumes"]

Numbers = NDArray[np.int64]

SIGNS = {"fcfs": 0, "longest_first": -1, "shortest_first": 1}
"""Of the estimate in a key."""


def volumes(prompt_tokens: NDArray[Any], output_tokens: NDArray[Any]) -> Numbers:
    """(n,) int64: what each request holds of the KV cache, summed over its output tokens, in token-iterations.

    With s prompt tokens and o output tokens it holds s + k at its k-th token, so s o + o (o + 1) / 2 in sum: the
    volume of 'Geometry-Aware Online Scheduling for LLM Serving' (Kong, Qi, Ye, Zhou; arXiv 2606.22327).

    Args:
        prompt_tokens: (n,) s.
        output_tokens: (n,) o, known or estimated.
    """
    s, o = prompt_tokens.astype(np.int64), output_tokens.astype(np.int64)
    return s * o + o * (o + 1) // 2


def queue_key(order: str, prompt_tokens: NDArray[np.int32], estimates: NDArray[np.int32]) -> Numbers:
    """(n,) int64: the key of an order that is fixed before an episode begins.

    Args:
        order: one of `llmsched_env.config.ORDERS` or `KEYED_ORDERS`.
        prompt_tokens: (n,) of the requests.
        estimates: (n,) output lengths as the scheduler sees them.
    """
    if order == "smallest_volume_first":
        return volumes(prompt_tokens, estimates)
    return SIGNS[order] * estimates.astype(np.int64)
