"""One episode, choice by choice: what a policy did, what another would have done, and what that would have cost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario, whole
from llmsched_env.engine.rule import PythonRule, Rule
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.rollout import check_scenario, choice_awaits, play_on, start, take, taken
from llmsched_env.metrics import final_metrics
from llmsched_env.policy import Policy, View, check_policy
from llmsched_env.problem import Problem
from llmsched_env.simulator import Simulator

__all__ = ["MOST_DECISIONS", "Trace", "TracedSimulator", "trace_episode"]

MOST_DECISIONS = 1000
"""Decisions whose costs are found where nothing else is said."""

STATE = ("iteration", "clock_ns", "waiting", "preempted", "active", "idle", "ready", "kv_tokens")
OUTCOME = {"makespan_s": "makespan_change_s", "goodput": "goodput_change"}
"""What an action is judged by -> the column of what another one changes of it."""

Progress = Callable[[int], Any]


class TracedSimulator(Simulator):
    """An episode that is stepped, and keeps what no recording has.

    Attributes:
        actions: those that were asked for, one an iteration.
        kv_tokens: tokens in the KV cache after each iteration: those allocated where it is a budget, else those of the
            running requests.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, record=True)
        self.actions: list[int] = []
        self.kv_tokens: list[int] = []

    def step(self, action: int) -> None:
        """As the simulator's."""
        super().step(action)
        self.actions.append(int(action))
        self.kv_tokens.append(kv_tokens(self.episode.view))

    def reset(self) -> None:
        """As the simulator's."""
        super().reset()
        self.actions, self.kv_tokens = [], []

    def run(self, rule: Rule) -> None:
        """Refused: a rule inside the loop leaves no trace.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a TracedSimulator is stepped: play the rule with trace_episode, or take a Simulator.")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "steps": (self.actions, self.kv_tokens)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.actions, self.kv_tokens = state["steps"]


def kv_tokens(view: View) -> int:
    """Tokens in the KV cache."""
    return int(view.kv_used if view.kv_budget_tokens else view.context_tokens)


@dataclass(frozen=True)
class Trace:
    """One episode under one policy, with its decisions.

    Attributes:
        policy: the policy's name.
        against: the other one's; ``None`` without.
        simulator: the finished episode.
        decisions: a column of (decisions,) each: ``iteration``, ``clock_ns``, what the view showed (``waiting``,
            ``preempted``, ``active``, ``idle``, ``ready``, ``kv_tokens``), ``action``; with another policy also
            ``against_action``, ``against_makespan_s``, ``makespan_change_s``, ``against_goodput`` and
            ``goodput_change``: NaN where they were not looked for.
    """

    policy: str
    against: str | None
    simulator: TracedSimulator
    decisions: dict[str, NDArray[Any]]

    def table(self) -> dict[str, NDArray[Any]]:
        """The decisions as they are written: actions by name, times in seconds, goodput only where there are SLOs."""
        names = np.array(self.simulator.problem.action_names)
        table = {"decision": np.arange(len(self.decisions["action"])), **self.decisions}
        for name in ("action", "against_action"):
            if name in table:
                table[name] = names[table[name]]
        serving = self.simulator.episode.slo.enabled
        shown = {"time_s" if name == "clock_ns" else name: column for name, column in table.items()}
        shown["time_s"] = shown["time_s"] / 1e9
        return {name: column for name, column in shown.items() if serving or "goodput" not in name}


class _Player:
    """A policy in an episode, which can go on from a fork of it."""

    def __init__(self, policy: Policy, scenario: Scenario, simulator: Simulator, seed: int) -> None:
        self.policy, self._scenario, self._seed = policy, scenario, seed
        self._actions = simulator.problem.num_actions
        compiled = getattr(policy, "compiled", None)
        plans = policy.clairvoyant or getattr(policy, "plans", False)
        self._rule: Rule | None = None
        context = start(policy, scenario, simulator, seed)
        if compiled is not None and not plans:
            self._rule = compiled(context)
            self._rule.begin()
        else:
            policy.reset(context)

    @property
    def keeps_on(self) -> bool:
        """Whether it goes on with what it has kept, and does not begin anew."""
        return self._rule is not None

    def act(self, view: View) -> Any:
        """Its answer; of a rule inside the loop what is no action is a decode."""
        if self._rule is None:
            return self.policy.act(view)
        action = self._rule.decide(view)
        return action if 0 <= action < self._actions else 0

    def end(self, fork: Simulator, action: int) -> tuple[float, float]:
        """`OUTCOME` of a fork in which this action is taken now, and all others are the policy's."""
        fork.step(action)
        if self._rule is None:
            play_on(self.policy, self._scenario, fork, self._seed)
        else:
            fork.run(PythonRule(self._rule.twin().decide))  # which forgets nothing as the run begins
        return _outcome(fork)


def _outcome(simulator: Simulator) -> tuple[float, float]:
    metrics = final_metrics(simulator)
    makespan_s, goodput = (float(metrics[name]) for name in OUTCOME)
    return makespan_s, goodput


