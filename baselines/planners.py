"""Policies that look ahead in the simulator: handed the future, and marked clairvoyant, or only what can be known."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmsched_env.actions import actions_of
from llmsched_env.agents.agent import Agent
from llmsched_env.agents.files import shipped_agent
from llmsched_env.baselines.iteration import decode_first, interleave, prefill_first, threshold
from llmsched_env.baselines.lagrangian import lagrangian
from llmsched_env.baselines.plan_cache import cached_plan
from llmsched_env.baselines.rule import Rule
from llmsched_env.baselines.tuned import Tuned, best_tuned
from llmsched_env.cases import estimates
from llmsched_env.config import Scenario
from llmsched_env.engine import codes, schedule, search
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.patience import Patience
from llmsched_env.engine.plans import FollowPrefills
from llmsched_env.engine.rule import Rule as EngineRule
from llmsched_env.errors import ConfigError
from llmsched_env.policy import EpisodeContext, Policy, View
from llmsched_env.simulator import Futures, Simulator
from llmsched_env.workload.requests import MAX_TOKENS

__all__ = ["AlwaysWorst", "Beam", "Rollout"]

SIFTED_PER_STATE = 4
"""Extensions that are finished with the base rule for each state that the beam keeps."""

SAMPLED_LENGTHS = 2**13
"""Lengths of training cases that stand for the population; fewer where cases are small."""

MOST_SAMPLED_CASES = 64

FOLLOW = -1
"""Stands for the base rule until its next prefill, among actions that are tried."""

PATIENCE = 8.0
"""A client that joins a prefill is worth so many times its share of what the prefill takes of all others: chosen on
validation cases 0 to 5 of gsm8k and gsm8k-smooth, where 3 to 12 differ by less than 0.05 points."""

UNBOUNDED_FIRST = 2**20
"""First training case to sample where a workload has no natural number of cases."""


def _references(start: EpisodeContext) -> list[Rule]:
    """Simple rules, the best of which is the first schedule that states are valued by."""
    clients = start.scenario.num_clients
    counts = sorted({max(1, round(clients * share)) for share in (0.02, 0.035, 0.05, 0.06, 0.07, 0.085, 0.1, 0.13)})
    pauses = [interleave(2, decodes) for decodes in (3, 5, 7, 9, 11, 14)]
    return [lagrangian(), lagrangian(0.3), *(threshold(count) for count in counts), *pauses]


def _patience(start: EpisodeContext) -> tuple[float, float]:
    """(worth, batch) of `llmsched_env.engine.patience.Patience`: what it is told of an episode's batches and costs."""
    assert start.futures is not None  # asked before
    cost, clients = start.scenario.believed_model, start.scenario.num_clients
    batch = min(clients, max(1.0, cost.prefill_token_cap / float(start.futures.prompts.mean())))
    return PATIENCE * cost.alpha_prefill_ns * clients / (max(1, cost.alpha_decode_ns) * batch), batch


def _better_base(start: EpisodeContext) -> Rule | Agent:
    """The shipped network, if one fits and is the better one in this very episode, else `Patience`."""
    rule, agent, futures = Rule("patience", Patience, _patience), shipped_agent(), start.futures
    if futures is None or not futures.known or not agent.fits(start.scenario):
        return rule
    ends = [_charge_at_end(futures.future(), policy.compiled(start)) for policy in (rule, agent)]
    return rule if ends[0] <= ends[1] else agent


