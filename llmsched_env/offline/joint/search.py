"""The search for a joint plan: annealing over starts and instants, then weights that grow on what stays violated."""

from __future__ import annotations

import heapq
import math
import operator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import CostModel, cost_model
from llmsched_env.errors import ConfigError, SolverError
from llmsched_env.offline.assignment import Budget, assign, check_seed
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint.plan import JointPlan, played
from llmsched_env.offline.kernels.instants import Instants
from llmsched_env.offline.stage_model import stage_model
from llmsched_env.progress import Progress
from llmsched_env.workload.requests import Requests

__all__ = ["Effort", "check_batch", "joint_plan", "temperatures"]

FIRST_SHARE = 0.4
NEXT_SHARE = 0.93
SHARE_GROWTH = 1.25
"""Of the best plan's gap: what the first try aims at, what one aims at after a success, what a failure adds."""

MORE_PREFILLS = (0.25, 0.15, 0.35, 0.5, 0.1, 0.75, 0.2, 0.3)
"""Prefills beyond the least number, by try, as a share of those that the greedy plan has beyond it."""

STEPS = (-1, 1, -2, 2, 0, -3, 3, -4)
"""From the number of prefills of the best plan, once a try has found one."""

ANNEALED, REPAIRED = (1.0, 0.05), (0.3, 0.03)
"""First and last temperature, in clients held too many."""

SHIFTS = 30
"""Of a thousand moves, those of an instant."""

STAGES = 64
EXACT_REQUESTS = 10
BALANCED_REQUESTS = 200
"""Up to so many requests balanced queues are a start, too: with more they are never the better one."""

BALANCING = Budget(polish_mips=0, exact_binaries=0)
"""Of these queues: no solver is asked."""

EXACT_NODES = 20_000

MOST_DECODES = 2**24
"""Of a schedule that is searched for: there is a table of them, of four bytes each."""

MOST_MOVES = 2**62


@dataclass(frozen=True)
class Effort:
    """How much work a plan may take. Counts, never seconds.

    Attributes:
        tries: numbers of prefills and decodes that are tried.
        anneal_moves: moves for each request under constant weights, once a try.
        repair_moves: most moves for each request under growing weights, once a try, and again for each decode less
            that is tried, the start's too.
        goal: gap to the bound at which the search ends, at least 0.

    Raises:
        ConfigError: a count that is negative or not whole; a goal that is negative or no number.
    """

    tries: int = 8
    anneal_moves: int = 4_000
    repair_moves: int = 30_000
    goal: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tries", "anneal_moves", "repair_moves"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        try:
            goal = float(self.goal)
        except (TypeError, ValueError):
            goal = math.nan
        if isinstance(self.goal, str) or not 0 <= goal < math.inf:
            raise ConfigError(f"goal = {self.goal!r} of an effort: give a gap of at least 0, as 0.002 for 0.2 %.")
        object.__setattr__(self, "goal", goal)


def _whole(name: str, value: Any) -> int:
    try:
        count = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = -1
    if count < 0:
        raise ConfigError(f"{name} = {value!r} of an effort: give a whole number of at least 0.")
    return count


def joint_plan(
    requests: Requests,
    clients: SupportsIndex,
    cost: CostModel | str = "llama-65b-paper",
    *,
    effort: Effort | None = None,
    seed: SupportsIndex = 0,
    progress: bool = False,
) -> JointPlan:
    """Plan who is read in which prefill, and when prefills come, for the least makespan of a batch.

    A schedule is its prefills' instants, in decodes, and the prefill that each request starts in. Between two prefills
    no more requests may hold clients than there are, and no prefill may read more than the cap. With K prefills and D
    decodes the makespan is a constant plus alpha_p K + alpha_d D (docs/model.md), so a try fixes both and looks for a
    schedule that violates nothing: first simulated annealing over starts and instants, then the same moves with
    weights that grow on what stays violated (breakout; Morris, 'The breakout method for escaping from local minima',
    AAAI 1993), then one decode less, as long as that goes. Up to ten requests are planned exactly (`stage_model`)
    where its nodes suffice. The search starts from the best of longest-first schedules that wait for so many idle
    clients; up to 200 requests also from the best of those on balanced queues of the clients' own.

    Clients need no names: intervals of which no more than J overlap can be dealt to J clients.

    Args:
        requests: the batch, all released at 0, with prompts within the cap.
        clients: J, at least 1.
        cost: cost model or preset, affine.
        effort: how much work to do; ``None``: :class:`Effort`'s defaults.
        seed: of the random numbers: any whole number. Equal arguments give equal plans.
        progress: show a line on stderr.

    Raises:
        ConfigError: ``clients`` below 1; release times; a cost model that is not affine; a prompt above the cap; more
            decodes than the search has a table for; a fractional seed.
        SolverError: no MIP solver, for few requests.
    """
    model, work, random = cost_model(cost), effort or Effort(), check_seed(seed)
    case = check_batch(requests, clients, model)
    starts = _starts(case)
    best = min(starts, key=lambda plan: plan.makespan_ns)
    if best.makespan_ns == best.bound_ns:
        return best
    if len(requests) <= EXACT_REQUESTS:
        exact = _exact(case)
        if exact is not None and exact.makespan_ns <= best.makespan_ns:
            return exact
    return _Search(case, work, random, starts).run(progress)


