"""The naive assignment MIP, written with PuLP: exact on few requests, and the polish step's model on few clients."""

from __future__ import annotations

import numpy as np
import pulp
from numpy.typing import NDArray

from llmsched_env.offline.solver import add_variable, solve

__all__ = ["partition_mip"]


def partition_mip(
    loads: NDArray[np.int64], clients: int, lower: int, *, solver: str | None = None, node_limit: int | None = None
) -> tuple[NDArray[np.int32], bool] | None:
    """Assign loads to clients so that the largest load is least.

    With x_ij = 1 when request i goes to client j, and requests in descending order of load::

        min  c
        s.t. sum_j x_ij = 1                     for each request i
             sum_i load_i * x_ij <= c           for each client j
             c >= lower,   x_ij = 0 for j > i   (clients are interchangeable: request i may name at most i + 1)

    Loads are whole, so a gap below 1 proves the optimum.

    Args:
        loads: (n,) int64, non-negative.
        clients: at least 1.
        lower: a lower bound on the optimum; the solve stops when it is met.
        solver: see :func:`llmsched_env.offline.solver.solve`.
        node_limit: most branch-and-bound nodes.

    Returns:
        ((n,) int32 client of each request, whether it is proved optimal), or None where no solution was found within
        the node limit.

    Raises:
        SolverError: no solver, or it broke down.
    """
    order = np.argsort(-loads, kind="stable")
    weights = loads[order].tolist()
    problem = pulp.LpProblem("assignment", pulp.LpMinimize)
    largest = add_variable(problem, "c", lower, None, integer=False)
    x = [
        [add_variable(problem, f"x_{i}_{j}", 0, 1, integer=True) for j in range(min(i + 1, clients))]
        for i in range(len(weights))
    ]
    problem += 1 * largest
    for row in x:
        problem += pulp.lpSum(row) == 1
    for j in range(clients):
        problem += (
            pulp.lpSum(weight * row[j] for weight, row in zip(weights, x, strict=True) if j < len(row)) <= largest
        )
    outcome = solve(problem, solver, gap_abs=0.99, node_limit=node_limit)
    if not outcome.has_values:
        return None
    client_of = np.full(len(weights), -1, np.int32)
    for position, row in zip(order.tolist(), x, strict=True):
        chosen = [j for j, variable in enumerate(row) if (variable.value() or 0.0) > 0.5]
        if len(chosen) != 1:
            return None
        client_of[position] = chosen[0]
    return client_of, outcome.proved
