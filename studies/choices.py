"""What a rule says at its choices, and what would be right: exactly on small cases, by one step on large ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from llmsched_env.baselines.iteration import prefill_first, threshold
from llmsched_env.baselines.lagrangian import lagrangian, lagrangian_literal, lagrangian_lookahead
from llmsched_env.baselines.planners import Beam, Rollout
from llmsched_env.baselines.rule import Rule
from llmsched_env.baselines.tuned import tuned_value
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.engine.codes import OUTPUT, PROMPT
from llmsched_env.evaluation import evaluate
from llmsched_env.evaluation.rollout import play, start
from llmsched_env.offline import QueueOptimum
from llmsched_env.policy import Action
from llmsched_env.simulator import Simulator
from llmsched_env.workload import GammaWorkload, Requests

__all__ = [
    "BETTER",
    "CLIENTS",
    "DECODE",
    "EVEN",
    "LEVEL",
    "LOOKAHEAD_TUNED",
    "PREFILL",
    "REQUESTS",
    "THRESHOLD_TUNED",
    "TUNED",
    "USUAL",
    "exact",
    "one_step",
]

CLIENTS, REQUESTS = 4, 20
"""Of the small cases."""

TRAINING_CASES = 20
MULTIPLIERS = (0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)

WIDE_BEAM_CLIENTS = 200
"""Most clients for the beam search that scores are measured against; above, one of width 1, which takes seconds."""

USUAL, TUNED, LOOKAHEAD_TUNED, THRESHOLD_TUNED = "λ = 1", "λ tuned", "lookahead, λ tuned", "threshold tuned"

PREFILL, DECODE, LEVEL = range(3)
"""What is right, the first index of counts; the second is what was said, a prefill or a decode."""

Counts = list[list[int]]

BETTER, EVEN, WORSE = range(3)
"""What the other action does, the second index of counts; the first is what was said, a prefill or a decode."""


def exact(
    order: str, cost: str, prompt_mean_tokens: float, output_mean_tokens: float, spread: float, cases: int
) -> dict[str, Any]:
    """What rules say on small cases of one gamma law, against the optimum.

    Args:
        order: of the shared queue.
        cost: preset.
        prompt_mean_tokens: mean prompt; the standard deviation is in proportion to that of GSM8K.
        output_mean_tokens: mean output.
        spread: standard deviation over mean of the output.
        cases: of the test split. What is tuned is tuned on training cases of the same law.

    Returns:
        ``cell`` (the arguments), ``chosen`` (the tuned numbers), and ``rules``, for each of which there are

        - ``counts`` and ``best_way`` (cases, 3, 2): choices on its own way, and on that of a best schedule, by what is
          right and what it says;
        - ``loss`` (cases, 2): what its wrong prefills and its wrong decodes cost, in % of the shortest makespan;
        - ``first`` (cases,): what the first wrong one costs;
        - ``prefills`` (cases, 2): all, and those that came one decode later than need be.
    """
    usual = GammaWorkload()
    law = GammaWorkload(
        num_requests=REQUESTS,
        prompt_mean_tokens=prompt_mean_tokens,
        prompt_sd_tokens=prompt_mean_tokens * usual.prompt_sd_tokens / usual.prompt_mean_tokens,
        output_mean_tokens=output_mean_tokens,
        output_sd_tokens=output_mean_tokens * spread,
    )
    scenario = Scenario(workload=law, split="test", num_clients=CLIENTS, cost=cost, queue="shared").replace(order=order)
    chosen = {
        TUNED: _chosen(lagrangian, MULTIPLIERS, scenario),
        LOOKAHEAD_TUNED: _chosen(lagrangian_lookahead, MULTIPLIERS, scenario),
        THRESHOLD_TUNED: _chosen(_threshold, range(1, CLIENTS + 1), scenario),
    }
    rules = {
        USUAL: lagrangian(),
        TUNED: lagrangian(chosen[TUNED]),
        "lookahead, λ = 1": lagrangian_lookahead(),
        LOOKAHEAD_TUNED: lagrangian_lookahead(chosen[LOOKAHEAD_TUNED]),
        "literal, λ = 1": lagrangian_literal(),
        THRESHOLD_TUNED: _threshold(chosen[THRESHOLD_TUNED]),
        "prefill-first": prefill_first(),
    }
    found: dict[str, dict[str, list[Any]]] = {name: {} for name in rules}
    for case in range(cases):
        simulator = Simulator(build_problem(scenario, case))
        in_order = simulator.problem.requests
        optimum = QueueOptimum(Requests.of(in_order[:, PROMPT], in_order[:, OUTPUT]), CLIENTS, cost)
        best_way = on_the_best_way(rules, scenario, simulator, optimum)
        for name, rule in rules.items():
            row = against_the_optimum(rule, scenario, simulator, optimum)
            _enter(found[name], row | {"best_way": best_way[name]})
    cell = {"order": order, "cost": cost, "prompt": prompt_mean_tokens, "mean": output_mean_tokens, "spread": spread}
    return {"cell": cell, "chosen": chosen, "rules": found}


def _threshold(idle_clients: float) -> Rule:
    return threshold(int(idle_clients))


def _chosen(make: Callable[[float], Rule], values: Sequence[float], scenario: Scenario) -> float:
    """The number with the least mean makespan on training cases; the first one on ties."""
    train = scenario.replace(split="train")
    means = [evaluate(make(value), train, TRAINING_CASES).estimate("makespan_s").mean for value in values]
    return float(values[int(np.argmin(means))])


def _enter(columns: dict[str, list[Any]], row: dict[str, Any]) -> None:
    for key, value in row.items():
        columns.setdefault(key, []).append(value)


def _choices(simulator: Simulator) -> Iterator[None]:
    """Stop at each choice up to the end; the caller takes the step there."""
    while not simulator.done:
        if simulator.has_choice:
            yield
        else:
            simulator.step(int(simulator.can_prefill))


def charges_ns(simulator: Simulator, optimum: QueueOptimum) -> tuple[int, int]:
    """Least charges to the end after a decode and after a prefill, at a choice."""
    emitted = simulator.emitted[simulator.problem.request_of]
    left = simulator.problem.requests[:, OUTPUT] - emitted
    position = int(np.count_nonzero(emitted))
    running = tuple(np.sort(left[(emitted > 0) & (left > 0)]).tolist())
    return optimum.decode_ns(position, running), optimum.prefill_ns(position, running)


def against_the_optimum(rule: Rule, scenario: Scenario, simulator: Simulator, optimum: QueueOptimum) -> dict[str, Any]:
    """One case of :func:`exact` on the rule's own way."""
    simulator.reset()
    rule.reset(start(rule, scenario, simulator, 0))
    counts, lost_ns, first_ns = np.zeros((3, 2), np.int64), [0, 0], 0
    late = _Late()
    for _ in _choices(simulator):
        said, charges = rule.act(simulator.view), charges_ns(simulator, optimum)
        counts[_right(charges), 1 - said] += 1
        regret_ns = charges[said] - min(charges)
        lost_ns[1 - said] += regret_ns
        first_ns = first_ns or regret_ns
        late.note(simulator, said)
        simulator.step(said)
    prefills = [int(simulator.view.prefills), late.prefills]
    percent = 100.0 / optimum.makespan_ns
    return {
        "counts": counts.tolist(),
        "loss": [percent * lost for lost in lost_ns],
        "first": percent * first_ns,
        "prefills": prefills,
    }


