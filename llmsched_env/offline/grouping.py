"""The dynamic program of LB3: lengths in groups, each request held as long as the longest of its group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmsched_env.jit import jit

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
    held = _least_held(values.astype(np.int64), counts, groups)
    return [max(total, int(h)) for h in held] + [total]


@jit
def _least_held(values: NDArray[np.int64], counts: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """F(G) for each G of ``groups``: F_g(j) = min over i of F_{g-1}(i) + (C_j - C_i) * values[j-1].

    C counts requests. The cost of a group satisfies the quadrangle inequality (it is a count times a non-decreasing
    value), so the best split point grows with both g and j (Yao, Efficient dynamic programming using quadrangle
    inequalities, STOC 1980): each row is searched between its neighbours' split points.

    Args:
        values: (m,) distinct lengths, ascending.
        counts: (m,) requests of each length.
        groups: numbers of groups wanted, ascending, each at least 1 and below m.
    """
    m = len(values)
    upto = np.zeros(m + 1, np.int64)
    for j in range(m):
        upto[j + 1] = upto[j] + counts[j]
    row = np.zeros(m + 1, np.int64)
    split = np.zeros(m + 1, np.int64)
    for j in range(1, m + 1):
        row[j] = upto[j] * values[j - 1]
    out = np.empty(len(groups), np.int64)
    wanted = 0
    g = 1
    while wanted < len(groups):
        if g == groups[wanted]:
            out[wanted] = row[m]
            wanted += 1
            continue
        g += 1
        following = row.copy()
        high = m - 1
        for j in range(m, g - 1, -1):
            best = row[j]
            place = min(high, j - 1)
            for i in range(min(high, j - 1), max(split[j], g - 1) - 1, -1):
                value = row[i] + (upto[j] - upto[i]) * values[j - 1]
                if value < best:
                    best = value
                    place = i
            following[j] = best
            split[j] = place
            high = place
        row = following
    return out
