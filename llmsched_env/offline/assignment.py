"""Minimizing Makespan Bin Packing: which client serves which request, with a certificate."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from llmsched_env.errors import ConfigError, SolverError, UnknownNameError
from llmsched_env.offline.cmax_bounds import cmax_bound
from llmsched_env.offline.greedy import lpt, round_robin
from llmsched_env.offline.partition import partition_mip
from llmsched_env.offline.polish import polish
from llmsched_env.offline.resplit import resplit
from llmsched_env.workload.requests import Requests

__all__ = ["METHODS", "STAGES", "Assignment", "Budget", "assign", "check_clients", "naive_model"]

METHODS = ("mip", "lpt", "round_robin")
"""Methods of :func:`assign`."""

STAGES = ("open", "round_robin", "lpt", "resplit", "polish", "exact")
"""What may close an assignment: in this order their index is the stage code of files."""


MOVES_PER_REQUEST = 400
"""Where the search has not met the bound of a small problem in so many moves, it is the bound that is too low."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """A client for each request, and how good that is for certain.

    Attributes:
        client_of: (n,) int32, read-only: the client whose queue holds the request.
        num_clients: number of clients.
        method: the method that was asked for.
        makespan_decodes: Cmax, the largest sum of loads on a client, in decode iterations.
        bound_decodes: no assignment has a smaller largest load than this.
        stage: what made the two equal (one of :data:`STAGES`), or ``"open"`` where they are not.
    """

    client_of: NDArray[np.int32]
    num_clients: int
    method: str
    makespan_decodes: int
    bound_decodes: int
    stage: str

    @property
    def proved(self) -> bool:
        """Whether Cmax is known to be the least possible."""
        return self.makespan_decodes == self.bound_decodes

    @property
    def gap(self) -> float:
        """Cmax over its bound, less 1: 0.0 where it is proved."""
        return 0.0 if self.proved else self.makespan_decodes / self.bound_decodes - 1.0

    def queues(self) -> list[NDArray[np.int64]]:
        """Request indices of each client, ascending (arrival order): ``num_clients`` arrays."""
        order = np.argsort(self.client_of, kind="stable")
        return np.split(order, np.searchsorted(self.client_of[order], np.arange(1, self.num_clients)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Assignment):
            return NotImplemented
        return np.array_equal(self.client_of, other.client_of) and self._certificate() == other._certificate()

    __hash__ = None  # type: ignore[assignment]

    def _certificate(self) -> tuple[Any, ...]:
        return self.num_clients, self.method, self.makespan_decodes, self.bound_decodes, self.stage


@dataclass(frozen=True)
class Budget:
    """How much work ``method="mip"`` may do before it settles for a gap. Counts, never seconds: results repeat.

    Attributes:
        resplit_moves: pairs of clients re-split in one search; few requests get at most :data:`MOVES_PER_REQUEST` each.
        resplit_starts: searches for the bound, each with random numbers of its own.
        polish_mips: PuLP models of a few clients.
        polish_nodes: branch-and-bound nodes in each of them.
        exact_binaries: the whole problem goes to the solver where requests times clients is at most this.
        exact_nodes: branch-and-bound nodes of that model.
    """

    resplit_moves: int = 250_000
    resplit_starts: int = 4
    polish_mips: int = 24
    polish_nodes: int = 200
    exact_binaries: int = 60
    exact_nodes: int = 5_000


def check_clients(clients: SupportsIndex) -> int:
    """``clients`` as an int.

    Raises:
        ConfigError: not a whole number, or below 1.
    """
    try:
        count = operator.index(clients)
    except TypeError:
        raise ConfigError(f"clients = {clients!r} is not a whole number: pass an int of at least 1.") from None
    if isinstance(clients, bool) or not 1 <= count < 2**31:
        raise ConfigError(f"clients = {clients!r} is out of range: pass an int of at least 1.")
    return count


def check_seed(seed: SupportsIndex) -> int:
    """``seed`` as an int.

    Raises:
        ConfigError: not a whole number.
    """
    try:
        return operator.index(seed)
    except TypeError:
        raise ConfigError(f"seed = {seed!r} is not a whole number: pass an int.") from None


def check_loads(requests: Requests, loads: ArrayLike | None) -> NDArray[np.int64]:
    """(n,) int64 loads: those given, or the requests' decodes.

    Raises:
        ConfigError: not one whole, non-negative number for each request.
    """
    if loads is None:
        return requests.decodes.astype(np.int64)
    array = np.asarray(loads)
    if array.shape != (len(requests),):
        raise ConfigError(f"loads has shape {array.shape}: give one load for each of the {len(requests)} requests.")
    if array.dtype.kind not in "iu":
        raise ConfigError(f"loads has dtype {array.dtype}: give whole decode iterations (round them first).")
    if array.min() < 0 or array.max() > 2**31:
        bad = int(np.flatnonzero((array < 0) | (array > 2**31))[0])
        raise ConfigError(f"loads[{bad}] = {array[bad]} is out of range: loads lie in [0, 2**31] decode iterations.")
    return array.astype(np.int64)


def assign(
    requests: Requests,
    clients: SupportsIndex,
    method: Literal["mip", "lpt", "round_robin"] | str = "mip",
    *,
    loads: ArrayLike | None = None,
    progress: bool = False,
    solver: str | None = None,
    seed: SupportsIndex = 0,
    budget: Budget | None = None,
) -> Assignment:
    """Assign requests to clients so that the most loaded one has as little to do as possible (P||Cmax).

    ``"mip"`` is a matheuristic with a certificate. It computes a lower bound and stops at the first stage that meets
    it: LPT; compiled re-splits of pairs of clients with plateau moves; PuLP models of two and three clients, most
    loaded and least; and on few requests the whole assignment MIP, which can also lift the bound. What is left open
    is said (``gap``, ``stage="open"``).

    Cmax is a surrogate of the time that the schedule takes, and says nothing about prefills: see docs/offline.md.

    Args:
        requests: the requests.
        clients: number of clients, at least 1.
        method: ``"mip"``, ``"lpt"`` (longest first, a millisecond) or ``"round_robin"`` (knows no lengths).
        loads: (n,) whole decode iterations to balance, such as an estimate; None: the true ``requests.decodes``.
        progress: show a line on stderr.
        solver: ``"highs"`` or ``"cbc"``; None takes the first that is there.
        seed: of the search's random numbers. Equal arguments give equal assignments.
        budget: how much work to do; None: :class:`Budget`'s defaults.

    Raises:
        ConfigError: ``clients`` below 1; loads that are not one whole number for each request; a fractional seed;
            ``method="joint"``, which is no assignment alone.
        UnknownNameError: no such method or solver.
        SolverError: a MIP was needed and no solver runs here.
    """
    count = check_clients(clients)
    if method == "joint":
        raise ConfigError(
            "method = 'joint': a joint plan also says when to prefill, and its queues are worth little without that. "
            "Call llmsched_env.offline.joint.joint_plan(requests, clients, cost), or set queue='shared', order='joint'."
        )
    if method not in METHODS:
        raise UnknownNameError("assignment method", method, METHODS)
    work, random = check_loads(requests, loads), check_seed(seed)
    if method == "round_robin":
        return _finish(
            round_robin(len(work), count),
            work,
            count,
            method=method,
            bound=cmax_bound(work, count),
            stage="round_robin",
        )
    start = lpt(work, count)
    bound = cmax_bound(work, count)
    if method == "lpt" or _cmax(start, work, count) == bound:
        return _finish(start, work, count, method=method, bound=bound, stage="lpt")
    with tqdm(total=3, desc=f"assign {len(work)} to {count}", disable=not progress, leave=False) as line:
        return _improve(start, work, count, bound, solver=solver, seed=random, budget=budget or Budget(), line=line)


def _improve(
    client_of: NDArray[np.int32],
    loads: NDArray[np.int64],
    clients: int,
    bound: int,
    *,
    solver: str | None,
    seed: int,
    budget: Budget,
    line: Any,
) -> Assignment:
    line.set_postfix_str(f"lpt {_cmax(client_of, loads, clients)}, bound {bound}")
    client_of, cmax = _search(client_of, loads, clients, bound, seed=seed, budget=budget)
    stage = "resplit"
    line.update()
    if cmax > bound and budget.polish_mips > 0:
        line.set_postfix_str(f"resplit {cmax}, bound {bound}")
        client_of = polish(
            client_of, loads, clients, bound, mips=budget.polish_mips, node_limit=budget.polish_nodes, solver=solver
        )
        cmax, stage = _cmax(client_of, loads, clients), "polish"
    line.update()
    if cmax > bound and len(loads) * clients <= budget.exact_binaries:
        line.set_postfix_str(f"polish {cmax}, bound {bound}")
        partition = partition_mip(loads, clients, bound, solver=solver, node_limit=budget.exact_nodes)
        if partition is not None and _cmax(partition[0], loads, clients) <= cmax:
            client_of, stage = partition[0], "exact"
            cmax = _cmax(client_of, loads, clients)
            bound = cmax if partition[1] else bound
    line.update()
    return _finish(client_of, loads, clients, method="mip", bound=bound, stage=stage)


def _search(
    client_of: NDArray[np.int32], loads: NDArray[np.int64], clients: int, bound: int, *, seed: int, budget: Budget
) -> tuple[NDArray[np.int32], int]:
    """Re-split for the bound, then, where it is not met, for targets between the bound and the best found."""
    best = client_of.copy()
    best_cmax = _cmax(best, loads, clients)
    moves = min(budget.resplit_moves, MOVES_PER_REQUEST * len(loads))
    if clients == 1 or moves < 1:
        return best, best_cmax

    def attempt(target: int, start: NDArray[np.int32], seed: int) -> None:
        nonlocal best, best_cmax
        trial = start.copy()
        cmax, _ = resplit(loads, trial, clients, target, moves, seed & 0xFFFFFFFF)
        if cmax < best_cmax:
            best, best_cmax = trial, int(cmax)

    for restart in range(budget.resplit_starts):
        attempt(bound, client_of, seed + restart)
        if best_cmax == bound:
            return best, best_cmax
    low = bound
    while best_cmax - low > 1:
        target = (low + best_cmax) // 2
        attempt(target, best, seed)
        if best_cmax > target:
            low = target
    return best, best_cmax


def naive_model(
    requests: Requests,
    clients: SupportsIndex,
    *,
    loads: ArrayLike | None = None,
    solver: str | None = None,
    node_limit: int | None = None,
) -> Assignment:
    """The paper's assignment MIP as it stands, one binary for each request and client: a reference for small problems.

    At the paper's size (1319 requests, 200 clients: 263,800 binaries) neither HiGHS nor CBC leaves the root node
    within a minute; :func:`assign` is what to use there.

    Args:
        requests: the requests, a few dozen at most.
        clients: number of clients.
        loads: (n,) loads to balance; None: ``requests.decodes``.
        solver: ``"highs"``, ``"cbc"`` or None.
        node_limit: most branch-and-bound nodes; None: until it is proved.

    Raises:
        ConfigError: as :func:`assign`.
        SolverError: no solver, or no solution within the node limit.
    """
    count = check_clients(clients)
    work = check_loads(requests, loads)
    bound = cmax_bound(work, count)
    partition = partition_mip(work, count, bound, solver=solver, node_limit=node_limit)
    if partition is None:
        raise SolverError(
            f"the naive model ({len(work)} requests, {count} clients) ended without a solution (node_limit = "
            f"{node_limit}): raise node_limit, or use assign(method='mip')."
        )
    client_of, proved = partition
    if proved:
        bound = _cmax(client_of, work, count)
    return _finish(client_of, work, count, method="naive", bound=bound, stage="exact")


def _cmax(client_of: NDArray[np.int32], loads: NDArray[np.int64], clients: int) -> int:
    held = np.zeros(clients, np.int64)
    np.add.at(held, client_of, loads)
    return int(held.max())


def _finish(
    client_of: NDArray[np.int32], loads: NDArray[np.int64], clients: int, *, method: str, bound: int, stage: str
) -> Assignment:
    client_of.setflags(write=False)
    cmax = _cmax(client_of, loads, clients)
    return Assignment(client_of, clients, method, cmax, bound, stage if cmax == bound else "open")
