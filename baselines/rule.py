"""The class behind every rule of the baselines: an engine's rule, run inside the loop or asked from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmsched_env.config import Scenario
from llmsched_env.engine import rule as engine
from llmsched_env.engine.view import fields_of
from llmsched_env.errors import ConfigError
from llmsched_env.policy import EpisodeContext, View

__all__ = ["Rule", "TiedRule", "settings"]


class Rule:
    """A rule under a name.

    Args:
        name: what tables call it.
        kind: class of the engine's rule, or a function that makes one. Ones of `llmsched_env.engine.rules`,
            `llmsched_env.policy.FunctionRule` with a Python function, or one of your own.
        parameters: arguments of ``kind``, or a function that computes them from the start of an episode.
    """

    kind = "rule"
    clairvoyant = False

    def __init__(
        self,
        name: str,
        kind: Callable[..., engine.Rule],
        parameters: Sequence[Any] | Callable[[EpisodeContext], Sequence[Any]] = (),
    ) -> None:
        self.name = name
        self._kind = kind
        self._parameters = parameters
        self._rule: engine.Rule | None = None
        self._actions = 2

    def compiled(self, start: EpisodeContext) -> engine.Rule:
        """The rule as the loop runs it, with a memory of its own."""
        return self._kind(*(self._parameters(start) if callable(self._parameters) else self._parameters))

    def reset(self, start: EpisodeContext) -> None:
        """Begin an episode."""
        self._actions = start.scenario.num_actions
        self._rule = self.compiled(start)
        self._rule.begin()

    def act(self, view: View) -> int:
        """The action."""
        if self._rule is None:
            raise RuntimeError(f"policy {self.name!r} was asked before reset: call reset(start) first.")
        action = self._rule.decide(view)
        return action if 0 <= action < self._actions else 0  # what is no action is a decode, as in the loop

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def settings(rule: engine.Rule) -> str:
    """Class and numbers of a rule of the package, which its sources leave open."""
    kinds = [kind for kind in type(rule).__mro__ if kind not in (engine.Rule, object)]
    names = [name for kind in kinds for name in fields_of(kind)]
    attributes = {name: getattr(rule, name) for name in sorted(names)}
    values = {name: value if np.isscalar(value) else np.asarray(value).tolist() for name, value in attributes.items()}
    return f"{type(rule).__module__}.{type(rule).__qualname__} {values}"


class TiedRule:
    """The rule of a whole method or system, which runs only where the scenario is as the method makes it.

    On other queues it would be another method under the same name, so it is refused there.

    Args:
        name: of the method; `llmsched_env.baselines.entry` makes its row of a comparison, scenario included.
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
        actual = {name: getattr(scenario, name) for name in self._arguments}
        apart = [name for name, value in actual.items() if value != self._arguments[name]]
        if apart:
            own, there = (", ".join(f"{name}={one[name]!r}" for name in apart) for one in (self._arguments, actual))
            raise ConfigError(
                f"{self.name!r} is a method with {own}, and this scenario has {there}: it would be another method. "
                f"Take item = llmsched_env.baselines.entry({self.name!r}, scenario), and item.policy in item.scenario; "
                "or make the scenario, or the environment, with these arguments."
            )

    def compiled(self, start: EpisodeContext) -> engine.Rule:
        """The rule as the loop runs it.

        Raises:
            ConfigError: the scenario is not the method's.
        """
        self._check(start.scenario)
        return self._rule.compiled(start)

    def reset(self, start: EpisodeContext) -> None:
        """Begin an episode; raises as :meth:`compiled`."""
        self._check(start.scenario)
        self._rule.reset(start)

    def act(self, view: View) -> int:
        """The rule's action."""
        return self._rule.act(view)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"
