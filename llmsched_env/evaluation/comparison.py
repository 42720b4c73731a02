"""Many policies on the same cases: paired, with intervals, decision times and scores."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cases import Offered, offered
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.parameters import parameters_of, written
from llmsched_env.evaluation.rollout import Evaluation, decision_times, evaluate
from llmsched_env.evaluation.statistics import Estimate, mean_estimate, score_estimate
from llmsched_env.evaluation.tables import grid, interval, knows
from llmsched_env.policy import Policy

__all__ = ["Comparison", "Contestant", "Row", "compare"]

UNSHOWN = re.compile(r"[|\x00-\x1f\x7f]")
"""What breaks the line of a table."""

NO_RATE = Offered(None, None)
NO_SCORE = Estimate(float("nan"), float("nan"), float("nan"))

JSON_METRICS = ("makespan_s", "utilization", "gap_to_bound", "prefills", "decodes")
SLO_METRICS = (
    "goodput",
    "ttft_s",
    "ttft_p99_s",
    "tpot_s",
    "tpot_p99_s",
    "worst_token_gap_s",
    "longest_wait_s",
    "served_requests_per_s",
)
PACKAGES = ("llmsched-env", "gymnasium", "numpy", "pulp", "highspy", "scipy")


class Contestant(Protocol):
    """A policy under a name, in the scenario with the queues that it brings."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    @property
    def kind(self) -> str:
        """ "method", "rule", "planner" or "agent"."""
        ...

    @property
    def policy(self) -> Policy:
        """What decides."""
        ...

    @property
    def scenario(self) -> Scenario:
        """Where."""
        ...

    @property
    def text(self) -> str:
        """One line about it, or nothing."""
        ...


@dataclass(frozen=True)
class Row:
    """One policy's results.

    Attributes:
        name: as given.
        kind: as given.
        text: as given.
        clairvoyant: whether policy or queues used true lengths.
        evaluation: its episodes.
        decision_ns: (decisions,) how long single decisions took, from Python.
        score: (rule - policy) / (rule - planner) of the means of the scenario's objective, on its own queues.
        fixed_order_score: the same with a planner that picks iterations only; NaN where no other scores 1.
        parameters: of a rule: what it decides by, as `llmsched_env.evaluation.parameters.parameters_of` has it.
    """

    name: str
    kind: str
    text: str
    clairvoyant: bool
    evaluation: Evaluation
    decision_ns: NDArray[np.int64]
    score: Estimate
    fixed_order_score: Estimate = NO_SCORE
    parameters: Mapping[str, float] = field(default_factory=dict)

    def estimate(self, metric: str) -> Estimate:
        """Mean and interval of a metric."""
        return self.evaluation.estimate(metric)

    def decision_us(self) -> dict[str, float | None]:
        """p50, p99 and maximum in microseconds; null where the policy never had a choice."""
        if not len(self.decision_ns):
            return {"p50": None, "p99": None, "max": None}
        p50, p99, most = np.quantile(self.decision_ns / 1e3, [0.5, 0.99, 1.0])
        return {"p50": float(p50), "p99": float(p99), "max": float(most)}


