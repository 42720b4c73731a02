"""PuLP's share of the matheuristic: exact models of two and three clients at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline.partition import partition_mip

__all__ = ["MOST_REQUESTS", "polish"]

MOST_REQUESTS = 60
"""Requests in one model; of clients that hold more, the longest stay where they are."""


def polish(
    client_of: NDArray[np.int32],
    loads: NDArray[np.int64],
    clients: int,
    bound: int,
    *,
    mips: int,
    node_limit: int,
    solver: str | None = None,
) -> NDArray[np.int32]:
    """Re-balance the most loaded client with light ones until the bound is met or the models are spent.

    Each model takes the most loaded client and one light client, in turn the lightest, the second lightest and so
    on; when none of those helps, two light clients. It is kept when its clients all end below the largest load.

    Args:
        client_of: (n,) int32 start, left as it is.
        loads: (n,) int64 loads.
        clients: number of clients, at least 2.
        bound: a lower bound on Cmax: where to stop.
        mips: most models to solve.
        node_limit: most branch-and-bound nodes of each.
        solver: see :func:`llmsched_env.offline.solver.solve`.

    Returns:
        (n,) int32, never with a larger Cmax than the start.
    """
    client_of = client_of.copy()
    held = np.zeros(clients, np.int64)
    np.add.at(held, client_of, loads)
    # Kept by client: looking through all requests for each model would make the work quadratic.
    by_client = np.argsort(client_of, kind="stable")
    members_of = np.split(by_client, np.searchsorted(client_of[by_client], np.arange(1, clients)))
    tried = 0
    for _ in range(mips if clients > 1 else 0):
        order = np.argsort(-held, kind="stable")
        cmax = int(held[order[0]])
        if cmax == bound:
            break
        chosen = _choose(order, tried)
        if chosen is None:
            break
        members = np.sort(np.concatenate([members_of[client] for client in chosen]))
        if _rebalance(client_of, loads, held, chosen, members, cmax=cmax, node_limit=node_limit, solver=solver):
            tried = 0
            for client in chosen:
                members_of[client] = members[client_of[members] == client]
        else:
            tried += 1
    return client_of


def _choose(order: NDArray[np.intp], tried: int) -> NDArray[np.intp] | None:
    """The ``tried``-th choice of clients for a model, most loaded first; None when there is no more."""
    light = order[:0:-1]
    pairs = min(len(light), 4)
    if tried < pairs:
        return np.array([order[0], light[tried]])
    first = tried - pairs
    if first + 1 < len(light):
        return np.array([order[0], light[first], light[first + 1]])
    return None


def _rebalance(
    client_of: NDArray[np.int32],
    loads: NDArray[np.int64],
    held: NDArray[np.int64],
    chosen: NDArray[np.intp],
    members: NDArray[np.intp],
    *,
    cmax: int,
    node_limit: int,
    solver: str | None,
) -> bool:
    """Solve one model and keep it in ``client_of`` and ``held`` if it takes the chosen clients below ``cmax``."""
    moving = members[np.argsort(loads[members], kind="stable")[:MOST_REQUESTS]]
    fixed = np.setdiff1d(members, moving)
    # What stays enters as one heavy request for each client, so that the model remains a plain partition.
    heavy = [int(loads[fixed[client_of[fixed] == client]].sum()) for client in chosen]
    sizes = np.concatenate((loads[moving], np.array([h for h in heavy if h > 0], np.int64)))
    lower = max(-(-int(sizes.sum()) // len(chosen)), int(sizes.max()))
    if lower >= cmax:
        return False
    partition = partition_mip(sizes, len(chosen), lower, solver=solver, node_limit=node_limit)
    if partition is None:
        return False
    part = partition[0]
    sums = np.zeros(len(chosen), np.int64)
    np.add.at(sums, part, sizes)
    if sums.max() >= cmax:
        return False
    owners = part[len(moving) :]
    if len(set(owners.tolist())) < len(owners):
        return False  # two heavy requests on one client: what stays would have to move
    # Parts are interchangeable: the one that holds a client's heavy request is that client's.
    keepers = [client for client, h in zip(chosen.tolist(), heavy, strict=True) if h > 0]
    name = dict(zip(owners.tolist(), keepers, strict=True))
    free = [client for client in chosen.tolist() if client not in keepers]
    for index in range(len(chosen)):
        if index not in name:
            name[index] = free.pop(0)
    for index, client in name.items():
        held[client] = sums[index]
        client_of[moving[part[: len(moving)] == index]] = client
    return True
