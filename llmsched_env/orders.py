"""The order of a queue as a number a request: whoever has the smaller one is taken first, ties by release."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Known", "queue_key", "sorted_f", "volumes"]

Numbers = NDArray[np.int64]

SIGNS = {"fcfs": 0, "longest_first": -1, "shortest_first": 1}
"""Of the estimate in a key."""

WEIGHTS = ((1, 0), *((2 ** max(0, -j), 2 ** max(0, j)) for j in range(-10, 11)), (0, 1))
"""Of output and of size in the sums that `sorted_f` sorts by: whole, so that the order is the same on every machine."""


def volumes(prompt_tokens: NDArray[Any], output_tokens: NDArray[Any]) -> Numbers:
    """(n,) int64: what each request holds of the KV cache, summed over its output tokens, in token-iterations.

    With s prompt tokens and o output tokens it holds s + k at its k-th token, so s o + o (o + 1) / 2 in sum: in this
    model of memory, that of MC-SF, the volume of 'Geometry-Aware Online Scheduling for LLM Serving' (Kong, Qi, Ye,
    Zhou; arXiv 2606.22327), whose abstract gives no formula.

    Args:
        prompt_tokens: (n,) s.
        output_tokens: (n,) o, known or estimated.
    """
    s, o = prompt_tokens.astype(np.int64), output_tokens.astype(np.int64)
    return s * o + o * (o + 1) // 2


def sorted_f(prompt_tokens: NDArray[Any], output_tokens: NDArray[Any], budget_tokens: int) -> Numbers:
    """(n,) int64: the place of each request in the order of Sorted-F.

    'LLM Serving Optimization with Variable Prefill and Decode Lengths' (Wang, Ye, Zhou; arXiv 2508.06133): of those
    that are left, take the batch X with the least F(X) = (sum of o in X) / |X|^2 among those whose prompts and outputs
    fit together, sum of (s + o) <= M; within it the shortest output first. Again until nobody is left.

    The least F is searched, not proved, as in the paper's scalable variants, by a method of our own: for some weights
    (a, b) the requests are sorted by a o + b (s + o), and of all first ones of such a line that fit those with the
    least F are the batch. That is the optimum of a Lagrangian relaxation of the budget.

    Args:
        prompt_tokens: (n,) s.
        output_tokens: (n,) o, known or estimated.
        budget_tokens: M; a request that takes more counts as one that takes all of it.
    """
    o = output_tokens.astype(np.int64)
    size = np.minimum(prompt_tokens + o, budget_tokens)
    window = budget_tokens // int(size.min())
    lines = [np.argsort(a * o + b * size, kind="stable") for a, b in WEIGHTS]
    place, left, placed = np.empty(len(o), np.int64), np.ones(len(o), np.bool_), 0
    while placed < len(o):
        least, batch = np.inf, lines[0][:0]
        for line in lines:
            fits = int(np.searchsorted(np.cumsum(size[line[:window]]), budget_tokens, side="right"))
            values = np.cumsum(o[line[:fits]]) / np.arange(1, fits + 1) ** 2
            best = int(np.argmin(values))
            if values[best] < least:
                least, batch = values[best], line[: best + 1]
        place[batch[np.lexsort((batch, o[batch]))]] = placed + np.arange(len(batch))
        left[batch] = False
        placed += len(batch)
        lines = [line[left[line]] for line in lines]
    return place


class Known(NamedTuple):
    """What an order may go by.

    Attributes:
        prompt_tokens: (n,) of the requests.
        estimates: (n,) output lengths as the scheduler sees them.
        release_ns: (n,) when they come.
        budget_tokens: of the KV cache; 0 without one.
        aging_tokens_per_s: how much shorter a request counts for each second that it waits.
    """

    prompt_tokens: NDArray[np.int32]
    estimates: NDArray[np.int32]
    release_ns: NDArray[np.int64]
    budget_tokens: int = 0
    aging_tokens_per_s: float = 0.0


def queue_key(order: str, known: Known) -> NDArray[Any]:
    """(n,) the key of an order that is fixed before an episode begins.

    "aged_shortest_first" sorts by N - a (t - r) at time t, with output N and release r: t is the same for all, so what
    is left is N + a r, whenever it is asked.

    Args:
        order: one of `llmsched_env.config.ORDERS` or `KEYED_ORDERS`.
        known: of the requests.
    """
    if order == "sorted_f":
        return sorted_f(known.prompt_tokens, known.estimates, known.budget_tokens)
    if order == "smallest_volume_first":
        return volumes(known.prompt_tokens, known.estimates)
    if order == "aged_shortest_first":
        return known.estimates + known.aging_tokens_per_s * (known.release_ns / 1e9)
    return SIGNS[order] * known.estimates.astype(np.int64)
