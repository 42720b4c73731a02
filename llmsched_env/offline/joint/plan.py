"""A plan of order and prefills, and what it comes to when it is played."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import ConfigError
from llmsched_env.offline.bounds import Case

__all__ = ["JointPlan", "played"]


@dataclass(frozen=True, eq=False)
class JointPlan:
    """Who is read in which prefill, and when prefills come: a schedule of a batch.

    One queue holds the requests in the order of ``sequence``. At each prefill idle clients take its head, one each,
    until the next prompt would exceed the cap, as in the simulator with ``queue="shared"``.

    Attributes:
        sequence: (n,) int32: requests in the order in which they are read.
        prefill_of: (n,) int32: the prefill that reads each request, from 0.
        client_of: (n,) int32: the client that serves it; idle clients are taken by index.
        instants: (K,) int64: decodes before each prefill, ascending.
        decodes: D, decodes in all.
        makespan_ns: what the schedule takes.
        bound_ns: no schedule takes less: the least numbers of prefills and decodes (LB2).
        stage: what made it: "exact" where it is proved to be the best, "search", or "greedy".
    """

    sequence: NDArray[np.int32]
    prefill_of: NDArray[np.int32]
    client_of: NDArray[np.int32]
    instants: NDArray[np.int64]
    decodes: int
    makespan_ns: int
    bound_ns: int
    stage: str

    @property
    def prefills(self) -> int:
        """K, prefills in all."""
        return len(self.instants)

    @property
    def gap(self) -> float:
        """Makespan over its bound, less 1: at most so much could be saved."""
        return self.makespan_ns / self.bound_ns - 1.0

    @property
    def proved(self) -> bool:
        """Whether no schedule is shorter: it meets the bound, or the exact model found it."""
        return self.stage == "exact" or self.makespan_ns == self.bound_ns

    @property
    def rank(self) -> NDArray[np.int32]:
        """(n,) each request's place in the sequence."""
        place = np.empty(len(self.sequence), np.int32)
        place[self.sequence] = np.arange(len(self.sequence), dtype=np.int32)
        return place

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JointPlan):
            return NotImplemented
        return np.array_equal(self.sequence, other.sequence) and np.array_equal(self.instants, other.instants)

    __hash__ = None  # type: ignore[assignment]  # equal by its arrays, which have no hash


def played(case: Case, sequence: Any, instants: Any, *, stage: str = "search") -> JointPlan:
    """The schedule that a sequence and instants of prefills come to.

    Where the requests of ``sequence``, cut into groups for the instants in turn, violate neither the clients nor the
    cap, no group is read later than at its instant: with each prefill at least as many have been read as the cut says,
    so none starts later, none ends later, and the idle clients suffice for the next group. A prefill at which nobody
    can be read is left out. When the instants are used up, a prefill comes whenever a client is idle.

    Args:
        case: requests, clients and costs.
        sequence: (n,) each request once.
        instants: decodes before each prefill, ascending.
        stage: what made it.

    Raises:
        ConfigError: a sequence that does not name each request once.
    """
    order = np.asarray(sequence)
    n = len(case.decodes)
    if order.shape != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
        raise ConfigError(f"a sequence of shape {order.shape}: name each of the {n} requests once.")
    prompts, decodes = case.requests.prompt_tokens.tolist(), case.decodes.tolist()
    cap, due = case.cost.prefill_token_cap, np.asarray(instants).tolist()
    idle = list(range(min(case.clients, n)))  # a heap: no client beyond the n-th is ever the first idle one
    running: list[tuple[int, int]] = []  # a heap of (end, client)
    prefill_of, client_of = np.zeros(n, np.int32), np.zeros(n, np.int32)
    used: list[int] = []
    asked, first, now, last = 0, 0, 0, 0
    requests = order.tolist()
    while first < n:
        if asked < len(due):
            now = max(now, due[asked])
        elif not idle:
            now = running[0][0]
        asked += 1
        while running and running[0][0] <= now:
            heapq.heappush(idle, heapq.heappop(running)[1])
        tokens, begun = 0, first
        taken: list[tuple[int, int]] = []
        while idle and first < n and (first == begun or tokens + prompts[requests[first]] <= cap):
            request = requests[first]
            tokens += prompts[request]
            client = heapq.heappop(idle)
            prefill_of[request], client_of[request] = len(used), client
            taken.append((now + decodes[request], client))
            first += 1
        for end, client in taken:
            heapq.heappush(running, (end, client))
            last = max(last, end)
        if first > begun:
            used.append(now)
    for array in (prefill_of, client_of):
        array.setflags(write=False)
    bound_ns = case.makespan_ns(*case.least_counts(None))
    return JointPlan(
        order.astype(np.int32),
        prefill_of,
        client_of,
        np.array(used, np.int64),
        last,
        case.makespan_ns(len(used), last),
        bound_ns,
        stage,
    )
