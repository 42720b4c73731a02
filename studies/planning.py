"""Study: how wrong may lengths be before planning the whole batch stops to pay?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines.registry import entry
from llmsched_env.cases import ROUGH, build_problem, estimates
from llmsched_env.config import Scenario
from llmsched_env.engine import codes
from llmsched_env.evaluation import Estimate, mean_estimate, play
from llmsched_env.evaluation.drawing import LINES, label_at_right, new_figure, plain, save
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint import JointPlan, stored_plan
from llmsched_env.simulator import Simulator
from llmsched_env.studies.live_plan import MOVES, LivePlan
from llmsched_env.studies.study import Found, Job, Options, Study
from llmsched_env.studies.tables import Table
from llmsched_env.studies.uncertain_runs import RelativeError, place
from llmsched_env.workload import Requests

__all__ = ["STUDY"]

WORKLOADS = ("gsm8k", "gsm8k-smooth")
ERRORS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Coefficients of variation of estimate / length."""

SHARED: dict[str, Any] = {"queue": "shared", "order": "longest_first"}
FOLLOWED, AGAIN = "joint plan, followed", "joint plan, made again at each prefill"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "one queue, tuned rule": ("tuned_threshold", SHARED),
    "one queue, agent": ("agent", SHARED),
    "one queue, beam that knows the lengths": ("beam", SHARED),
    "LPT queues, agent": ("agent", {"assignment": "lpt"}),
    "hybrid": ("lagrangian", {"assignment": "mip"}),
}
"""Policies, and what they change of the scenario. All orders, queues and plans are made of estimates."""

SHOWN = (FOLLOWED, AGAIN, *METHODS)

Gaps = dict[str, float]


def by_case(workload_name: str, error: float, case: int, seed: int, clients: int = 200) -> Gaps:
    """A job: gap to LB1 by method in one test case, as a fraction."""
    told: dict[str, Any] = {} if error == 0 else {"lengths": "predicted", "predictor": RelativeError(error, seed)}
    where = place(workload_name, clients, **told)
    shared = where.replace(**SHARED)
    ended = {
        name: play(row.policy, row.scenario, case)
        for name, (policy, changes) in METHODS.items()
        for row in [entry(policy, where.replace(**changes))]
    }
    believed, plan = _plan(shared, case)
    for name, moves in {FOLLOWED: 0, AGAIN: MOVES}.items():
        ended[name] = carried_out(Simulator(build_problem(shared, case)), LivePlan(believed, plan, moves=moves))
    return {name: int(ended[name].view.clock_ns) / ended[name].problem.lb1_ns - 1.0 for name in SHOWN}


def _plan(scenario: Scenario, case: int) -> tuple[Case, JointPlan]:
    """The case as it is believed to be, and its joint plan."""
    requests = scenario.source.requests(scenario.split, case, num_requests=scenario.num_requests)
    guess = estimates(scenario, case, requests)
    shown = Requests.of(requests.prompt_tokens, guess, mean_output_tokens=requests.mean_output_tokens)
    clients, cost = scenario.num_clients, scenario.cost_model
    effort = None if scenario.lengths == "known" else ROUGH
    return Case.of(shown, clients, cost), stored_plan(shown, clients, cost, effort=effort)


def carried_out(simulator: Simulator, live: LivePlan) -> Simulator:
    """The episode to its end by a live plan."""
    true = np.empty(simulator.problem.num_requests, np.int64)
    true[simulator.problem.request_of] = simulator.problem.requests[:, codes.OUTPUT]
    while not simulator.done:
        view = simulator.view
        due = live.due is None or view.decodes >= live.due
        if not simulator.can_prefill or (simulator.can_decode and not due):
            simulator.step(codes.DECODE)
            continue
        emitted = simulator.emitted
        running = np.flatnonzero((emitted > 0) & (emitted < true))
        left = np.maximum(live.case.decodes[running] + 1 - emitted[running], 1)
        sequence = live.prefill(int(view.decodes), simulator.waiting, left)
        simulator = simulator.fork(sequence=sequence)
        simulator.step(codes.PREFILL)
    return simulator


def jobs(options: Options) -> list[Job]:
    """A job for each set of lengths, error and case."""
    return [
        Job(
            f"{name}/{error:g}/{case}",
            by_case,
            {
                "workload_name": name,
                "error": error,
                "case": case,
                "seed": options.seed,
                "clients": options.clients[0],
            },
        )
        for name in WORKLOADS
        for error in ERRORS
        for case in range(options.cases)
    ]


def _gaps(found: Found, workload: str, error: float) -> dict[str, NDArray[np.float64]]:
    """(cases,) gaps in percent by method."""
    rows: list[Gaps] = [value for name, value in found.items() if name.startswith(f"{workload}/{error:g}/")]
    return {name: 100 * np.array([row[name] for row in rows]) for name in SHOWN}


def _shown(found: Estimate) -> str:
    half = "" if np.isnan(found.low) else f" ± {(found.high - found.low) / 2:.2f}"
    return f"{found.mean:.2f}{half}"


def tables(found: Found) -> list[Table]:
    """The gap by error and method."""
    rows = []
    for workload, error in itertools.product(WORKLOADS, ERRORS):
        gaps = _gaps(found, workload, error)
        rows.append([workload, f"{100 * error:g} %", *(_shown(mean_estimate(gaps[name])) for name in SHOWN)])
    title = "Gap to LB1 in %, mean and 95 % interval over test cases, by the relative error of output lengths."
    return [Table("gaps", title, ["lengths", "error", *SHOWN], rows)]


def short(found: Mapping[str, Table]) -> Table:
    """The errors at which something changes."""
    whole = found["gaps"]
    kept = {f"{100 * error:g} %" for error in (0.0, 0.003, 0.01, 0.03, 0.1, 1.0)}
    return Table(whole.name, whole.title, whole.header, [row for row in whole.rows if row[1] in kept])


def draw(found: Found, path: Path) -> Path:
    """Gap by error, one panel a set of lengths; errors of 0 stand at the left end."""
    height = 4.4
    figure = new_figure(11.0, height)
    panels: Sequence[Any] = figure.subplots(1, len(WORKLOADS), sharey=True)
    at = np.arange(len(ERRORS))
    for axes, workload in zip(panels, WORKLOADS, strict=True):
        axes.set_yscale("log")
        ends = []
        for number, name in enumerate(SHOWN):
            colour, line = LINES[number % len(LINES)], "-" if number < len(LINES) else "--"
            means = [float(_gaps(found, workload, error)[name].mean()) for error in ERRORS]
            axes.plot(at, means, line, color=colour, linewidth=1.4, marker=".")
            ends.append((name, colour, float(at[-1]), means[-1]))
        axes.set_xticks(at, [f"{100 * error:g}" for error in ERRORS])
        axes.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
        axes.set_xlabel("relative error of output lengths, %", fontsize=8)
        axes.set_title(workload, fontsize=9, loc="left")
        plain(axes)
        if axes is panels[-1]:
            label_at_right(axes, ends, height)
    panels[0].set_ylabel("gap to LB1, %", fontsize=8)
    return save(figure, path)


STUDY = Study(
    name="planning",
    question="How wrong may lengths be before planning stops to pay?",
    jobs=jobs,
    tables=tables,
    short=short,
    draw=draw,
)
