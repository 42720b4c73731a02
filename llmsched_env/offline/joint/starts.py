"""Schedules that a search for a joint plan starts from: longest first, with a prefill once so many clients are idle."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline.assignment import Budget, assign
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint.plan import JointPlan, played

__all__ = ["greedy_plans", "when_idle"]

BALANCED_REQUESTS = 200
"""Up to so many requests balanced queues are a start, too: with more they are never the better one."""

BALANCING = Budget(polish_mips=0, exact_binaries=0)
"""Of these queues: no solver is asked."""


def greedy_plans(case: Case) -> list[JointPlan]:
    """Longest first, with a prefill once so many clients are idle, the best such number: of each kind of queues."""
    order = np.argsort(-case.decodes, kind="stable")
    few = min(case.clients, len(order))
    numbers = sorted({max(1, round(few * share)) for share in np.geomspace(1 / few, 1.0, 24)})
    kinds = [[(order, when_idle(case, order, idle)) for idle in numbers]]
    if case.clients < len(order) <= BALANCED_REQUESTS:
        client_of = assign(case.requests, case.clients, budget=BALANCING).client_of
        kinds.append([_from_own_queues(case, order, client_of, idle) for idle in numbers])
    plans = []
    for kind in kinds:
        different = {(*sequence.tolist(), *instants): (sequence, instants) for sequence, instants in kind}
        made = [played(case, sequence, instants, stage="greedy") for sequence, instants in different.values()]
        plans.append(min(made, key=lambda plan: plan.makespan_ns))
    return plans


def when_idle(case: Case, order: NDArray[np.int64], needed: int) -> list[int]:
    """Instants at which ``needed`` clients are idle, or as many as there are requests for."""
    prompts, decodes = case.requests.prompt_tokens.tolist(), case.decodes.tolist()
    ends: list[int] = []
    idle, now, first, n = case.clients, 0, 0, len(order)
    instants = []
    while first < n:
        while ends and (idle < min(needed, n - first) or ends[0] <= now):
            now = max(now, heapq.heappop(ends))
            idle += 1
        tokens, begun = 0, first
        while idle and first < n and (first == begun or tokens + prompts[order[first]] <= case.cost.prefill_token_cap):
            tokens += prompts[order[first]]
            heapq.heappush(ends, now + decodes[order[first]])
            idle -= 1
            first += 1
        instants.append(now)
    return instants


def _from_own_queues(
    case: Case, order: NDArray[np.int64], client_of: NDArray[np.int32], needed: int
) -> tuple[NDArray[np.int64], list[int]]:
    """Who is read and when, each client from a queue of its own: once ``needed`` of those that have one are idle."""
    prompts, decodes = case.requests.prompt_tokens.tolist(), case.decodes.tolist()
    queues: dict[int, list[int]] = {}
    for request in order[::-1].tolist():
        queues.setdefault(int(client_of[request]), []).append(request)
    ready, running = [*queues], list[tuple[int, int]]()
    sequence: list[int] = []
    instants: list[int] = []
    now = 0
    while ready or running:
        served = sum(1 for queue in queues.values() if queue)
        while running and (len(ready) < min(needed, served) or running[0][0] <= now):
            end, client = heapq.heappop(running)
            now = max(now, end)
            if queues[client]:
                ready.append(client)
        if not ready:
            break
        ready.sort(key=lambda client: (-decodes[queues[client][-1]], client))
        tokens, taken = 0, 0
        for client in ready:
            request = queues[client][-1]
            if taken and tokens + prompts[request] > case.cost.prefill_token_cap:
                break
            tokens += prompts[request]
            sequence.append(queues[client].pop())
            heapq.heappush(running, (now + decodes[request], client))
            taken += 1
        del ready[:taken]
        instants.append(now)
    return np.array(sequence), instants