@dataclass(frozen=True)
class Comparison:
    """The results of several policies on the same cases.

    Attributes:
        scenario_id: what the scenario is called.
        scenario: it.
        cases: (cases,) case numbers.
        seed: of the policies that draw random numbers.
        rows: in the order given.
        reference: name of the rule that scores 0.
        planner: name of the planner that scores 1.
        fixed_order: name of the planner that scores 1 with the order of requests fixed, where that is another one.
        ends: what these two reached, of the scenario's objective.
        offered: with SLOs, rate of arrivals and load, as means over the cases.
    """

    scenario_id: str
    scenario: Scenario
    cases: NDArray[np.int64]
    seed: int
    rows: Sequence[Row]
    reference: str | None
    planner: str | None
    fixed_order: str | None = None
    ends: tuple[Estimate, Estimate] | None = None
    offered: Offered = NO_RATE

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            KeyError: there is none.
        """
        return {row.name: row for row in self.rows}[name]

    def behind(self, name: str, ahead: str) -> Estimate:
        """How far one policy is behind another in the same cases: above 0 where ``ahead`` is better.

        Of the gap to the bound, or with SLOs of goodput; the interval is that of the paired differences.

        Raises:
            KeyError: no such row.
        """
        metric, sign = ("goodput", -1.0) if self.scenario.serving else ("gap_to_bound", 1.0)
        ours, theirs = (self.row(one).evaluation.columns[metric] for one in (name, ahead))
        return mean_estimate(sign * (ours - theirs))

    def __str__(self) -> str:
        """A table of all policies in the order given: the objective, and how far each is behind the first one."""
        first = self.rows[0].name
        objective, what = ("goodput", "goodput %") if self.scenario.serving else ("gap_to_bound", "gap to bound %")
        scored = self.reference is not None
        body = []
        for row in self.rows:
            behind = "–" if row.name == first else interval(self.behind(row.name, first), 100)
            known = [row.name, written(row.parameters) or "–", knows(row.clairvoyant)]
            cells = [*known, interval(row.estimate(objective), 100), behind]
            body.append([*cells, interval(row.score)] if scored else cells)
        header = ["policy", "parameters", "knows", f"{what} [95 % CI]", f"behind {first}, points", "score [95 % CI]"]
        return grid(header if scored else header[:-1], body)

    def about(self, case: int | None = None) -> str:
        """Scenario and cases, or one of them, for a picture's title."""
        if case is not None:
            return f"{self.scenario_id}, {self.scenario.split} case {case}"
        first, last, n = self.cases.min(), self.cases.max(), len(self.cases)
        several = f"cases {first} to {last}" if last - first == n - 1 else f"{n} cases"
        return f"{self.scenario_id}, {self.scenario.split} {several if n > 1 else f'case {first}'}"

    def arrivals(self) -> str:
        """How fast requests come, in words: what the scenario fixes, and beside it what that amounts to."""
        rate, load = self.offered
        as_rate = "" if rate is None else f"{rate:.4g} requests/s"
        as_load = "" if load is None else f"load {load:.3g}"
        if self.scenario.load is not None:
            return f"{as_load} ({as_rate})"
        if self.scenario.requests_per_s is not None:
            return f"{as_rate} ({as_load})" if as_load else as_rate
        told = ", ".join(filter(None, (as_rate, as_load))) or "all at once"
        return f"the workload's own times ({told})"

    @property
    def bound_s(self) -> float:
        """Mean over the cases of the best lower bound that holds."""
        return float(self.rows[0].evaluation.columns["bound_s"].mean())

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain JSON values."""
        metrics = (*JSON_METRICS, *SLO_METRICS) if self.scenario.serving else JSON_METRICS
        return {
            "scenario": self.scenario_id,
            "split": self.scenario.split,
            "cases": len(self.cases),
            "seed": self.seed,
            "bound_s": {"mean": self.bound_s},
            **(self.offered._asdict() if self.scenario.serving else {}),
            "score_reference": self.reference,
            "score_planner": self.planner,
            **({} if self.fixed_order is None else {"score_fixed_order_planner": self.fixed_order}),
            "policies": {
                row.name: {
                    "kind": row.kind,
                    "clairvoyant": row.clairvoyant,
                    "parameters": dict(row.parameters),
                    **{metric: row.estimate(metric).as_json() for metric in metrics},
                    "score": row.score.as_json(),
                    **({} if self.fixed_order is None else {"fixed_order_score": row.fixed_order_score.as_json()}),
                    "decision_us": row.decision_us(),
                }
                for row in self.rows
            },
        }

    def provenance(self) -> dict[str, Any]:
        """What it takes to repeat this: scenario, cases, versions, machine."""
        return {
            "scenario": self.scenario_id,
            "arguments": self.scenario.describe(),
            "cases": self.cases.tolist(),
            "seed": self.seed,
            "python": sys.version.split()[0],
            "packages": {name: version(name) for name in PACKAGES},
            "machine": platform.machine(),
        }


def compare(
    contestants: Sequence[Contestant],
    scenario_id: str,
    scenario: Scenario,
    cases: NDArray[np.int64],
    *,
    reference: Contestant | None,
    planner: Contestant | None,
    fixed_order: Contestant | None = None,
    seed: int = 0,
    progress: Callable[[str, int], Any] | None = None,
    workers: int = 1,
    engine: str = "loky",
    folder: Path | str | None = None,
    timed: bool = True,
) -> Comparison:
    """Run every contestant on the same cases.

    Args:
        contestants: the rows, in order. ``reference`` and ``planner`` are run too, and shown where they are among them.
        scenario_id: what the scenario is called.
        scenario: the scenario that they are compared in.
        cases: case numbers.
        reference: the rule that scores 0, tuned on other cases.
        planner: what scores 1. Without one of the two there are no scores.
        fixed_order: what scores 1 in a second column, where the planner also orders the requests.
        seed: for policies that draw random numbers.
        progress: called with a name and a number of cases when they are done.
        workers: processes that share the cases of each contestant, as in `evaluate`; times of single decisions are
            taken in this process.
        engine: what runs them.
        folder: where finished chunks of cases are kept, of all contestants.
        timed: measure how long single decisions take, in an episode more.

    Raises:
        ConfigError: two contestants of one name, or a name that no table can show.
        WorkerError: a worker died.
    """
    names = [contestant.name for contestant in contestants]
    for name in names:
        if not isinstance(name, str) or not name or UNSHOWN.search(name):
            raise ConfigError(f"policy name {name!r}: give a text for the tables, without | and line breaks.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"more than one policy is called {twice[0]!r}: results go by name, so give each its own.")
    rates = _offered(scenario, cases)  # complains now, before the long work
    done: dict[tuple[int, Scenario], Evaluation] = {}

    def run(contestant: Contestant) -> Evaluation:
        key = id(contestant.policy), contestant.scenario
        if key not in done:
            tick = None if progress is None else (lambda n, name=contestant.name: progress(name, n))
            done[key] = evaluate(
                contestant.policy, contestant.scenario, cases,
                seed=seed, progress=tick, workers=workers, engine=engine, folder=folder,
            )  # fmt: skip
        return done[key]

    sign = -1.0 if scenario.objective == "goodput" else 1.0  # scores are of what is to be small

    def score(evaluation: Evaluation, one: Contestant | None) -> Estimate:
        if reference is None or one is None:
            return NO_SCORE
        return score_estimate(
            *(sign * part.columns[scenario.objective] for part in (evaluation, run(reference), run(one)))
        )

    rows = []
    for contestant in contestants:
        evaluation = run(contestant)
        rows.append(
            Row(
                contestant.name,
                contestant.kind,
                contestant.text,
                evaluation.clairvoyant,
                evaluation,
                decision_times(contestant.policy, contestant.scenario, cases[:1].tolist(), seed=seed)
                if timed
                else np.empty(0, np.int64),
                score(evaluation, planner),
                score(evaluation, fixed_order),
                parameters_of(contestant.policy, contestant.scenario, int(cases[0]), seed),
            )
        )
    zero = None if reference is None else reference.name
    one = None if planner is None else planner.name
    other = None if fixed_order is None else fixed_order.name
    reached = None
    if reference is not None and planner is not None:
        reached = run(reference).estimate(scenario.objective), run(planner).estimate(scenario.objective)
    return Comparison(scenario_id, scenario, cases, seed, rows, zero, one, other, reached, rates)


def _offered(scenario: Scenario, cases: NDArray[np.int64]) -> Offered:
    """Means over the cases; nothing where a case has none, or there are no SLOs, so that no rate matters."""
    if not scenario.serving:
        return NO_RATE
    found = [offered(scenario, int(case)) for case in cases]
    if scenario.load is not None:  # as given, not as whole nanoseconds make it
        found = [one._replace(load=scenario.load) for one in found]
    if scenario.requests_per_s is not None:
        found = [one._replace(requests_per_s=scenario.requests_per_s) for one in found]
    rates, loads = ([x for x in column if x is not None] for column in zip(*found, strict=True))
    return Offered(*(float(np.mean(x)) if len(x) == len(found) else None for x in (rates, loads)))
