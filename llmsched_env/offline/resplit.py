"""Local search on P||Cmax: re-split two clients' requests, with plateau moves, until a target load is met.

A move takes a client above the target and another one, and looks for a split of their requests that leaves the least
excess over the target; among equally good splits it takes the first in a random order, so that a move which gains
nothing still changes both clients (a plateau move). Where many loads are equal, as with outputs cut at a cap, search
without plateau moves gets stuck a few iterations above the bound.

Splits are enumerated in Gray-code order, one addition each, from a random start. A pair with more than
:data:`ENUMERATED` requests leaves a random rest of them where they are.

Only moves are counted, never time, and the random numbers are the function's own (xorshift32; Marsaglia, Xorshift RNGs,
J. Stat. Softw. 8(14), 2003): the same input gives the same assignment on any machine, compiled or not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline.kernels.resplit import Resplit

__all__ = ["ENUMERATED", "resplit"]

ENUMERATED = 14
"""Most requests whose splits one move enumerates: 2**14 additions are some 20 microseconds."""


def resplit(
    loads: NDArray[np.int64], client_of: NDArray[np.int32], clients: int, target: int, moves: int, seed: int
) -> tuple[int, int]:
    """Search for an assignment whose largest load is at most ``target``.

    Args:
        loads: (n,) int64 non-negative loads.
        client_of: (n,) int32 start; overwritten with the assignment of the least largest load that was met.
        clients: number of clients, at least 2.
        target: largest load wanted, at least the largest single load.
        moves: most pairs to re-split.
        seed: any integer; equal seeds give equal results.

    Returns:
        (largest load of ``client_of``, moves spent).
    """
    # xorshift32 needs a state that is not 0.
    state = (seed * 2654435761 + 0x9E3779B9) & 0xFFFFFFFF or 1
    best_of = client_of.copy()
    search = Resplit(loads.copy(), best_of, clients, target, ENUMERATED, state)
    largest, spent = search.run(moves)
    client_of[:] = best_of
    return largest, spent
