"""Whether a few loads fit on clients: a dynamic program over subsets (`llmsched_env/offline/cmax_bounds.py`)."""

from __future__ import annotations

import cython
import numpy as np
from numpy.typing import NDArray


def fits(loads: NDArray[np.int64], clients: int, capacity: int) -> bool:
    """Whether the loads can be dealt to the clients, none with more than ``capacity``.

    Clients are laid end to end on a line, a capacity each. The loads of a subset, put down one after another, each
    whole on one client, end somewhere; ``row[subset]`` is the first place where they can end. A load that is put down
    from an earlier place ends no later, so of each subset the first end is enough.

    Args:
        loads: (n,) non-negative, none above the capacity; 2**n places are filled.
        clients: how many.
        capacity: at least 1.
    """
    values: cython.longlong[::1] = memoryview(loads)
    ends = np.zeros(1 << len(loads), np.int64)
    row: cython.longlong[::1] = memoryview(ends)
    most: cython.longlong = capacity
    with cython.nogil:
        fill_ends(values, most, row)
    return int(row[len(ends) - 1]) <= clients * capacity


def fill_ends(values: cython.longlong[::1], capacity: cython.longlong, row: cython.longlong[::1]) -> cython.void:
    """Fill ``row``, for each subset as a number whose bits are its loads."""
    n: cython.longlong = values.shape[0]
    size: cython.longlong = row.shape[0]
    subset: cython.longlong
    i: cython.longlong
    end: cython.longlong
    best: cython.longlong
    room: cython.longlong
    for subset in range(1, size):
        best = -1
        for i in range(n):
            if subset >> i & 1:
                end = row[subset - (1 << i)]
                room = capacity - end % capacity
                end += values[i] if values[i] <= room else room + values[i]
                if best < 0 or end < best:
                    best = end
        row[subset] = best