def on_the_best_way(
    rules: dict[str, Rule], scenario: Scenario, simulator: Simulator, optimum: QueueOptimum
) -> dict[str, Counts]:
    """What rules say on the way of a shortest schedule, by what is right; where both actions are, it prefills."""
    simulator.reset()
    for rule in rules.values():
        rule.reset(start(rule, scenario, simulator, 0))
    counts = {name: np.zeros((3, 2), np.int64) for name in rules}
    for _ in _choices(simulator):
        charges = charges_ns(simulator, optimum)
        for name, rule in rules.items():
            counts[name][_right(charges), 1 - rule.act(simulator.view)] += 1
        simulator.step(int(charges[Action.PREFILL] <= charges[Action.DECODE]))
    return {name: count.tolist() for name, count in counts.items()}


def _right(charges: tuple[int, int]) -> int:
    after_decode, after_prefill = charges
    if after_decode == after_prefill:
        return LEVEL
    return PREFILL if after_prefill < after_decode else DECODE


class _Late:
    """Counts prefills that could have come one decode before: there was a choice, and as many clients were idle.

    In a shared queue no schedule is made longer by that (llmsched_env/offline/queue_optimum.py).
    """

    def __init__(self) -> None:
        self.prefills = 0
        self._before = -1, -1  # decodes and idle clients when a decode was last said

    def note(self, simulator: Simulator, said: int) -> None:
        """Take notice of what is said at a choice."""
        view = simulator.view
        if said == Action.DECODE:
            self._before = int(view.decodes), int(view.idle)
        else:
            self.prefills += int(self._before == (view.decodes - 1, view.idle))


