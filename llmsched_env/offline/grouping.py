"""The dynamic program of LB3: lengths in groups, each request held as long as the longest of its group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline.kernels.grouping import least_held

__all__ = ["MAX_DISTINCT", "grouped_loads"]

MAX_DISTINCT = 4096
"""Most distinct lengths in the dynamic program; with more they are rounded down to multiples of a step."""


def grouped_loads(decodes: NDArray[np.int64], first: int) -> list[int]:
    """F(N (N + 1) / 2) for N = ``first``, ``first`` + 1, ... until it has fallen to the sum of ``decodes``.

    F(G) is the least sum, over requests, of the longest of their group, over partitions into at most G groups.

    Args:
        decodes: (n,) int64, non-negative.
        first: smallest N wanted, at least 1.

    Returns:
        The values in order of N; the last is the sum of ``decodes``.
    """
    total = int(decodes.sum())
    rounded = decodes
    step = 1
    while len(values := np.unique(rounded)) > MAX_DISTINCT:
        # Shorter requests are held no longer: F of lengths rounded down is a lower bound on F.
        step *= 2
        rounded = decodes // step * step
    counts = np.unique(rounded, return_counts=True)[1].astype(np.int64)
    last = first
    while last * (last + 1) // 2 < len(values):
        last += 1
    if last == first:
        return [total]
    groups = np.array([k * (k + 1) // 2 for k in range(first, last)], np.int64)
    held = least_held(values.astype(np.int64), counts, groups)
    return [max(total, int(h)) for h in held] + [total]
