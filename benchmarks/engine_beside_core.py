"""The engine beside the core in one process: whole episodes under the threshold rule, in CPU time.

``python benchmarks/engine_beside_core.py``. Both play the same sixteen cases by turns; makespans must agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from llmsched_env.config import Scenario
from llmsched_env.engine.costs import Costs
from llmsched_env.engine.episode import Episode
from llmsched_env.engine.problem import Problem
from llmsched_env.engine.rule import Threshold
from llmsched_env.instances import instance
from llmsched_env.policy import CompiledRule, compile_rule
from llmsched_env.simulator import Simulator

CASES, REPEATS, COUNT = 16, 12, 14
QUEUES = {
    "shared queue, FCFS": {"queue": "shared", "order": "fcfs"},
    "shared queue, longest first": {"queue": "shared"},
    "client queues with stealing": {"assignment": "lpt"},
}


def _threshold(view: Any, parameters: Any, memory: Any) -> int:
    return 1 if view.ready >= parameters[0] else 0


def _episode(scenario: Scenario, case: int) -> Episode:
    made = instance(scenario, case)
    costs = Costs(scenario.cost_model)
    clients, shared = scenario.num_clients, scenario.queue == "shared"
    problem = Problem(
        made.requests,
        made.release_ns,
        made.request_of,
        clients,
        shared=shared,
        stealing=not shared,
        ranking=None,
        actions=[(0, 0, clients), (1, 0, clients)],
        believed=costs,
        actual=costs,
        token_cap=scenario.cost_model.prefill_token_cap,
        mean_output_tokens=300.0,
        reward=0,
        reward_scale=1.0,
        affine=True,
        bound_ns=made.bound_ns,
    )
    return Episode(problem)


def _core(simulators: list[Simulator], rule: CompiledRule) -> int:
    for simulator in simulators:
        simulator.reset()
        simulator.run(rule)
    return sum(int(one.view.prefills + one.view.decodes) for one in simulators)


def _engine(pairs: list[tuple[Episode, Episode]], rule: Threshold) -> int:
    for episode, start in pairs:
        episode.restart(start)
    return sum(episode.run(rule) for episode, _ in pairs)


def _rate(play: Callable[..., int], *arguments: object) -> float:
    """Iterations a second of CPU time, in millions."""
    begin = time.process_time()
    iterations = play(*arguments)
    return iterations / (time.process_time() - begin) / 1e6


def main() -> None:
    """Print a line for each kind of case."""
    rule = CompiledRule(compile_rule(_threshold), np.array([float(COUNT)]), np.zeros(1, np.int64))
    lazy, eager = Threshold(COUNT), Threshold(COUNT)
    eager.reads_forecast = True
    for workload in ("gsm8k", "gsm8k-smooth"):
        for label, queue in QUEUES.items():
            scenario = Scenario(workload, "test", **queue)
            simulators = [Simulator(instance(scenario, case)) for case in range(CASES)]
            pairs = [(_episode(scenario, case), _episode(scenario, case)) for case in range(CASES)]
            rates = {"core": 0.0, "engine": 0.0, "engine, with the forecast": 0.0}
            for _ in range(REPEATS):
                for name, play, *arguments in (
                    ("core", _core, simulators, rule),
                    ("engine", _engine, pairs, lazy),
                    ("engine, with the forecast", _engine, pairs, eager),
                ):
                    rates[name] = max(rates[name], _rate(play, *arguments))
            clocks = [[int(one.view.clock_ns) for one in both] for both in (simulators, [one for one, _ in pairs])]
            assert clocks[0] == clocks[1], "the core and the engine do not agree"
            shown = ", ".join(f"{name} {rate:.1f} ({rate / rates['core']:.2f}×)" for name, rate in rates.items())
            print(f"{workload}, {label}: {shown} M iterations/s", flush=True)


if __name__ == "__main__":
    main()