class Rollout:
    """Try each action, finish with a base rule, keep the best: one step of policy improvement (Bertsekas).

    Tried are a decode and a prefill, by the first order or cap where there are several, and a mixed iteration where
    there is one. Where lengths and waits are actions (``choose_length``) all of them are tried, and the base rule as it
    is, until its next prefill.

    With ``lengths="known"`` all are tried in the true future. Else it is blind: they are tried in a few futures drawn
    anew at each choice, the same ones for all actions, and the mean charges are compared. In a drawn future nothing
    arrives any more, and each unfinished request has a length from the workload's population that exceeds what it has
    emitted: one of the output lengths of training cases; with ``lengths="predicted"`` its own prediction, times the
    ratio of length to prediction of one of their requests.

    One decision changes the end of an episode by less than the lengths drawn do, and a choice put off is drawn for
    again, so the better of two means is a prefill too early. The base rule's own action is therefore kept unless the
    difference is many times its standard error.

    Args:
        base: the rule that finishes; by default the Lagrangian rule with multiplier 1, where iterations may be mixed
            the best tuned one. Where lengths are actions it is `llmsched_env.engine.patience.Patience`, or a shipped
            network that fits, whichever ends sooner in this episode; with hidden or predicted lengths the former.
        futures: drawn at each choice where true lengths are not to be seen.
        caution: standard errors by which drawn futures must speak against the base rule (two futures or more).
    """

    name = "rollout"
    kind = "planner"
    clairvoyant = False
    plans = True

    def __init__(self, base: Rule | Agent | None = None, *, futures: int = 4, caution: float = 6.0) -> None:
        if futures < 1 or not caution >= 0:
            raise ConfigError(f"rollout in {futures} futures with caution {caution}: give at least 1, and at least 0.")
        self._given = base
        self._count, self._caution = futures, caution

    def reset(self, start: EpisodeContext) -> None:
        """Begin an episode."""
        if start.futures is None:
            raise ConfigError(f"policy {self.name!r} plans ahead: start it with EpisodeContext(..., futures=...).")
        self._outlook = start.futures
        usual: Rule | Agent = Tuned(best_tuned(start.scenario)) if start.scenario.mixes else lagrangian()
        if start.scenario.choose_length:
            usual = _better_base(start)
        self._base = self._given or usual
        self._base.reset(start)
        self._rule = self._base.compiled(start)
        self._actions = range(3 if start.scenario.mixes else 2)
        self._lengths_chosen = actions_of(start.scenario) if start.scenario.choose_length else ()
        self._follows = False
        self._rng = np.random.default_rng(start.seed)
        self._lengths = None if self._outlook.known else _Lengths.of(start.scenario, self._outlook)
        self._future: Simulator | None = None
        self._twin: Simulator | None = None

    def act(self, view: View) -> int:
        """The action after which the base rule is charged least; the first on ties, the base rule's own in doubt."""
        if self._follows:
            return self._follow(view)
        tried = self._tried(view)
        gains = np.array([self._gains(future, tried) for future in self._futures()], np.float64)
        best = int(np.argmax(gains.mean(axis=0)))
        usual = 0 if tried[0] == FOLLOW else self._base.act(view)
        better = gains[:, best] - gains[:, usual]
        if len(gains) > 1 and better.mean() < self._caution * float(better.std(ddof=1)) / math.sqrt(len(gains)):
            best = usual
        return self._follow(view) if tried[best] == FOLLOW else tried[best]

    def _follow(self, view: View) -> int:
        """The base rule's action; until its next prefill it is not questioned."""
        action = self._base.act(view)
        self._follows = action == codes.DECODE
        return action

    def _tried(self, view: View) -> Sequence[int]:
        """Actions that differ, with `FOLLOW` first where lengths are actions."""
        if not self._lengths_chosen:
            return self._actions
        tried, places = [FOLLOW], set()
        left = view.waiting - min(view.waiting, view.idle)
        for number, action in enumerate(self._lengths_chosen):
            place = left * max(0, action.order - codes.WINDOW) // codes.LAST_WINDOW
            if action.kind == codes.DECODE:
                if action.idle_until > view.idle:
                    tried.append(number)
            elif (action.kind, place) not in places:
                places.add((action.kind, place))
                tried.append(number)
        return tried

    def _futures(self) -> Iterable[Simulator]:
        if self._lengths is None:
            self._future = self._outlook.future(self._future)
            return [self._future]
        drawn = self._lengths.draw(self._outlook.emitted, self._count, self._rng)
        return (self._outlook.imagine(outputs) for outputs in drawn)

    def _gains(self, future: Simulator, tried: Sequence[int]) -> list[int]:
        """What each action now is charged less than the first."""
        if self._twin is not None and self._twin.problem is future.problem:
            self._twin.restore(future)
        else:
            self._twin = future.fork()
        ends = [0] * len(tried)
        for place in reversed(range(len(tried))):
            trial = self._twin if place else future  # the last one may use it up
            if 0 < place < len(tried) - 1:
                trial.restore(future)
            if tried[place] != FOLLOW:
                trial.step(tried[place])
            trial.run(self._rule)
            ends[place] = trial.charge
        return [ends[0] - end for end in ends]


