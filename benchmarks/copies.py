"""Copies of an environment in a loop without the environment around them: what a vector environment can reach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from building import compiled
from numpy.typing import NDArray

from llmsched_env.engine import codes
from llmsched_env.engine.batch import Batch
from llmsched_env.engine.features import FEATURES
from llmsched_env.engine.step import together
from llmsched_env.problem import Problem

__all__ = ["KINDS", "BareFleet", "Fleet"]

KINDS = (codes.DECODE, codes.PREFILL)
OVER = codes.TERMINATED | codes.TRUNCATED


class Fleet:
    """``count`` copies, each begun anew with the next case where its episode ends.

    Args:
        problems: cases that the copies take in turn.
        count: copies.
    """

    def __init__(self, problems: Sequence[Problem], count: int) -> None:
        self._problems = problems
        self.count = count
        self.batch = Batch(count, KINDS, len(FEATURES), reuses=True)
        self._begun = 0
        for i in range(count):
            self._begin(i)

    def _begin(self, number: int) -> None:
        self.batch.load(number, self._problems[self._begun % len(self._problems)], self.batch.next_steps())
        self._begun += 1

    def spread(self, actions: NDArray[np.int64], steps: int) -> None:
        """``steps`` steps of every copy, each begun anew after some of them: copies then stand all over an episode."""
        begun_at = np.random.default_rng(0).integers(steps, size=self.count)
        for step in range(steps):
            for i in np.flatnonzero(begun_at == step).tolist():
                self._begin(i)
            self.run(actions[step % len(actions)][np.newaxis], 1)

    def scatter(self, actions: NDArray[np.int64]) -> None:
        """Bring every copy to a random depth of an episode, however long those are; up to nine tenths of it."""
        depths = np.random.default_rng(0).random(self.count) * 0.9
        for copy, case, depth, column in zip(self.batch.copies, self.batch.cases, depths, actions.T, strict=True):
            row = 0
            while copy.episode.view.completed < depth * case.num_requests:
                copy.episode.step(int(column[row % len(column)]))
                row += 1

    def run(self, actions: NDArray[np.int64], steps: int) -> None:
        """``steps`` steps of every copy, with everything that a vector environment returns."""
        for step in range(steps):
            out, over = self.batch.step(actions[step % len(actions)])
            if over:
                terminated, truncated = out.arrays[2:4]
                for i in np.flatnonzero(terminated | truncated).tolist():
                    self._begin(i)


class BareFleet(Fleet):
    """The same with transitions only."""

    def __init__(self, problems: Sequence[Problem], count: int) -> None:
        super().__init__(problems, count)
        self._out = self.batch.new_steps()
        self.gather()

    def gather(self) -> None:
        """Take over the episodes that the copies stand in."""
        kind = compiled().Bare
        self._all = together([kind(copy.episode, i) for i, copy in enumerate(self.batch.copies)])

    def advance(self, actions: NDArray[np.int64], steps: int) -> None:
        """Only transitions."""
        for step in range(steps):
            self._out.actions = actions[step % len(actions)]
            if self._all.run(self._out):
                for i, copy in enumerate(self.batch.copies):
                    if not copy.episode.feasible_now():
                        self._begin(i)
