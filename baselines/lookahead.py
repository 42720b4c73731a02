"""A planner for SLOs: at each choice it tries everything in the true future, for a while."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines.plan_cache import cached_plan
from llmsched_env.baselines.rule import Rule, settings
from llmsched_env.baselines.tuned import Tuned, best_tuned
from llmsched_env.config import ORDER_CODES
from llmsched_env.engine import lookahead as search
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.plans import FollowActions
from llmsched_env.engine.rule import PythonRule
from llmsched_env.engine.rule import Rule as EngineRule
from llmsched_env.errors import ConfigError
from llmsched_env.policy import EpisodeContext, View
from llmsched_env.simulator import Simulator

__all__ = ["Lookahead"]

BASE_ORDER = "late_last"


def _search(simulator: Simulator, rule: EngineRule, prefill: int, horizon_ns: int) -> NDArray[np.int64]:
    episode = simulator.problem.episode()
    episode.restart(simulator.episode)
    return np.array(search.Lookahead(episode, _tried_in(simulator), rule, prefill, horizon_ns).plan(), np.int64)


def _tried_in(simulator: Simulator) -> Episode:
    """An episode of the world as it is believed to be."""
    return simulator.problem.believed.episode()


def _violations(simulator: Simulator, plan: NDArray[np.int64]) -> int:
    trial = simulator.fork()
    trial.run(FollowActions(plan))
    return int(trial.totals.violations)


class Lookahead:
    """At each choice, try every action in the true future, arrivals and lengths known, and keep the best.

    What iterations will last it does not know: it tries them by the believed cost model, without noise.

    Each trial goes on under a simple rule until the horizon; what counts is how many counted requests have violated an
    SLO by then, and among equals the time that requests have spent in the system. One step of policy improvement
    (Bertsekas) with the truth in hand: not an optimum, but the other end of a score, where 0 is the best tuned rule.

    Args:
        base: the rule that goes on; by default the best tuned one. Where orders are actions its prefills let late ones
            go last.
        horizon_requests: horizon, in times that a mean request takes to decode when all clients are active.
    """

    name = "lookahead"
    kind = "planner"
    clairvoyant = True

    def __init__(self, base: Rule | None = None, *, horizon_requests: float = 2.5) -> None:
        if not horizon_requests > 0:
            raise ConfigError(f"horizon_requests = {horizon_requests} is out of range: give a number above 0.")
        self._base = base
        self._horizon_requests = horizon_requests

    def compiled(self, start: EpisodeContext) -> EngineRule:
        """The plan, as a rule that follows it."""
        if not start.scenario.serving:
            raise ConfigError(f"policy {self.name!r} plans for SLOs: give ttft_s and tpot_s, or take beam.")
        if start.simulator is None:
            raise ConfigError(
                f"policy {self.name!r} plans in the simulator: start it with EpisodeContext(..., simulator=...)."
            )
        where, prefill = start.scenario, 0
        if where.choose_order:
            prefill = 1 + ORDER_CODES[BASE_ORDER]
            where = where.replace(choose_order=False, order=BASE_ORDER)
        base = self._base or Tuned(best_tuned(where))
        rule = base.compiled(replace(start, scenario=where))
        cost, clients = start.scenario.believed_model, start.scenario.num_clients
        horizon_ns = round(self._horizon_requests * start.mean_output_tokens * cost.decode_ns(clients))
        simulator = start.simulator
        if isinstance(rule, PythonRule) or not type(rule).__module__.startswith(
            "llmsched_env."
        ):  # whose sources a plan's name does not tell
            return FollowActions(_search(simulator, rule, prefill, horizon_ns))
        plan = cached_plan(
            simulator,
            f"lookahead {settings(rule)} {prefill} {horizon_ns}",
            lambda: _search(simulator, rule, prefill, horizon_ns),
            lambda plan: _violations(simulator, plan),
        )
        return FollowActions(plan)

    def reset(self, start: EpisodeContext) -> None:
        """Plan the episode."""
        self._rule = self.compiled(start)

    def act(self, view: View) -> int:
        """The plan's action."""
        return self._rule.decide(view)
