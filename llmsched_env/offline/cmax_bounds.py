"""Lower bounds on P||Cmax: no assignment of the loads to identical clients has a smaller largest load."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline.greedy import lpt
from llmsched_env.offline.kernels.packing import fits

__all__ = ["FEW_LOADS", "cmax_bound", "exact_cmax"]

FEW_LOADS = 14
"""Up to so many loads above 0 the optimum is found."""

MAX_SUBSET_SUM_WORK = 2**28
"""Bits that the subset-sum step may shift in all (n times the bound): beyond it the step is left out."""


def cmax_bound(loads: NDArray[np.int64], clients: int) -> int:
    """The largest of five lower bounds on the least possible largest load.

    1. *Average.* Some client holds at least the average, and loads are whole: ceil(sum / clients).
    2. *Largest load.* Somebody holds it.
    3. *Pigeonhole.* Among the k * clients + 1 largest loads, some k + 1 share a client, and the k + 1 smallest of
       them are the least that these can weigh.
    4. *Attainable sums.* The largest load is itself the sum of some loads, so it is at least the smallest subset sum
       that reaches the other bounds. (With loads 3, 3, 3 on two clients: average 5, sums 3, 6, 9, hence 6.)
    5. *Waste beside the longest.* Where many loads equal the largest one, p, as with outputs cut at a cap: within C,
       a client holds at most k = floor(C / p) of the m longest, so at least y = m - (k - 1) * clients of them hold k.
       Each of these has room R = C - k * p for shorter loads. One that holds two or more of them holds one of at most
       R / 2, and there are h such loads to go round; the other y - h hold at most one each, and waste what it leaves.
       If that waste exceeds all the slack there is, clients * C - sum, then C is impossible.

    Args:
        loads: (n,) int64, non-negative.
        clients: at least 1.

    Returns:
        The bound, in the unit of the loads. O(n log n), and n * bound / 64 word operations for steps 4
        and 5.
    """
    return _kept(np.ascontiguousarray(loads, np.int64).tobytes(), clients)


def exact_cmax(loads: NDArray[np.int64], clients: int) -> int:
    """The optimum of P||Cmax for up to :data:`FEW_LOADS` loads above 0; :func:`cmax_bound` for more.

    What is infeasible stays so with less capacity: bisection between the bound and LPT's largest load.
    """
    some = loads[loads > 0]
    low = cmax_bound(loads, clients)
    if len(some) > FEW_LOADS or len(some) <= clients:
        return low
    held = np.zeros(clients, np.int64)
    np.add.at(held, lpt(some, clients), some)
    high = int(held.max())
    while low < high:
        middle = (low + high) // 2
        if fits(some, clients, middle):
            high = middle
        else:
            low = middle + 1
    return low


@functools.lru_cache(maxsize=16)
def _kept(data: bytes, clients: int) -> int:
    """The bound, for loads as bytes: an assignment that is read is checked by it, and then the makespan bounded."""
    loads = np.frombuffer(data, np.int64)
    total = int(loads.sum())
    bound = max(-(-total // clients), int(loads.max()))
    descending = np.sort(loads)[::-1]
    cumulative = np.concatenate(([0], np.cumsum(descending)))
    for k in range(1, (len(loads) - 1) // clients + 1):
        last = k * clients + 1
        bound = max(bound, int(cumulative[last] - cumulative[last - k - 1]))
    while True:
        lifted = _next_attainable(descending, bound)
        if not _wastes_too_much(descending, clients, lifted):
            return lifted
        bound = lifted + 1


def _wastes_too_much(descending: NDArray[np.int64], clients: int, capacity: int) -> bool:
    """Whether step 5 of :func:`cmax_bound` shows that no assignment has a largest load of ``capacity``."""
    longest = int(descending[0])
    if longest == 0:
        return False
    shorter = descending[(descending < longest) & (descending > 0)]
    per_client = capacity // longest
    crowded = int((descending == longest).sum()) - (per_client - 1) * clients
    room = capacity - per_client * longest
    fitting = shorter[shorter <= room]
    single = crowded - int((2 * fitting <= room).sum())
    if single <= 0:
        return False
    return single * room - int(fitting[:single].sum()) > clients * capacity - int(descending.sum())


def _next_attainable(descending: NDArray[np.int64], bound: int) -> int:
    """Smallest sum of a subset of the loads that is at least ``bound``."""
    if len(descending) * max(bound, 1) > MAX_SUBSET_SUM_WORK:
        return bound
    # Bit s is set when s is a subset sum; sums beyond bound + the largest load cannot be the smallest at or over it.
    limit = bound + int(descending[0])
    mask = (1 << (limit + 1)) - 1
    sums = 1
    want = 1 << bound
    values, counts = np.unique(descending, return_counts=True)
    for load, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left, together = count, 1
        while left > 0:  # as many of them as there are, by 1, 2, 4, ... at a time
            taken = min(left, together)
            sums = (sums | (sums << load * taken)) & mask if load * taken <= limit else sums
            left -= taken
            together *= 2
        if sums & want:
            return bound
    above = sums >> bound
    return bound + (above & -above).bit_length() - 1
