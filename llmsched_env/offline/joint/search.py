"""The search for a joint plan: annealing over starts and instants, then weights that grow on what stays violated."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import CostModel, cost_model
from llmsched_env.errors import ConfigError, SolverError
from llmsched_env.offline.assignment import check_seed
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint.plan import JointPlan, played
from llmsched_env.offline.joint.starts import greedy_plans
from llmsched_env.offline.kernels.instants import Instants
from llmsched_env.offline.stage_model import stage_model
from llmsched_env.progress import Progress
from llmsched_env.workload.requests import Requests

__all__ = ["Effort", "check_batch", "joint_plan", "temperatures"]

FIRST_SHARE = 0.4
NEXT_SHARE = 0.93
SHARE_GROWTH = 1.25
"""Of the best plan's gap: what the first try aims at, what one aims at after a success, what a failure adds."""

TOGETHER = 2
"""Tries at a time, each in a thread of its own. They are the same on one core."""

PROBES, PROBE_MOVES = 8, 2_000
"""Numbers of prefills beyond the least one, up to the greedy plan's, that short annealings compare, and their moves for
each request."""

NEXT_PROBE, LEAST_SHARE = 0.7, 0.02
"""What they aim at where one of them has violated nothing, as a share of the last aim; and the least aim."""

FROM_SCRATCH = 4
"""Tries that begin with instants of their own; further ones begin with the best plan."""

STEPS = ((1, 0.0), (-1, 0.0), (2, 0.1), (-2, 0.1), (3, 0.3), (-3, 0.3))
"""Prefills that every second of those has more than the best plan, in turn: at least so many, and at least so large a
share of what that has beyond the least number."""

ANNEALED, REPAIRED = (0.5, 0.05), (0.3, 0.03)
"""First and last temperature, in clients held too many."""

HOTTER = 2.0
"""Every second pair of tries from the best plan begins at so many times that temperature."""

SHIFTS = 30
"""Of a thousand moves, those of an instant."""

STAGES = 64
EXACT_REQUESTS = 10
EXACT_NODES = 20_000

MOST_DECODES = 2**24
"""Of a schedule that is searched for: there is a table of them, of four bytes each."""

MOST_MOVES = 2**26
"""Of one annealing or repair: more than about 2,000 requests have fewer moves each."""