def trace_episode(
    policy: Policy,
    scenario: Scenario,
    case: int,
    *,
    seed: int = 0,
    against: Policy | None = None,
    most_decisions: int = MOST_DECISIONS,
    progress: Callable[[str, int, int], Any] | None = None,
) -> Trace:
    """Play an episode, the same as :func:`play` does, and keep what was decided at each choice.

    With ``against``, another policy is asked at each choice, and its answer is not taken. Where it differs, the episode
    is forked there: that one action is the other policy's, all later ones are the first policy's. What this costs is
    the makespan, or goodput, less what the first policy's own action brings. The fork goes on with the true lengths and
    durations, so a cost is known in hindsight only, and costs of several decisions do not add up.

    A rule goes on in the fork with what it has kept. A policy that plans, or does not run inside the loop, begins
    anew there, and then its own action is tried in a fork, too.

    Args:
        policy: any policy.
        scenario: where.
        case: its number.
        seed: for policies that draw random numbers.
        against: another policy, which decides at the state that it is shown.
        most_decisions: of those where both differ, so many at most are tried, evenly spread over the episode.
        progress: called with what is done ("play" or "fork"), how much is done and of how much: requests that are
            complete, forks.

    Raises:
        ConfigError: not a policy, not a case number, a number out of range, or an ``against`` that plans a whole
            episode ahead.
    """
    check_policy(policy)
    check_scenario(scenario, "trace_episode")
    whole("most_decisions", most_decisions, 0, 10**9)
    if against is not None:
        check_policy(against)
        if against.clairvoyant:
            raise ConfigError(
                f"against = {against.name!r}: it plans a whole episode before its first decision, and so has no answer "
                "at a state that another policy has led to. Give a rule, an agent or rollout."
            )
        if against is policy:
            against = copy.deepcopy(policy)
    tell = progress or (lambda what, done, total: None)
    problem = build_problem(scenario, case)
    simulator = TracedSimulator(problem)
    player = _Player(policy, scenario, simulator, seed)
    other = None if against is None else _Player(against, scenario, simulator, seed)
    rows: list[tuple[int, ...]] = []
    answers: list[int] = []
    while choice_awaits(simulator):
        view = simulator.view
        state = _state(view)
        if other is not None:
            answers.append(taken(other.policy, simulator, other.act(view)))
        take(policy, simulator, player.act(view))
        rows.append((*state, simulator.actions[-1]))
        tell("play", int(simulator.view.completed), problem.num_requests)
    table = np.array(rows, np.int64).reshape(-1, len(STATE) + 1)
    decisions: dict[str, NDArray[Any]] = dict(zip((*STATE, "action"), table.T, strict=True))
    if against is None:
        return Trace(policy.name, None, simulator, decisions)
    decisions["against_action"] = np.array(answers, np.int64)
    own = np.array(_outcome(simulator))
    found, base = np.full((2, len(rows), len(OUTCOME)), np.nan)
    alike = decisions["action"] == decisions["against_action"]
    found[alike] = base[alike] = own
    chosen = _spread(np.flatnonzero(~alike), most_decisions)
    second = _Replay(policy, scenario, simulator, seed)
    for done, decision in enumerate(chosen.tolist()):
        second.go_to(int(decisions["iteration"][decision]))
        found[decision] = second.end(answers[decision])
        base[decision] = own if second.player.keeps_on else second.end(int(decisions["action"][decision]))
        tell("fork", done + 1, len(chosen))
    for column, name in enumerate(OUTCOME):
        decisions[f"against_{name}"] = found[:, column]
        decisions[OUTCOME[name]] = (found - base)[:, column].round(9)  # the clock's digits, less those of the sums
    return Trace(policy.name, against.name, simulator, decisions)


def _state(view: View) -> tuple[int, ...]:
    """`STATE`."""
    iteration = int(view.prefills) + int(view.decodes)
    shown = (int(getattr(view, name)) for name in STATE[1:-1])
    return (iteration, *shown, kv_tokens(view))


def _spread(decisions: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of them, evenly spread."""
    if len(decisions) <= most:
        return decisions
    return decisions[np.linspace(0, len(decisions) - 1, most).round().astype(np.int64)]


class _Replay:
    """The same episode once more, to be forked on the way: forks of all states at once would fill the memory."""

    def __init__(self, policy: Policy, scenario: Scenario, played: TracedSimulator, seed: int) -> None:
        self._actions = played.actions
        self._simulator = Simulator(played.problem)
        self._fork = Simulator(played.problem)
        self.player = _Player(policy, scenario, self._simulator, seed)
        self._at, self._asked = 0, -1

    def go_to(self, iteration: int) -> None:
        """Go on to the choice before an iteration, and let the policy make it."""
        for at in range(self._at, iteration + 1):
            if at > self._at:
                self._simulator.step(self._actions[self._at])
                self._at = at
            if self.player.keeps_on and self._asked < at and self._simulator.has_choice:
                self.player.act(self._simulator.view)
                self._asked = at

    def end(self, action: int) -> tuple[float, float]:
        """The outcome of a fork from here by this action."""
        self._fork.restore(self._simulator)
        return self.player.end(self._fork, action)
