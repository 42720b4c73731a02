"""The simulator's side of a comparison with a real engine: the same requests under the same policy, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llmsched_env.config import Scenario
from llmsched_env.engine.view import FIELDS
from llmsched_env.engines.driver import policy_for
from llmsched_env.policy import EpisodeContext, View
from llmsched_env.problem import Problem
from llmsched_env.simulator import Simulator
from llmsched_env.workload import Requests

Row = tuple[int, int, int]  # arrival in ns, prompt tokens, output tokens


def simulator(scenario: Scenario, requests: Sequence[Row], mean: float) -> Simulator:
    """An episode of these requests, whose lengths are shown as the scenario says."""
    released, prompts, outputs = (list(column) for column in zip(*requests, strict=True))
    estimates = outputs if scenario.lengths == "known" else [max(1, round(mean))] * len(outputs)
    problem = Problem.build(
        Requests.of(prompts, outputs, release_ns=released, mean_output_tokens=mean),
        np.array(estimates, np.int32),
        scenario.cost_model,
        scenario.num_clients,
        client_of=None,
        order=scenario.order,
        stealing=False,
        bound_ns=1,
        mechanisms=scenario.mechanisms(0, len(outputs)),
    )
    return Simulator(problem, record=True)


def fields(view: View) -> dict[str, Any]:
    """What a view says. Two fields may be any number that is small enough where nobody waits, or none is expected."""
    told = {name: getattr(view, name) for name in FIELDS}
    if not told["waiting"]:
        told["oldest_release_ns"] = 0
    told["last_due"] = max(told["last_due"], told["decodes"])
    return told


def played(
    policy: str, parameters: Sequence[Any], scenario: Scenario, requests: Sequence[Row], mean: float
) -> Iterator[tuple[int, dict[str, Any], Simulator]]:
    """Each iteration: its action, and the view before it; then the simulator stands after it."""
    decides, scenario = policy_for(policy, scenario, parameters)
    decides.reset(EpisodeContext(scenario, mean))
    run = simulator(scenario, requests, mean)
    while not run.done:
        action = int(decides.act(run.view)) if run.has_choice else int(run.can_prefill)
        if action == 0 and not run.can_decode:
            action = 1
        before = fields(run.view)
        run.step(action)
        yield action, before, run
