"""The dynamic program of LB4: requests in groups, each group priced by its size (`llmsched_env/offline/spans.py`)."""

from __future__ import annotations

import cython
import numpy as np
from numpy.typing import NDArray


def cheapest_groups(lengths: NDArray[np.int64], price: NDArray[np.int64], weight: int) -> tuple[int, NDArray[np.int64]]:
    """Least sum over groups of weight * size * longest + price[size], and how many groups of each size attain it.

    f(i) = min over q of f(i - q) + weight * q * lengths[i - 1] + price[q]. That groups may be taken contiguous: of
    groups of given sizes, that of the longest request may hold the next longest; this makes no other group longer.

    Args:
        lengths: (n,) ascending, non-negative, n at least 1.
        price: (q + 1,) of a group by its size; the first is not used.
        weight: of what is held, at least 0.
    """
    n = len(lengths)
    counts = np.zeros(len(price), np.int64)
    values: cython.longlong[::1] = memoryview(lengths)
    prices: cython.longlong[::1] = memoryview(price)
    row: cython.longlong[::1] = memoryview(np.zeros(n + 1, np.int64))
    taken: cython.longlong[::1] = memoryview(np.zeros(n + 1, np.int64))
    out: cython.longlong[::1] = memoryview(counts)
    one: cython.longlong = weight
    with cython.nogil:
        fill_groups(values, prices, one, row, taken, out)
    return int(row[n]), counts


def fill_groups(
    values: cython.longlong[::1],
    prices: cython.longlong[::1],
    weight: cython.longlong,
    row: cython.longlong[::1],
    taken: cython.longlong[::1],
    out: cython.longlong[::1],
) -> cython.void:
    """Fill ``row``, least cost of the i shortest, and ``out``; ``taken``, the last group's size, is work space."""
    n: cython.longlong = values.shape[0]
    largest: cython.longlong = prices.shape[0] - 1
    i: cython.longlong
    q: cython.longlong
    value: cython.longlong
    best: cython.longlong
    size: cython.longlong
    longest: cython.longlong
    for i in range(1, n + 1):
        longest = weight * values[i - 1]
        best = row[i - 1] + longest + prices[1]
        size = 1
        for q in range(2, min(largest, i) + 1):
            value = row[i - q] + q * longest + prices[q]
            if value < best:
                best = value
                size = q
        row[i] = best
        taken[i] = size
    i = n
    while i > 0:
        size = taken[i]
        out[size] += 1
        i -= size
