"""The class behind every compiled rule: one function, run inside the core or asked from Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.policy import CompiledRule, RuleFunction, Start, View, compile_rule

__all__ = ["Function", "Rule", "TiedRule"]

Function = Callable[[Any, Any, Any], Any]


@functools.cache
def _compiled(function: Function) -> RuleFunction:
    return compile_rule(function)


class Rule:
    """An iteration rule: ``function(view, parameters, memory) -> action``.

    Args:
        name: what tables call it.
        function: the rule, in the subset of Python that numba compiles. It is asked only where both actions are
            feasible.
        parameters: the numbers that it reads, or a function that computes them from the start of an episode.
        memory: initial value of what it may keep between decisions of an episode.
    """

    kind = "rule"
    clairvoyant = False

    def __init__(
        self,
        name: str,
        function: Function,
        parameters: Sequence[float] | Callable[[Start], Sequence[float]] = (),
        memory: Sequence[int] = (0,),
    ) -> None:
        self.name = name
        self._function = function
        self._parameters = parameters
        self._memory = memory
        self._rule: CompiledRule | None = None
        self._kept = np.zeros(1, np.int64)
        self._actions = 2

    def compiled(self, start: Start) -> CompiledRule:
        """The rule as the core runs it."""
        values = self._parameters(start) if callable(self._parameters) else self._parameters
        parameters = np.array([*values, 0.0], np.float64)  # never empty
        return CompiledRule(_compiled(self._function), parameters, self._first_memory(start))

    def _first_memory(self, start: Start) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(self._memory, np.int64)

    def reset(self, start: Start) -> None:
        """Begin an episode."""
        self._actions = start.scenario.num_actions
        self._rule = self.compiled(start)
        self._kept = self._rule.memory.copy()

    def act(self, view: View) -> int:
        """The action, by the rule's Python function; the core runs its machine code, which gives the same."""
        if self._rule is None:
            raise RuntimeError(f"policy {self.name!r} was asked before reset: call reset(start) first.")
        action = int(self._rule.function(view, self._rule.parameters, self._kept))
        return action if 0 <= action < self._actions else 0  # what is no action is a decode, as in the core

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class TiedRule:
    """The rule of a whole method or system, which runs only where the scenario is as the method makes it.

    On other queues it would be another method under the same name, so it is refused there.

    Args:
        name: of the method; `baselines.entry` makes its row of a comparison, scenario included.
        rule: what decides.
        arguments: of the scenario, as the method has them.
        check: raises where the method makes no sense in a scenario, whatever its queues.
    """

    kind = "rule"
    clairvoyant = False
    brings_queues = True

    def __init__(
        self,
        name: str,
        rule: Rule,
        arguments: Mapping[str, Any],
        check: Callable[[str, Scenario], None] | None = None,
    ) -> None:
        self.name = name
        self._rule = rule
        self._arguments = dict(arguments)
        self._makes_sense = check

    def _check(self, scenario: Scenario) -> None:
        if self._makes_sense is not None:
            self._makes_sense(self.name, scenario)
        found = {name: getattr(scenario, name) for name in self._arguments}
        apart = [name for name, value in found.items() if value != self._arguments[name]]
        if apart:
            own, there = (", ".join(f"{name}={one[name]!r}" for name in apart) for one in (self._arguments, found))
            raise ConfigError(
                f"{self.name!r} is a method with {own}, and this scenario has {there}: it would be another method. "
                f"Take item = baselines.entry({self.name!r}, scenario), and item.policy in item.scenario; or make the "
                "scenario, or the environment, with these arguments."
            )

    def compiled(self, start: Start) -> CompiledRule:
        """The rule as the core runs it.

        Raises:
            ConfigError: the scenario is not the method's.
        """
        self._check(start.scenario)
        return self._rule.compiled(start)

    def reset(self, start: Start) -> None:
        """Begin an episode; raises as :meth:`compiled`."""
        self._check(start.scenario)
        self._rule.reset(start)

    def act(self, view: View) -> int:
        """The rule's action."""
        return self._rule.act(view)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"
