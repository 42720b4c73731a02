"""Several cases, played again and again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from building import compiled

from llmsched_env.engine.features import FEATURES
from llmsched_env.engine.rule import Rule
from llmsched_env.problem import Problem

__all__ = ["Episodes"]

ROWS = 64
"""Observations go to a buffer of so many rows in turn, as a rollout buffer would take them."""


class Episodes:
    """Episodes of several cases, each beside the one that it starts from.

    Args:
        problems: the cases.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self._pairs = [(case.episode(), case.start) for case in problems]
        self._watched = compiled().Watched(np.zeros((ROWS, len(FEATURES)), np.float32))
        self.requests = sum(case.num_requests for case in problems)
        """Of all cases in sum."""

    def run(self, rule: Rule) -> int:
        """Whole episodes under a rule, resets included; returns their iterations."""
        iterations = 0
        for episode, start in self._pairs:
            episode.restart(start)
            iterations += episode.run(rule)
        return iterations

    def run_observed(self, rule: Rule) -> int:
        """The same with an observation at each iteration."""
        iterations = 0
        for episode, start in self._pairs:
            episode.restart(start)
            iterations += self._watched.run(episode, rule)
        return iterations

    def reset(self) -> int:
        """Only resets; returns the number of episodes."""
        for episode, start in self._pairs:
            episode.restart(start)
        return len(self._pairs)

    def clocks_ns(self) -> list[int]:
        """(cases,) the clock where each episode stands: after a run, its makespan."""
        return [int(episode.view.clock_ns) for episode, _ in self._pairs]

    def steals(self) -> int:
        """Requests taken from another client's queue, over all cases."""
        return sum(int(episode.totals.steals) for episode, _ in self._pairs)
