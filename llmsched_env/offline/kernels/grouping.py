"""The dynamic program of LB3, row by row (`llmsched_env/offline/grouping.py`)."""

from __future__ import annotations

import cython
import numpy as np
from numpy.typing import NDArray


def least_held(lengths: NDArray[np.int64], counts: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """F(G) for each number G of groups: F_g(j) = min over i of F_{g-1}(i) + (C_j - C_i) * lengths[j-1].

    C counts requests. The cost of a group satisfies the quadrangle inequality (it is a count times a non-decreasing
    value), so the best split point grows with both g and j (Yao, Efficient dynamic programming using quadrangle
    inequalities, STOC 1980): each row is searched between its neighbours' split points.

    Args:
        lengths: (m,) distinct lengths, ascending.
        counts: (m,) requests of each length.
        numbers: numbers of groups wanted, ascending, each at least 1 and below m.
    """
    result = np.zeros(len(numbers), np.int64)
    values: cython.longlong[::1] = memoryview(lengths)
    upto: cython.longlong[::1] = memoryview(np.concatenate([[0], np.cumsum(counts)]))
    groups: cython.longlong[::1] = memoryview(numbers)
    row: cython.longlong[::1] = memoryview(np.zeros(len(lengths) + 1, np.int64))
    split: cython.longlong[::1] = memoryview(np.zeros(len(lengths) + 1, np.int64))
    out: cython.longlong[::1] = memoryview(result)
    with cython.nogil:
        fill_least_held(values, upto, groups, row, split, out)
    return result


def fill_least_held(
    values: cython.longlong[::1],
    upto: cython.longlong[::1],
    groups: cython.longlong[::1],
    row: cython.longlong[::1],
    split: cython.longlong[::1],
    out: cython.longlong[::1],
) -> cython.void:
    """Fill ``out``, one value for each of ``groups``; ``row`` and ``split``, (m + 1,), are work space, zeros."""
    m: cython.longlong = values.shape[0]
    wanted: cython.longlong = 0
    g: cython.longlong = 1
    i: cython.longlong
    j: cython.longlong
    last: cython.longlong
    high: cython.longlong
    place: cython.longlong
    best: cython.longlong
    value: cython.longlong
    for j in range(1, m + 1):
        row[j] = upto[j] * values[j - 1]
    while wanted < groups.shape[0]:
        if g == groups[wanted]:
            out[wanted] = row[m]
            wanted += 1
            continue
        g += 1
        high = m - 1
        # Downwards, since row[j] needs row[i] of g - 1 for i < j only.
        for j in range(m, g - 1, -1):
            best = row[j]
            place = min(high, j - 1)
            last = max(split[j], g - 1)
            for i in range(place, last - 1, -1):
                value = row[i] + (upto[j] - upto[i]) * values[j - 1]
                if value < best:
                    best = value
                    place = i
            row[j] = best
            split[j] = place
            high = place
