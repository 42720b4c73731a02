"""The shipped agents as one policy that is no worse than a tuned rule, as far as training cases can tell."""

from __future__ import annotations

from dataclasses import replace

from llmsched_env.agents.agent import Origin, Trained
from llmsched_env.agents.files import shipped_agent
from llmsched_env.baselines.tuned import AGENT, RULE, Tuned, best_rule, best_tuned, tuned_value
from llmsched_env.config import ORDER_CODES, Scenario
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.rules import WithPrefill
from llmsched_env.errors import InvalidViewError
from llmsched_env.policy import EpisodeContext, View

__all__ = ["Guarded"]


class Guarded:
    """The shipped network that is best on training cases, where it is surely better than the best tuned rule.

    Networks are chosen as the numbers of the tuned rules are (:func:`~llmsched_env.baselines.tuned.tune_agent`): on
    the same training cases, stored for the default scenarios, else found when a scenario is first met. Where none fits
    or none is surely better, this is the tuned rule.
    """

    name = AGENT
    kind = "agent"
    clairvoyant = False

    def __init__(self) -> None:
        self._networks = shipped_agent()
        self._rule: Rule | None = None

    def fits(self, scenario: Scenario) -> bool:
        """Whether a network can decide there."""
        return self._networks.fits(scenario)

    def origin_for(self, scenario: Scenario) -> Origin | None:
        """Where the network was trained that decides there; ``None`` where the tuned rule does."""
        chosen = self._chosen(scenario)
        return chosen.origin if chosen is not None else None

    def describe(self, scenario: Scenario) -> str:
        """One line about what decides there."""
        origin = self.origin_for(scenario)
        if origin is None:
            return f"{best_tuned(scenario)}: no network was surely better on training cases"
        queues = f"{origin.queue} queues" if origin.assignment is None else f"{origin.assignment} queues"
        load = f", load {origin.load:g}" if origin.load is not None else ""
        return f"network trained on {origin.workload}, {queues}, alpha_p / alpha_d {origin.price_ratio:.2f}{load}"

    def _chosen(self, scenario: Scenario) -> Trained | None:
        if not self.fits(scenario):
            return None
        (number,) = tuned_value(AGENT, scenario).values
        return None if number == RULE else self._networks.trained[int(number)]

    def compiled(self, start: EpisodeContext) -> Rule:
        """What decides there, as the loop runs it."""
        chosen = self._chosen(start.scenario)
        if chosen is not None:
            return chosen.network.rule()
        name, where = best_rule(start.scenario)
        rule = Tuned(name).compiled(replace(start, scenario=where))
        return WithPrefill(rule, 1 + ORDER_CODES[where.order]) if start.scenario.choose_order else rule

    def reset(self, start: EpisodeContext) -> None:
        """Begin an episode."""
        self._rule = self.compiled(start)
        self._rule.begin()

    def act(self, view: View) -> int:
        """The action, by the same code as inside the loop."""
        if self._rule is None:
            raise RuntimeError(f"policy {self.name!r} was asked before reset: call policy.reset(start) first.")
        if not isinstance(view, View):
            raise InvalidViewError(self.name, view)
        return self._rule.decide(view)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