def one_step(workload: str, clients: int, order: str, cases: int) -> dict[str, Any]:
    """What the other action would do at each choice of a rule on large cases, and what planners make of it.

    Args:
        workload: whose cases, with requests in proportion to the clients.
        clients: J.
        order: of the shared queue.
        cases: of the test split.

    Returns:
        ``size`` (the arguments), ``multiplier`` (the tuned one), and ``rules``, for each of which there are

        - ``counts`` (cases, 2, 3): choices by what it says, and what the other action does if it goes on from there;
        - ``single``, ``rollout``, ``planned`` (cases,): what is saved by the best single change, by taking the better
          action each time (the planner `rollout`) and by the plan of a beam search, in % of the rule's makespan;
        - ``plan`` (cases, 2, 2): choices on the way of that plan, by what it does and what the rule says;
        - ``prefills`` (cases, 2): as :func:`exact`.
    """
    requests = None if clients == 200 else max(1, round(1319 * clients / 200))
    scenario = Scenario(
        workload=workload, split="test", num_clients=clients, num_requests=requests, queue="shared"
    ).replace(order=order)
    (multiplier,) = tuned_value("lagrangian_tuned", scenario).values
    rules = {USUAL: lagrangian(), TUNED: lagrangian(multiplier)}
    found: dict[str, dict[str, list[Any]]] = {name: {} for name in rules}
    for case in range(cases):
        simulator = Simulator(build_problem(scenario, case))
        planned_ns, plans = on_the_plan(rules, scenario, simulator)
        for name, rule in rules.items():
            end_ns, row = other_actions(rule, scenario, simulator)
            rollout_ns = int(play(Rollout(rule), scenario, case).view.clock_ns)
            row |= {"rollout": _saved(rollout_ns, end_ns), "planned": _saved(planned_ns, end_ns), "plan": plans[name]}
            _enter(found[name], row)
    size = {"workload": workload, "clients": clients, "order": order}
    return {"size": size, "multiplier": multiplier, "rules": found}


def _saved(other_ns: int, end_ns: int) -> float:
    return 100.0 * (1.0 - other_ns / end_ns)


def other_actions(rule: Rule, scenario: Scenario, simulator: Simulator) -> tuple[int, dict[str, Any]]:
    """The rule's makespan, and what the other action would do at each of its choices."""
    simulator.reset()
    told = start(rule, scenario, simulator, 0)
    rule.reset(told)
    compiled, twin = rule.compiled(told), simulator.fork()
    others: list[tuple[int, int]] = []
    late = _Late()
    for _ in _choices(simulator):
        said = rule.act(simulator.view)
        twin.restore(simulator)
        twin.step(1 - said)
        twin.run(compiled)
        others.append((said, int(twin.view.clock_ns)))
        late.note(simulator, said)
        simulator.step(said)
    end_ns = int(simulator.view.clock_ns)
    counts = np.zeros((2, 3), np.int64)
    for said, other_ns in others:
        counts[1 - said, BETTER if other_ns < end_ns else EVEN if other_ns == end_ns else WORSE] += 1
    best_ns = min([end_ns, *(other_ns for _, other_ns in others)])
    row = {
        "counts": counts.tolist(),
        "single": _saved(best_ns, end_ns),
        "prefills": [int(simulator.view.prefills), late.prefills],
    }
    return end_ns, row


def on_the_plan(rules: dict[str, Rule], scenario: Scenario, simulator: Simulator) -> tuple[int, dict[str, Counts]]:
    """The makespan of a beam search's plan, and what the rules say on its way."""
    simulator.reset()
    plan = Beam() if scenario.num_clients <= WIDE_BEAM_CLIENTS else Beam(1, rounds=1)
    plan.reset(start(plan, scenario, simulator, 0))
    for rule in rules.values():
        rule.reset(start(rule, scenario, simulator, 0))
    counts = {name: np.zeros((2, 2), np.int64) for name in rules}
    for _ in _choices(simulator):
        planned = plan.act(simulator.view)
        for name, rule in rules.items():
            counts[name][1 - planned, 1 - rule.act(simulator.view)] += 1
        simulator.step(planned)
    return int(simulator.view.clock_ns), {name: count.tolist() for name, count in counts.items()}