def check_batch(requests: Requests, clients: SupportsIndex, model: CostModel) -> Case:
    """What is to be planned, if it can be.

    Raises:
        ConfigError: as :func:`joint_plan`.
    """
    if not model.is_affine:
        raise ConfigError(
            f"cost model {model.name!r} is not affine: a joint plan counts prefills and decodes, which decide "
            "the makespan only where costs are affine."
        )
    if int(requests.release_ns.max()) > 0:
        raise ConfigError("a joint plan knows no release times: give requests that are all released at 0.")
    longest = int(requests.prompt_tokens.max())
    if longest > model.prefill_token_cap:
        raise ConfigError(
            f"a prompt of {longest} tokens exceeds the cap of {model.prefill_token_cap} tokens a prefill: raise "
            "prefill_token_cap, or leave it out."
        )
    case = Case.of(requests, clients, model)
    _, least = case.least_counts(None)
    if least > MOST_DECODES:
        raise ConfigError(
            f"a batch of at least {least:,} decodes: a joint plan has at most {MOST_DECODES:,}. Take more clients, or "
            "order='longest_first'."
        )
    return case


def _starts(case: Case) -> list[JointPlan]:
    """Longest first, with a prefill once so many clients are idle, the best such number: of each kind of queues."""
    order = np.argsort(-case.decodes, kind="stable")
    few = min(case.clients, len(order))
    numbers = sorted({max(1, round(few * share)) for share in np.geomspace(1 / few, 1.0, 24)})
    kinds = [[(order, _when_idle(case, order, idle)) for idle in numbers]]
    if case.clients < len(order) <= BALANCED_REQUESTS:
        client_of = assign(case.requests, case.clients, budget=BALANCING).client_of
        kinds.append([_from_own_queues(case, order, client_of, idle) for idle in numbers])
    plans = []
    for kind in kinds:
        different = {(*sequence.tolist(), *instants): (sequence, instants) for sequence, instants in kind}
        made = [played(case, sequence, instants, stage="greedy") for sequence, instants in different.values()]
        plans.append(min(made, key=lambda plan: plan.makespan_ns))
    return plans


def _when_idle(case: Case, order: NDArray[np.int64], needed: int) -> list[int]:
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


def _exact(case: Case) -> JointPlan | None:
    """The stage model's plan, where it is proved."""
    try:
        found = stage_model(case.requests, case.clients, case.cost, node_limit=EXACT_NODES)
    except SolverError:
        return None
    if not found.proved:
        return None
    instants = np.cumsum([0, *(stage.decodes for stage in found.stages[:-1])])
    sequence = [request for stage in found.stages for request in stage.prefilled]
    return played(case, sequence, instants, stage="exact")


