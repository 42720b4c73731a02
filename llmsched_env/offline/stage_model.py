"""The paper's full scheduling model as a MIP, written with PuLP: exact, and for small problems only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import pulp
from numpy.typing import ArrayLike

from llmsched_env.cost import CostModel, cost_model
from llmsched_env.errors import ConfigError, SolverError
from llmsched_env.offline.assignment import Assignment, check_clients
from llmsched_env.offline.bounds import Case, client_indices
from llmsched_env.offline.solver import add_variable, solve
from llmsched_env.workload.requests import Requests

__all__ = ["Stage", "StagePlan", "stage_model"]


@dataclass(frozen=True)
class Stage:
    """One prefill and the decodes that follow it.

    Attributes:
        prefilled: indices of the requests in the prefill, ascending.
        decodes: how many decodes follow before the next prefill, or before the end.
    """

    prefilled: tuple[int, ...]
    decodes: int


@dataclass(frozen=True)
class StagePlan:
    """A schedule of least makespan.

    Attributes:
        makespan_ns: its length.
        prefills: K, how many prefills it has.
        decodes: D, how many decodes it has.
        stages: what happens, in order.
        proved: whether the solver proved that no schedule is shorter.
    """

    makespan_ns: int
    prefills: int
    decodes: int
    stages: tuple[Stage, ...]
    proved: bool


def stage_model(
    requests: Requests,
    clients: SupportsIndex,
    cost: CostModel | str,
    *,
    queues: Assignment | ArrayLike | None = None,
    solver: str | None = None,
    node_limit: int | None = None,
) -> StagePlan:
    """The schedule of least makespan under exclusive batching.

    Stage k = 1..n is one prefill and d_k decodes. Binaries s_ik and e_ik: request i starts, finishes in stage k; y_k:
    stage k exists; w_ik: decodes of i in stage k; a_ik = sum_{h<=k} s_ih - sum_{h<k} e_ih: i holds a client in it::

        min  sum_k alpha_d * d_k + alpha_p * y_k          (all other times are constant: see bounds.py)
        s.t. sum_k s_ik = sum_k e_ik = 1,  sum_k w_ik = l_i
             0 <= a_ik,  e_ik <= a_ik,  w_ik <= l_i * a_ik,  w_ik <= d_k
             sum_i a_ik <= J,  s_ik <= y_k <= y_{k-1},  d_k <= max l * y_k
             sum_i P_i * s_ik <= cap                      (a prompt above the cap is alone in its stage)
             sum_{i in queue j} a_ik <= 1                 (with queues)

    n stages suffice, since each prefill takes a request. No index of the client is needed where any request may use
    any: intervals of which at most J overlap can be dealt to J clients. s and e fix every d_k by a greedy rule, so the
    result is exact integers whatever the solver's tolerance. Twelve requests on three clients take seconds.

    Args:
        requests: a dozen at most, all released at time 0.
        clients: number of clients.
        cost: cost model or preset; affine, a context term allowed (it is the same for all schedules).
        queues: an assignment, or (n,) client of each request, that binds; None: any request on any client.
        solver: ``"highs"``, ``"cbc"`` or None.
        node_limit: most branch-and-bound nodes; None: until it is proved.

    Raises:
        ConfigError: prefill levels or ``first_decode_ns``; release times; queues that do not fit.
        SolverError: no solver, or no solution within the node limit.
    """
    count, model = check_clients(clients), cost_model(cost)
    if model.prefill_levels:
        raise ConfigError(f"cost model {model.name!r} has prefill levels: the stage model needs an affine prefill.")
    if model.first_decode_ns:
        raise ConfigError(
            f"cost model {model.name!r} has first_decode_ns = {model.first_decode_ns}: the stage model "
            "takes decodes to last the same whatever ran before. Set it to 0."
        )
    if requests.release_ns.any():
        raise ConfigError("the stage model knows no release times: give requests that are all released at 0.")
    case = Case(requests, count, model)
    least_prefills, least_decodes = case.least_counts(queues)
    n = len(requests)
    problem, s, e = _formulate(
        requests, count, model, queues, least_prefills=least_prefills, least_decodes=least_decodes
    )
    outcome = solve(problem, solver, gap_abs=0.99, node_limit=node_limit)
    start, finish = _stage_of(s), _stage_of(e)
    if not outcome.has_values or start is None or finish is None:
        raise SolverError(
            f"the stage model ({n} requests, {count} clients) ended without a schedule (node_limit = {node_limit}): "
            "raise node_limit."
        )
    stages = _stages(start, finish, requests.decodes.tolist())
    decodes = sum(stage.decodes for stage in stages)
    return StagePlan(case.makespan_ns(len(stages), decodes), len(stages), decodes, stages, outcome.proved)


def _formulate(
    requests: Requests,
    clients: int,
    cost: CostModel,
    queues: Assignment | ArrayLike | None,
    *,
    least_prefills: int,
    least_decodes: int,
) -> tuple[Any, list[list[Any]], list[list[Any]]]:
    n = len(requests)
    need = requests.decodes.tolist()
    tokens = requests.prompt_tokens.tolist()
    stages = range(n)
    problem = pulp.LpProblem("stages", pulp.LpMinimize)

    def grid(name: str, *, integer: bool) -> list[list[Any]]:
        high = [1] * n if integer else need
        return [
            [add_variable(problem, f"{name}_{i}_{k}", 0, high[i], integer=integer) for k in stages] for i in range(n)
        ]

    s, e, w = grid("s", integer=True), grid("e", integer=True), grid("w", integer=False)
    y = [add_variable(problem, f"y_{k}", 0, 1, integer=True) for k in stages]
    d = [add_variable(problem, f"d_{k}", 0, max(need), integer=False) for k in stages]
    # Divided by their common divisor, the prices are whole and small, so that a gap below 1 proves the optimum.
    unit = math.gcd(cost.alpha_prefill_ns, cost.alpha_decode_ns) or 1
    problem += (cost.alpha_decode_ns // unit) * pulp.lpSum(d) + (cost.alpha_prefill_ns // unit) * pulp.lpSum(y)
    problem += pulp.lpSum(y) >= least_prefills
    problem += pulp.lpSum(d) >= least_decodes
    a = [[pulp.lpSum(s[i][: k + 1]) - pulp.lpSum(e[i][:k]) for k in stages] for i in range(n)]
    for i in range(n):
        problem += pulp.lpSum(s[i]) == 1
        problem += pulp.lpSum(e[i]) == 1
        problem += pulp.lpSum(w[i]) == need[i]
        for k in stages:
            problem += a[i][k] >= 0
            problem += e[i][k] - a[i][k] <= 0
            problem += w[i][k] - need[i] * a[i][k] <= 0
            problem += w[i][k] - d[k] <= 0
            problem += s[i][k] - y[k] <= 0
    cap = cost.prefill_token_cap
    groups = _groups(queues, n, clients)
    for k in stages:
        problem += pulp.lpSum(a[i][k] for i in range(n)) <= clients
        problem += d[k] - max(need) * y[k] <= 0
        if k:
            problem += y[k] - y[k - 1] <= 0
        problem += pulp.lpSum(tokens[i] * s[i][k] for i in range(n) if tokens[i] <= cap) <= cap
        for i in range(n):
            if tokens[i] > cap:
                problem += pulp.lpSum(s[h][k] for h in range(n)) + (clients - 1) * s[i][k] <= clients
        for group in groups:
            problem += pulp.lpSum(a[i][k] for i in group) <= 1
    return problem, s, e


def _groups(queues: Assignment | ArrayLike | None, n: int, clients: int) -> list[list[int]]:
    if queues is None:
        return []
    client_of = client_indices(queues, n, clients)
    return [np.flatnonzero(client_of == client).tolist() for client in np.unique(client_of)]


def _stage_of(grid: list[list[Any]]) -> list[int] | None:
    """The one stage in which each request's binary is set, or None where the values are no solution."""
    out = []
    for row in grid:
        chosen = [k for k, variable in enumerate(row) if (variable.value() or 0.0) > 0.5]
        if len(chosen) != 1:
            return None
        out.append(chosen[0])
    return out


def _stages(start: list[int], finish: list[int], need: list[int]) -> tuple[Stage, ...]:
    """Fewest decodes such that each request gets its own between start and finish.

    By rising finish, what a request still lacks is added in its last stage, where later requests profit most.
    """
    decodes = [0] * (max(finish) + 1)
    for i in sorted(range(len(need)), key=lambda i: finish[i]):
        decodes[finish[i]] += max(0, need[i] - sum(decodes[start[i] : finish[i] + 1]))
    stages: list[Stage] = []
    for k, count in enumerate(decodes):
        prefilled = tuple(i for i in range(len(need)) if start[i] == k)
        if prefilled:
            stages.append(Stage(prefilled, count))
        elif count:
            stages[-1] = Stage(stages[-1].prefilled, stages[-1].decodes + count)
    return tuple(stages)
