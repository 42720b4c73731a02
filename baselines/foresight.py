"""A planner for promises: at each choice it tries everything in the true future, for a while."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.rule import Rule
from baselines.shelf import kept_plan
from baselines.tuned import Tuned, best_tuned
from llmsched_env.config import ORDER_CODES
from llmsched_env.core.episode import Block
from llmsched_env.core.layout import OUTPUT
from llmsched_env.core.loops import choose, finished, has_choice
from llmsched_env.core.memory import copy_episode
from llmsched_env.core.noise import forget_truth
from llmsched_env.core.transition import DECODE, PREFILL, advance
from llmsched_env.errors import ConfigError
from llmsched_env.jit import jit
from llmsched_env.policy import CompiledRule, RuleFunction, Start, View, compile_rule
from llmsched_env.simulator import Simulator

__all__ = ["Foresight"]

BASE_ORDER = "late_last"


@jit
def _usual(v: Any, k: Any, rule: Any, parameters: Any, memory: Any, prefill: int) -> int:
    """The rule's action; its prefills are ``prefill``, one order of several, where that is not 0."""
    action = choose(v, k, rule, parameters, memory)
    return action if action == DECODE or prefill == 0 else prefill


@jit
def _lost_by(
    views: Any, states: Any, setups: Any, action: int, rule: Any, parameters: Any, memory: Any, prefill: int,
    until_ns: int,
) -> tuple[int, int]:  # fmt: skip
    """(requests lost, time that requests have spent here) at ``until_ns`` after ``action``, then ``rule``."""
    copy_episode(views, states, setups, 0, 1)
    v, s, k = views[1], states[1], setups[1]
    kept = memory.copy()
    advance(v, s, k, action)
    while v.clock_ns < until_ns and not finished(v, k):
        advance(v, s, k, _usual(v, k, rule, parameters, kept, prefill))
    here = v.waiting + v.active + v.preempted + (1 if v.reading_tokens > 0 else 0)
    return s.lost, s.request_ns + (until_ns - v.clock_ns) * here


@jit
def _plan(
    views: Any, states: Any, setups: Any, rule: Any, parameters: Any, memory: Any, prefill: int, horizon_ns: int,
    plan: Any,
) -> int:  # fmt: skip
    """Write the action at each choice to ``plan``, as far as it goes; returns their number."""
    v, s, k = views[0], states[0], setups[0]
    choices = 0
    while not finished(v, k) and choices < len(plan):
        if not has_choice(v, k):
            advance(v, s, k, DECODE if v.ready == 0 else PREFILL)
            continue
        best = _usual(v, k, rule, parameters, memory, prefill)
        until_ns = v.clock_ns + horizon_ns
        least = _lost_by(views, states, setups, best, rule, parameters, memory, prefill, until_ns)
        usual = best
        # Where orders are actions and all that wait would go, one is as good as another.
        alike = k.cap_levels == 0 and k.mixed_budget == 0 and v.waiting <= v.batch_requests
        for action in range(DECODE if v.active > 0 else PREFILL, k.num_actions):
            if action != usual and (action == DECODE or not alike or (usual == DECODE and action == PREFILL)):
                lost = _lost_by(views, states, setups, action, rule, parameters, memory, prefill, until_ns)
                if lost < least:
                    best, least = action, lost
        plan[choices] = best
        choices += 1
        advance(v, s, k, best)
    return choices


def _next_of_plan(view: Any, parameters: Any, memory: Any) -> Any:
    # parameters: the number of choices, then the action at each. memory: how many are made.
    made = memory[0]
    memory[0] = made + 1
    return int(parameters[1 + made]) if made < parameters[0] else 0


def _as_rule(plan: NDArray[np.int64], function: RuleFunction) -> CompiledRule:
    return CompiledRule(function, np.array([len(plan), *plan], np.float64), np.zeros(1, np.int64))


def _search(simulator: Simulator, rule: CompiledRule, prefill: int, horizon_ns: int) -> NDArray[np.int64]:
    block, lengths = Block(simulator.memory, 2), simulator.instance.requests[:, OUTPUT]
    forget_truth(block.setups[1])  # in which actions are tried
    # More choices than an episode has; where prompts are read token by token or computed again it may end in decodes.
    plan = np.empty(2 * int(lengths.sum(dtype=np.int64)) + 2 * len(lengths), np.int64)
    choices = _plan(
        block.views, block.states, block.setups, rule.function.handle, rule.parameters, rule.memory.copy(),
        prefill, horizon_ns, plan,
    )  # fmt: skip
    return plan[:choices].copy()


def _lost(simulator: Simulator, rule: CompiledRule) -> int:
    trial = simulator.fork()
    trial.run(rule)
    return int(trial.totals.lost)


class Foresight:
    """At each choice, try every action in the true future, arrivals and lengths known, and keep the best.

    What iterations will last it does not know: it tries them by the believed cost model, without noise.

    Each trial goes on under a simple rule until the horizon; what counts is how many counted requests have broken a
    promise by then, and among equals the time that requests have spent in the system. One step of policy improvement
    (Bertsekas) with the truth in hand: not an optimum, but the other end of a score, where 0 is the best tuned rule.

    Args:
        base: the rule that goes on; by default the best tuned one. Where orders are actions its prefills let late ones
            go last.
        horizon_requests: horizon, in times that a mean request takes to decode when all clients are active.
    """

    name = "foresight"
    kind = "planner"
    clairvoyant = True

    def __init__(self, base: Rule | None = None, *, horizon_requests: float = 2.5) -> None:
        if not horizon_requests > 0:
            raise ConfigError(f"horizon_requests = {horizon_requests} is out of range: give a number above 0.")
        self._base = base
        self._horizon_requests = horizon_requests
        self._follow: RuleFunction | None = None

    def compiled(self, start: Start) -> CompiledRule:
        """The plan, as a rule that follows it."""
        if not start.scenario.serving:
            raise ConfigError(f"policy {self.name!r} plans for promises: give ttft_s and tpot_s, or take beam.")
        if start.simulator is None:
            raise ConfigError(f"policy {self.name!r} plans in the simulator: start it with Start(..., simulator=...).")
        where, prefill = start.scenario, 0
        if where.choose_order:
            prefill = PREFILL + ORDER_CODES[BASE_ORDER]
            where = where.replace(choose_order=False, order=BASE_ORDER)
        base = self._base or Tuned(best_tuned(where))
        rule = base.compiled(replace(start, scenario=where))
        cost, clients = start.scenario.believed_model, start.scenario.num_clients
        horizon_ns = round(self._horizon_requests * start.mean_output_tokens * cost.decode_ns(clients))
        simulator, self._follow = start.simulator, self._follow or compile_rule(_next_of_plan)
        follow = self._follow
        if not rule.function.python.__module__.startswith("baselines."):  # whose sources a plan's name does not tell
            return _as_rule(_search(simulator, rule, prefill, horizon_ns), follow)
        numbers = [*rule.parameters.tolist(), *rule.memory.tolist(), prefill, horizon_ns]
        plan = kept_plan(
            simulator,
            f"foresight {rule.function.python.__module__}.{rule.function.python.__qualname__} {numbers}",
            lambda: _search(simulator, rule, prefill, horizon_ns),
            lambda plan: _lost(simulator, _as_rule(plan, follow)),
        )
        return _as_rule(plan, follow)

    def reset(self, start: Start) -> None:
        """Plan the episode."""
        self._rule = self.compiled(start)
        self._kept = self._rule.memory.copy()

    def act(self, view: View) -> int:
        """The plan's action."""
        return int(self._rule.function(view, self._rule.parameters, self._kept))