class _Search:
    """Tries for one batch."""

    def __init__(self, case: Case, effort: Effort, seed: int, starts: list[JointPlan]) -> None:
        self.case, self.effort, self.starts = case, effort, starts
        self.best = min(starts, key=lambda plan: plan.makespan_ns)
        self.rng = np.random.default_rng(seed % 2**128)
        self.decodes, self.prompts = case.decodes.astype(np.int32), case.requests.prompt_tokens
        self.least_prefills, self.least_decodes = case.least_counts(None)
        # Each decode emits a token, so none has more than all tokens; more than the table holds are not looked for.
        self.most_decodes = min(MOST_DECODES, max(self.least_decodes, int(case.decodes.sum())))
        self.greedy_more = self.best.prefills - self.least_prefills
        self.met = False  # whether a try has found a plan

    def run(self, progress: bool) -> JointPlan:
        """All tries: each aims at a share of the best plan's gap, a smaller one where the last one met its aim."""
        aim = FIRST_SHARE * self.best.gap
        with Progress(total=self.effort.tries, desc="joint plan", unit="attempt", hidden=not progress) as line:
            if self.effort.tries:
                self._shorten()
            share = min(NEXT_SHARE, aim / self.best.gap) if self.best.gap else 0.0
            for number in range(self.effort.tries):
                if self.best.gap <= self.effort.goal:
                    break
                met = self._try(number, min(share, 1.0))
                share = NEXT_SHARE if met else min(1.0, SHARE_GROWTH * share)
                line.set_postfix_str(f"gap {self.best.gap:.3%}")
                line.update()
        return self.best

    def _try(self, number: int, share: float) -> bool:
        """A schedule with so much of the best plan's gap, then with fewer decodes; whether there is one."""
        gap_ns = int(share * (self.best.makespan_ns - self.best.bound_ns)) - 1
        if gap_ns < 0:
            return False
        cost = self.case.cost
        most = gap_ns // max(1, cost.alpha_prefill_ns)
        if self.met:  # near what worked
            more = max(0, self.best.prefills - self.least_prefills + STEPS[number % len(STEPS)])
        else:
            more = round(MORE_PREFILLS[number % len(MORE_PREFILLS)] * (self.greedy_more or most))
        prefills = self.least_prefills + min(more, most)
        gap_ns -= (prefills - self.least_prefills) * cost.alpha_prefill_ns
        horizon = min(self.least_decodes + gap_ns // max(1, cost.alpha_decode_ns), self.most_decodes)
        if not self._met(self._annealed(prefills, horizon)):
            return False
        self.met = True
        self._squeeze()
        return True

    def _shorten(self) -> None:
        """Squeeze each start; the shortest that comes of it is the best plan."""
        squeezed = []
        for start in self.starts:
            self.best = start
            self._squeeze()
            squeezed.append(self.best)
        self.best = min(squeezed, key=lambda plan: plan.makespan_ns)

    def _squeeze(self) -> None:
        """The best plan with one decode less, as long as that goes."""
        while self.least_decodes < self.best.decodes <= self.most_decodes:
            horizon = self.best.decodes - 1
            instants = np.minimum(self.best.instants, horizon).astype(np.int32)
            if not self._met(self._search(instants, self.best.prefill_of, horizon)):
                return

    def _annealed(self, prefills: int, horizon: int) -> Instants:
        """Instants for so many prefills in so many decodes, and starts that violate little."""
        case = self.case
        at_once = int(self.prompts.mean() * min(case.clients, len(self.prompts)))
        first = min(prefills, -(-at_once // case.cost.prefill_token_cap))
        early, late = np.percentile(self.decodes, (5, 10))
        rest = np.linspace(early, max(early, horizon - late), prefills - first)
        instants = np.clip(np.append(np.zeros(first), rest), 0, horizon).astype(np.int32)
        start_of = played(case, np.argsort(-case.decodes, kind="stable"), instants).prefill_of.copy()
        left = start_of >= prefills
        start_of[left] = self.rng.integers(0, prefills, int(left.sum()))
        search = self._search(instants, start_of, horizon)
        moves = min(MOST_MOVES, self.effort.anneal_moves * len(self.decodes))
        search.run(moves, temperatures(search, *ANNEALED), shifts=SHIFTS, growth=0)
        return self._search(np.asarray(search.best_instants), np.asarray(search.best_start), horizon)

    def _met(self, search: Instants) -> bool:
        """Whether nothing is violated any more under growing weights; the best plan is then a better one."""
        moves = min(MOST_MOVES, self.effort.repair_moves * len(self.decodes))
        if search.run(moves, temperatures(search, *REPAIRED), shifts=SHIFTS, growth=1):
            return False
        place = np.asarray(search.best_start)
        sequence = np.lexsort((np.arange(len(place)), -self.case.decodes, place))
        plan = played(self.case, sequence, np.asarray(search.best_instants))
        if plan.makespan_ns >= self.best.makespan_ns:
            return False
        self.best = plan
        return True

    def _search(self, instants: NDArray[np.int32], start_of: NDArray[np.int32], horizon: int) -> Instants:
        cap, seed = self.case.cost.prefill_token_cap, int(self.rng.integers(2**31))
        return Instants(self.decodes, self.prompts, instants, start_of, self.case.clients, horizon, cap, seed)


def temperatures(search: Instants, first: float, last: float) -> NDArray[np.int64]:
    """From one temperature to another, given in clients, in the search's units."""
    stages = first * (last / first) ** np.linspace(0, 1, STAGES)
    return np.rint(stages * search.client_weight * search.unit).astype(np.int64)
