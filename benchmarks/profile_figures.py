"""What an episode's time goes to: a fit of its cost over thresholds, which trade decodes for prefills."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from episode_figures import LENGTHS
from episodes import Episodes
from measuring import Figure, repeat

from llmsched_env.baselines.iteration import threshold
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.evaluation import play
from llmsched_env.policy import EpisodeContext

__all__ = ["profile_figures"]

THRESHOLDS = (1, 3, 7, 14, 28, 56, 100)
PARTS = ("a decode", "a decode in which something ends, beyond that", "a prefill", "a request")


def profile_figures(*, cases: int, repeats: int) -> Iterator[Figure]:
    """Least squares of episode times (resets taken off) on the numbers of four kinds of event; relative errors."""
    for workload, lengths in LENGTHS.items():
        counts, times_ns = [], []
        for order in ("fcfs", "longest_first"):
            scenario = Scenario(workload=workload, split="test", queue="shared", order=order)
            episodes = Episodes([build_problem(scenario, number) for number in range(cases)])
            for idle_clients in THRESHOLDS:
                policy = threshold(idle_clients)
                rule = policy.compiled(EpisodeContext(scenario, 1.0))
                counts.append(np.mean([_events(policy, scenario, number) for number in range(cases)], axis=0))
                run, reset = repeat(lambda e=episodes, r=rule: e.run(r), episodes.reset, repeats=repeats)
                times_ns.append((run.best_s - reset.best_s) / cases * 1e9)
        events, measured = np.array(counts), np.array(times_ns)
        cost_ns = np.linalg.lstsq(events / measured[:, None], np.ones(len(measured)))[0]
        error = float(np.abs(events @ cost_ns / measured - 1).max())
        section = f"Where the time of an episode goes, {lengths} lengths (shared queues, fit over thresholds)"
        usual = events[THRESHOLDS.index(14)]
        for name, ns, number in zip(PARTS, cost_ns, usual, strict=True):
            yield Figure(section, f"{name} ({number:,.0f} of them, FCFS, k = 14)", float(ns), "ns")
        yield Figure(section, "largest error of the fit", error * 100, "%")


def _events(policy: object, scenario: Scenario, number: int) -> list[int]:
    simulator = play(policy, scenario, number, record=True)  # type: ignore[arg-type]
    endings = len(np.unique(simulator.served["completion_ns"]))
    return [int(simulator.view.decodes), endings, int(simulator.view.prefills), simulator.problem.num_requests]
