"""One step of policy improvement at each choice: every action is tried in a copy of the episode, for a while."""

from __future__ import annotations

import cython

from llmsched_env.engine import codes
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.problem_data import ProblemData
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.view import Totals, View


class Lookahead:
    """Tries actions, and goes on under a rule until a horizon.

    What counts is how many counted requests have violated an objective by then, and among equals the time that requests
    have spent in the system.

    Args:
        episode: what is planned for; it is played.
        trial: another episode of the same requests, to be overwritten.
        rule: decides where nothing else is better.
        prefill: the action that stands for the rule's prefills; 0 for its own.
        horizon_ns: how long a trial is looked at.

    Attributes:
        violations: requests that violated an objective in the last trial,
        request_ns: and the time that requests have spent.
    """

    episode: Episode
    trial: Episode
    rule: Rule
    prefill: cython.int
    horizon_ns: cython.longlong
    violations: cython.longlong
    request_ns: cython.longlong

    def __init__(self, episode: Episode, trial: Episode, rule: Rule, prefill: int, horizon_ns: int) -> None:
        self.episode = episode
        self.trial = trial
        self.rule = rule
        self.prefill = prefill
        self.horizon_ns = horizon_ns
        self.violations = 0
        self.request_ns = 0

    def plan(self) -> list[int]:
        """The action at each choice to the end of the episode, or its horizon."""
        action: cython.int
        plan: list[int] = []
        self.episode.set_forecast(self.rule.reads_forecast)
        self.trial.set_forecast(self.rule.reads_forecast)
        self.rule.check()
        self.rule.begin()
        while self.find_choice():
            action = self.best()
            plan.append(int(action))
            self.episode.step(action)
        self.rule.end()
        return plan

    def find_choice(self) -> bool:
        """Go on to the next choice; returns whether there is one."""
        with cython.nogil:
            while not self.episode.finished() and not self.episode.has_choice():
                self.episode.advance(self.episode.forced())
        return not self.episode.finished()

    def best(self) -> int:
        """The action with the fewest violations; the rule's own among equals."""
        usual: cython.int = self.usual(self.episode, self.rule)
        best: cython.int = usual
        self.rule.end()
        action: cython.int
        v: View = self.episode.view
        problem: ProblemData = self.episode.problem
        # Where orders are actions and all that wait would go, one is as good as another.
        alike = not problem.mixes and not chooses_cap(problem) and v.waiting <= v.batch_requests
        until_ns: cython.longlong = v.clock_ns + self.horizon_ns
        least = self.try_out(usual, until_ns)
        for action in range(codes.DECODE if v.active > 0 else codes.PREFILL, problem.num_actions):
            if action == usual:
                continue
            if action == codes.DECODE or not alike or (usual == codes.DECODE and action == codes.PREFILL):
                outcome = self.try_out(action, until_ns)
                if outcome < least:
                    best, least = action, outcome
        return int(best)

    def try_out(self, action: int, until_ns: int) -> tuple[int, int]:
        """(violations, time that requests have spent) at ``until_ns`` after ``action``, then the rule."""
        rule: Rule = self.rule.twin()
        first: cython.int = action
        end_ns: cython.longlong = until_ns
        with cython.nogil:
            self.trial.assign(self.episode)
            self.trial.advance(first)
            self.look(self.trial, self.trial.view, self.trial.totals, rule, end_ns)
        rule.end()
        return int(self.violations), int(self.request_ns)

    def look(self, e: Episode, v: View, t: Totals, rule: Rule, until_ns: cython.longlong) -> cython.void:
        """Go on under the rule, and write the violations by then."""
        action: cython.int
        while v.clock_ns < until_ns and not e.finished():
            action = self.usual(e, rule)
            e.advance(action)
        self.violations = t.violations
        self.request_ns = t.request_ns + (until_ns - v.clock_ns) * (v.waiting + v.active + v.preempted + e.reads())

    def usual(self, e: Episode, rule: Rule) -> cython.int:
        """The rule's action, with the prefill that stands for its own."""
        action: cython.int = e.choose(rule)
        if action <= codes.DECODE:  # where the rule has raised, too
            return codes.DECODE
        return action if self.prefill == 0 else self.prefill


def chooses_cap(problem: ProblemData) -> cython.bint:
    """Whether prefills differ in how many clients are active after them."""
    return problem.num_actions > 2 and problem.caps[1] != problem.caps[problem.num_actions - 1]