@dataclass(frozen=True)
class _Lengths:
    """What may be known of output lengths: request i has ``scale[i]`` times one of the sample.

    Attributes:
        sample: (m,) in ascending order.
        scale: (n,) by request number.
        most: (n,) longest output of each: what the KV cache holds beside its prompt.
    """

    sample: NDArray[np.float64]
    scale: NDArray[np.float64]
    most: NDArray[np.int64]

    @classmethod
    def of(cls, scenario: Scenario, futures: Futures) -> _Lengths:
        estimates = futures.estimates.astype(np.float64)
        sample = _population(scenario, getattr(scenario.source, "version", None))
        most = np.full(len(estimates), MAX_TOKENS, np.int64)
        cache = scenario.kv_cache()
        if cache is not None:
            most = np.minimum(most, cache.longest_request_tokens - futures.prompts)
        return cls(sample, estimates if scenario.lengths == "predicted" else np.ones_like(estimates), most)

    def draw(self, emitted: NDArray[np.int32], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(count, n) lengths, each above what is emitted; one more than that where it has outlived the whole sample."""
        first = np.searchsorted(self.sample, (emitted + 0.5) / self.scale, side="right")
        chance = rng.random((count, len(emitted)))
        chosen = np.minimum(first + chance * (len(self.sample) - first), len(self.sample) - 1).astype(np.int64)
        lengths = np.rint(self.sample[chosen] * self.scale)
        return np.clip(lengths, emitted + 1, np.maximum(self.most, emitted + 1)).astype(np.int64)


@functools.lru_cache(maxsize=16)
def _population(scenario: Scenario, version: object) -> NDArray[np.float64]:
    """Output lengths, or their ratios to predictions, of training cases beyond the pool, which nobody is judged on.

    A file of one's own has one case in every split: there it is the file that is sampled, as its mean is told.
    """
    source, train = scenario.source, scenario.replace(split="train")
    first = source.pool_size("train") or UNBOUNDED_FIRST
    parts: list[NDArray[np.float64]] = []
    while sum(map(len, parts)) < SAMPLED_LENGTHS and len(parts) < MOST_SAMPLED_CASES:
        case = first + len(parts)
        requests = source.requests("train", case)
        lengths = requests.output_tokens.astype(np.float64)
        if scenario.lengths == "predicted":
            lengths /= estimates(train, case, requests)
        parts.append(lengths)
    sample = np.sort(np.concatenate(parts))
    sample.setflags(write=False)
    return sample


class Beam:
    """Beam search over the action with the longest horizon; plans the whole episode in ``reset``.

    Plans are kept on disk, named by what they depend on, since a study asks for the same ones again and again. What
    iterations will last it does not know: it plans by the believed cost model, without noise.

    Args:
        width: states kept at each stage. Scores are measured against width 50.
        rounds: searches; each but the first values states by the plan found before it.
    """

    kind = "planner"
    clairvoyant = True

    def __init__(self, width: int = 50, *, rounds: int = 2) -> None:
        if width < 1 or rounds < 1:
            raise ConfigError(f"beam width {width} and rounds {rounds} must be at least 1.")
        self.width, self.rounds = width, rounds
        self.name = "beam" if width == 50 else f"beam_{width}"

    def compiled(self, start: EpisodeContext) -> EngineRule:
        """The plan, as a rule that follows it."""
        return FollowPrefills(self._plan(_simulator(self, start), start))

    def reset(self, start: EpisodeContext) -> None:
        """Plan the episode."""
        self._rule = self.compiled(start)

    def act(self, view: View) -> int:
        """The plan's action."""
        return self._rule.decide(view)

    def _plan(self, simulator: Simulator, start: EpisodeContext) -> NDArray[np.int64]:
        return cached_plan(
            simulator,
            f"beam {self.width} {self.rounds}",
            lambda: self._search_all(simulator, start).prefills,
            lambda plan: _schedule(simulator, FollowPrefills(plan)).loss,
        )

    def _search_all(self, simulator: Simulator, start: EpisodeContext) -> schedule.Schedule:
        rules = [rule.compiled(start) for rule in _references(start)]
        schedules = [_schedule(simulator, rule) for rule in rules]
        base = min(range(len(rules)), key=lambda i: schedules[i].loss)
        best = schedules[base]
        count = self.width + SIFTED_PER_STATE * self.width + 1
        pool = [simulator.problem.episode() for _ in range(count)]
        finished = search.Ends()
        for _ in range(self.rounds):
            candidate = _schedule(simulator, rules[base], self._search(simulator, pool, rules[base], best, finished))
            if candidate.loss >= best.loss:
                break
            best = candidate
        return best

    def _search(
        self,
        simulator: Simulator,
        pool: list[Episode],
        rule: EngineRule,
        reference: schedule.Schedule,
        finished: search.Ends,
    ) -> NDArray[np.int64]:
        return search.Beam(simulator.episode, pool, rule, self.width, reference, finished).search()


class AlwaysWorst:
    """The worse of the two extremes, prefill-first and decode-first, in this very episode: a control.

    A metric that cannot tell it from the random rule is broken. (To do the opposite of the Lagrangian rule at each
    choice is no control: that is prefill-first, since the account of idle time is empty after each prefill.)
    """

    name = "always_worst"
    kind = "planner"
    clairvoyant = True

    def compiled(self, start: EpisodeContext) -> EngineRule:
        """The extreme that ends with the larger charge."""
        simulator = _simulator(self, start)
        rules = [rule().compiled(start) for rule in (prefill_first, decode_first)]
        return max(rules, key=lambda rule: _charge_at_end(simulator, rule))

    def reset(self, start: EpisodeContext) -> None:
        """Begin an episode."""
        self._rule = self.compiled(start)

    def act(self, view: View) -> int:
        """The action of that extreme."""
        return self._rule.decide(view)


def _charge_at_end(simulator: Simulator, rule: EngineRule) -> int:
    trial = simulator.fork()
    trial.run(rule)
    return trial.charge


def _schedule(simulator: Simulator, rule: EngineRule, prefix: Iterable[int] = ()) -> schedule.Schedule:
    """Play ``prefix``, then ``rule``, in a copy of the episode."""
    return schedule.follow(simulator.episode, simulator.problem.episode(), rule, prefix)


def _simulator(policy: Policy, start: EpisodeContext) -> Simulator:
    if start.simulator is None:
        raise ConfigError(
            f"policy {policy.name!r} plans in the simulator: start it with EpisodeContext(..., simulator=...)."
        )
    if start.simulator.problem.believed is start.simulator.problem:
        return start.simulator
    return start.simulator.fork(believed=True)
