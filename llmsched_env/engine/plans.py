"""Rules that follow a plan, made before the episode or outside the loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cython
import numpy as np

from llmsched_env.engine import codes
from llmsched_env.engine.arrays import view_of
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.view import View


class FollowPrefills(Rule):
    """Prefills at the decode counts of a plan, then wherever one is possible.

    Args:
        plan: decode count of each prefill in turn.
    """

    plan: cython.longlong[::1]

    def __init__(self, plan: Iterable[int]) -> None:
        self.reads_forecast = False
        self.plan = view_of(np.array([*plan], np.int64))

    def act(self, view: View) -> cython.int:
        """A prefill if the next one is due."""
        if view.prefills >= self.plan.shape[0]:
            return 1
        return 1 if view.decodes >= self.plan[cython.cast(cython.Py_ssize_t, view.prefills)] else 0

    def __reduce__(self) -> tuple[Any, ...]:
        return FollowPrefills, (np.asarray(self.plan).tolist(),)


class FollowActions(Rule):
    """The actions of a plan, choice by choice, then decodes.

    Args:
        plan: the action at each choice.

    Attributes:
        made: choices so far.
    """

    plan: cython.longlong[::1]
    made: cython.Py_ssize_t

    def __init__(self, plan: Iterable[int]) -> None:
        self.reads_forecast = False
        self.plan = view_of(np.array([*plan], np.int64))
        self.made = 0

    def begin(self) -> None:
        """From the first choice on."""
        self.made = 0

    def act(self, view: View) -> cython.int:
        """The action of the next choice."""
        self.made += 1
        if self.made > self.plan.shape[0]:
            return codes.DECODE
        return cython.cast(cython.int, self.plan[self.made - 1])

    def __reduce__(self) -> tuple[Any, ...]:
        return FollowActions, (np.asarray(self.plan).tolist(),)

    def twin(self) -> Rule:
        """Another rule, which goes on with the next choice."""
        twin = FollowActions(np.asarray(self.plan).tolist())
        twin.made = self.made
        return twin