@dataclass(frozen=True)
class Effort:
    """How much work a plan may take. Counts, never seconds.

    Attributes:
        tries: numbers of prefills and decodes that are tried.
        anneal_moves: moves for each request under constant weights, once a try.
        repair_moves: most moves for each request under growing weights, once a try, and again for each decode less
            that is tried, the start's too. No more than `MOST_MOVES` at a time are made of either.
        goal: gap to the bound at which the search ends, at least 0.

    Raises:
        ConfigError: a count that is negative or not whole; a goal that is negative or no number.
    """

    tries: int = 24
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
    starts = greedy_plans(case)
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
        self.case, self.effort, self.starts, self.seed = case, effort, starts, seed % 2**128
        self.best = _shortest(starts)
        self.decodes, self.prompts = case.decodes.astype(np.int32), case.requests.prompt_tokens
        self.least_prefills, self.least_decodes = case.least_counts(None)
        # Each decode emits a token, so none has more than all tokens; more than the table holds are not looked for.
        self.most_decodes = min(MOST_DECODES, max(self.least_decodes, int(case.decodes.sum())))
        self.greedy_more = self.best.prefills - self.least_prefills
        self.stopped = False

    def run(self, progress: bool) -> JointPlan:
        """All tries: each aims at a share of the best plan's gap, a smaller one where the last ones met their aim."""
        tries = self.effort.tries
        with (
            Progress(total=tries, desc="joint plan", unit="attempt", hidden=not progress) as line,
            ThreadPoolExecutor(TOGETHER) as pool,
        ):
            try:
                self._run(tries, pool, line)
            except BaseException:
                self.stopped = True  # threads that are at work end with the moves that they are at
                raise
        return self.best

    def _run(self, tries: int, pool: ThreadPoolExecutor, line: Progress) -> None:
        if not tries:
            return
        aim = FIRST_SHARE * self.best.gap
        self.best = _shortest(pool.map(self._squeezed, self.starts, self._generators(0, len(self.starts))))
        share = min(NEXT_SHARE, aim / self.best.gap) if self.best.gap else 0.0
        promising = self._promising(pool) if self.best.gap > self.effort.goal else [0]
        for first in range(0, tries, TOGETHER):
            if self.best.gap <= self.effort.goal:
                return
            numbers = range(first, min(first + TOGETHER, tries))
            random = self._generators(1 + first, len(numbers))
            if first < FROM_SCRATCH:
                asked = [(promising[number % len(promising)], share) for number in numbers]
                plans = [*pool.map(self._try, asked, random)]
            else:
                hotter = HOTTER ** (first // TOGETHER % 2)
                plans = [*pool.map(self._reheated, [(self._step(number), hotter) for number in numbers], random)]
            met = [plan for plan in plans if plan is not None]
            self.best = _shortest([self.best, *met])
            share = NEXT_SHARE if met else min(1.0, SHARE_GROWTH * share)
            line.set_postfix_str(f"gap {self.best.gap:.3%}")
            line.update(len(numbers))

    def _generators(self, first: int, count: int) -> list[np.random.Generator]:
        """Random numbers of the tries from ``first`` on, whoever is done first."""
        return [np.random.default_rng([first, number, self.seed]) for number in range(count)]

    def _promising(self, pool: ThreadPoolExecutor) -> list[int]:
        """Prefills beyond the least number, those first with which a short annealing violates least.

        All for the same makespan, which is lowered until each of them violates something.
        """
        most = max(1, self.greedy_more)
        numbers = sorted({round(more) for more in np.geomspace(1, most, PROBES)})
        share = FIRST_SHARE
        while True:
            asked = [(more, share) for more in numbers]
            violated = [*pool.map(self._probed, asked, self._generators(2**32, len(asked)))]
            if min(violated) > 0 or share < LEAST_SHARE:
                return [numbers[i] for i in np.argsort(violated, kind="stable")]
            share *= NEXT_PROBE

    def _probed(self, asked: tuple[int, float], rng: np.random.Generator) -> float:
        """What is violated after a short annealing."""
        counts = self._counts(*asked)
        moves = min(PROBE_MOVES, self.effort.anneal_moves)
        return math.inf if counts is None else float(self._annealed(*counts, moves, rng).least)

    def _counts(self, more: int, share: float) -> tuple[int, int] | None:
        """Prefills and decodes of a schedule with so much of the best plan's gap; ``None`` for none."""
        gap_ns = int(share * (self.best.makespan_ns - self.best.bound_ns)) - 1
        if gap_ns < 0:
            return None
        cost = self.case.cost
        more = min(more, gap_ns // max(1, cost.alpha_prefill_ns))
        gap_ns -= more * cost.alpha_prefill_ns
        horizon = min(self.least_decodes + gap_ns // max(1, cost.alpha_decode_ns), self.most_decodes)
        return self.least_prefills + more, horizon

    def _try(self, asked: tuple[int, float], rng: np.random.Generator) -> JointPlan | None:
        """A plan with so many prefills and so much of the best one's gap, then with fewer decodes, if there is one."""
        counts = self._counts(*asked)
        if counts is None:
            return None
        search = self._annealed(*counts, self.effort.anneal_moves, rng)
        search = self._search(np.asarray(search.best_instants), np.asarray(search.best_start), counts[1], rng)
        plan = self._met(search, self.best)
        return None if plan is None else self._squeezed(plan, rng)

    def _step(self, number: int) -> int:
        """By how many prefills a try changes the best plan."""
        if number % 2 == 0:
            return 0
        least, share = STEPS[number // 2 % len(STEPS)]
        size = max(abs(least), round(share * (self.best.prefills - self.least_prefills)))
        return size if least > 0 else -size

    def _reheated(self, asked: tuple[int, float], rng: np.random.Generator) -> JointPlan | None:
        """A plan like the best one, with so many prefills more, annealed again for a shorter makespan."""
        case, best = self.case, self.best
        step, hotter = asked
        prefills = best.prefills + step
        room_ns = best.makespan_ns - 1 - case.makespan_ns(max(1, prefills), self.least_decodes)
        horizon = min(self.least_decodes + room_ns // max(1, case.cost.alpha_decode_ns), self.most_decodes)
        if prefills < self.least_prefills or room_ns < 0:
            return None
        instants, start_of = best.instants.copy(), best.prefill_of.copy()
        for _ in range(step):  # in the middle of a gap, the more likely the longer it is
            gaps = np.diff(np.append(instants, best.decodes))
            k = int(rng.choice(len(gaps), p=gaps / gaps.sum()))
            instants = np.insert(instants, k + 1, instants[k] + gaps[k] // 2)
            start_of[start_of > k] += 1
        for _ in range(-step):
            k = int(rng.integers(1, len(instants)))
            instants = np.delete(instants, k)
            start_of[start_of >= k] -= 1
        search = self._search(np.minimum(instants, horizon).astype(np.int32), start_of, horizon, rng)
        moves = min(MOST_MOVES, self.effort.anneal_moves * len(self.decodes))
        search.run(moves, temperatures(search, hotter * ANNEALED[0], ANNEALED[1]), shifts=SHIFTS, growth=0)
        search = self._search(np.asarray(search.best_instants), np.asarray(search.best_start), horizon, rng)
        plan = self._met(search, best)
        return None if plan is None else self._squeezed(plan, rng)

    def _squeezed(self, plan: JointPlan, rng: np.random.Generator) -> JointPlan:
        """The plan with one decode less, as long as that goes."""
        while self.least_decodes < plan.decodes <= self.most_decodes and not self.stopped:
            horizon = plan.decodes - 1
            instants = np.minimum(plan.instants, horizon).astype(np.int32)
            shorter = self._met(self._search(instants, plan.prefill_of, horizon, rng), plan)
            if shorter is None:
                break
            plan = shorter
        return plan

    def _annealed(self, prefills: int, horizon: int, moves: int, rng: np.random.Generator) -> Instants:
        """Instants for so many prefills in so many decodes, and starts that violate little."""
        case = self.case
        at_once = int(self.prompts.mean() * min(case.clients, len(self.prompts)))
        first = min(prefills, -(-at_once // case.cost.prefill_token_cap))
        early, late = np.percentile(self.decodes, (5, 10))
        rest = np.linspace(early, max(early, horizon - late), prefills - first)
        instants = np.clip(np.append(np.zeros(first), rest), 0, horizon).astype(np.int32)
        start_of = played(case, np.argsort(-case.decodes, kind="stable"), instants).prefill_of.copy()
        left = start_of >= prefills
        start_of[left] = rng.integers(0, prefills, int(left.sum()))
        search = self._search(instants, start_of, horizon, rng)
        moves = min(MOST_MOVES, moves * len(self.decodes))
        search.run(moves, temperatures(search, *ANNEALED), shifts=SHIFTS, growth=0)
        return search

    def _met(self, search: Instants, than: JointPlan) -> JointPlan | None:
        """A plan shorter than another one, where nothing is violated any more under growing weights."""
        moves = min(MOST_MOVES, self.effort.repair_moves * len(self.decodes))
        if self.stopped or search.run(moves, temperatures(search, *REPAIRED), shifts=SHIFTS, growth=1):
            return None
        place = np.asarray(search.best_start)
        sequence = np.lexsort((np.arange(len(place)), -self.case.decodes, place))
        plan = played(self.case, sequence, np.asarray(search.best_instants))
        return plan if plan.makespan_ns < than.makespan_ns else None

    def _search(
        self, instants: NDArray[np.int32], start_of: NDArray[np.int32], horizon: int, rng: np.random.Generator
    ) -> Instants:
        cap, seed = self.case.cost.prefill_token_cap, int(rng.integers(2**31))
        return Instants(self.decodes, self.prompts, instants, start_of, self.case.clients, horizon, cap, seed)


def _shortest(plans: Iterable[JointPlan]) -> JointPlan:
    return min(plans, key=lambda plan: plan.makespan_ns)


def temperatures(search: Instants, first: float, last: float) -> NDArray[np.int64]:
    """From one temperature to another, given in clients, in the search's units."""
    stages = first * (last / first) ** np.linspace(0, 1, STAGES)
    return np.rint(stages * search.client_weight * search.unit).astype(np.int64)
