"""The assignment as a two-stage stochastic program on a sample of scenarios, written with PuLP: for few requests.

First stage: a client for each request, before lengths are known. Second stage: what the lengths turn out to be, and
nothing left to decide. The sample average approximation (Kleywegt, Shapiro, Homem-de-Mello, The sample average
approximation method for stochastic discrete optimization, SIAM J. Optim. 12, 2002) puts a sample in place of their law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import pulp
from numpy.typing import ArrayLike, NDArray

from llmsched_env.errors import ConfigError, SolverError
from llmsched_env.offline.assignment import check_clients
from llmsched_env.offline.solver import add_variable, solve

__all__ = ["SampleAverage", "sample_average", "tail_mean"]


@dataclass(frozen=True, eq=False)
class SampleAverage:
    """What a sample says is best.

    Attributes:
        client_of: (n,) int32, read-only: client of each request.
        objective_decodes: mean of the largest loads of the worst share of the sample.
        proved: whether the solver claims that no assignment is better on the sample, to within the gap.
    """

    client_of: NDArray[np.int32]
    objective_decodes: float
    proved: bool


def tail_mean(values: ArrayLike, tail: float = 1.0) -> float:
    """Mean of the largest ``tail`` of equally likely values: their expectation (1), or conditional value at risk.

    CVaR at level 1 - ``tail``. Where the share is no whole number of values, the last one counts in part.

    Args:
        values: (values,) in any order.
        tail: share, above 0 and at most 1.

    Raises:
        ConfigError: no values, or no such share.
    """
    given = np.asarray(values, np.float64).ravel()
    share = _checked_tail(tail) * len(given)
    if not len(given):
        raise ConfigError("values is empty: give at least one.")
    # 0.1 * 30 is a little more than 3: no value for what is rounding.
    taken = math.ceil(share - 1e-9)
    largest = np.partition(given, len(given) - taken)[len(given) - taken :]
    return float(largest.sum() - (taken - share) * largest.min()) / share


def sample_average(
    scenarios: ArrayLike,
    clients: SupportsIndex,
    *,
    tail: float = 1.0,
    gap_decodes: float = 0.5,
    solver: str | None = None,
    node_limit: int | None = None,
) -> SampleAverage:
    """Assign requests to clients so that the largest load is least in the mean of the sample, or of its worst share.

    With l_si the load of request i in scenario s, of S that are equally likely, and t the share (the second objective,
    for t < 1, is CVaR by Rockafellar and Uryasev, Optimization of conditional value-at-risk, J. Risk 2, 2000)::

        min  sum_s c_s / S    or    h + sum_s u_s / (t * S)
        s.t. sum_j x_ij = 1                     for each request i
             sum_i l_si * x_ij <= c_s           for each scenario s and client j
             u_s >= c_s - h,   u_s >= 0
             x_ij = 0 for j > i   (clients are interchangeable; requests in descending order of mean load)

    Args:
        scenarios: (scenarios, n) loads, whole decode iterations.
        clients: number of clients, at least 1.
        tail: 1 for the mean; 0.1 for CVaR at level 0.9.
        gap_decodes: the solve stops when incumbent and bound are this near.
        solver: see :func:`llmsched_env.offline.solver.solve`.
        node_limit: most branch-and-bound nodes.

    Raises:
        ConfigError: scenarios that are no table of whole loads, no such share, no clients.
        SolverError: no solver, or no solution within the node limit.
    """
    loads, count, tail = _checked_scenarios(scenarios), check_clients(clients), _checked_tail(tail)
    order = np.argsort(-loads.mean(axis=0), kind="stable").tolist()
    problem = pulp.LpProblem("sample_average", pulp.LpMinimize)
    x = {
        i: [add_variable(problem, f"x_{i}_{j}", 0, 1, integer=True) for j in range(min(place + 1, count))]
        for place, i in enumerate(order)
    }
    least = np.maximum(loads.max(axis=1), -(-loads.sum(axis=1) // count)).tolist()
    largest = [add_variable(problem, f"c_{s}", low, None, integer=False) for s, low in enumerate(least)]
    if tail < 1:
        level = add_variable(problem, "h", 0, None, integer=False)
        above = [add_variable(problem, f"u_{s}", 0, None, integer=False) for s in range(len(loads))]
        problem += level + (1 / (tail * len(loads))) * pulp.lpSum(above)
        for c, u in zip(largest, above, strict=True):
            problem += c - level <= u
    else:
        problem += (1 / len(loads)) * pulp.lpSum(largest)
    for row in x.values():
        problem += pulp.lpSum(row) == 1
    for scenario, c in zip(loads.tolist(), largest, strict=True):
        for j in range(count):
            problem += pulp.lpSum(scenario[i] * row[j] for i, row in x.items() if j < len(row)) <= c
    outcome = solve(problem, solver, gap_abs=gap_decodes, node_limit=node_limit)
    client_of = _read(x) if outcome.has_values else None
    if client_of is None:
        raise SolverError(
            f"the sample average of {len(loads)} scenarios, {len(order)} requests and {count} clients ended without a "
            f"solution (node_limit = {node_limit}): raise node_limit, or take fewer."
        )
    held = np.stack([loads[:, client_of == j].sum(axis=1) for j in range(count)])
    client_of.setflags(write=False)
    return SampleAverage(client_of, tail_mean(held.max(axis=0), tail), outcome.proved)


def _read(x: dict[int, list[Any]]) -> NDArray[np.int32] | None:
    client_of = np.empty(len(x), np.int32)
    for i, row in x.items():
        chosen = [j for j, variable in enumerate(row) if (variable.value() or 0.0) > 0.5]
        if len(chosen) != 1:
            return None
        client_of[i] = chosen[0]
    return client_of


def _checked_tail(tail: float) -> float:
    if not 0 < tail <= 1:
        raise ConfigError(f"tail = {tail} is out of range: give a share above 0 and at most 1.")
    return tail


def _checked_scenarios(scenarios: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(scenarios)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
        raise ConfigError(
            f"scenarios of shape {array.shape} and dtype {array.dtype}: give a table of whole loads, one row a "
            "scenario and one column a request."
        )
    if array.min() < 0:
        raise ConfigError(f"scenarios has a load of {array.min()}: loads are at least 0.")
    return array.astype(np.int64)
