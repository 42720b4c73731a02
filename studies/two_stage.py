"""Jobs of `uncertain_lengths`: small instances on which the true optimum of the stochastic problem is known.

Eight requests, three clients. Each request has three equally likely lengths, with the mean and standard deviation that
a predictor states: 3^8 scenarios, and 1094 ways to assign. There is no recourse: what was assigned stays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmsched_env.offline import assign_expected_max, lpt, sample_average, tail_mean
from llmsched_env.studies.uncertain_runs import WEIGHTS, predictor_of, weight_name
from llmsched_env.workload import Prediction, workload

__all__ = [
    "CLIENTS",
    "MEAN_VALUE",
    "OPTIMUM",
    "OPTIMUM_TAIL",
    "REQUESTS",
    "SAMPLES",
    "TAIL",
    "WAIT_AND_SEE",
    "every_assignment",
    "every_scenario",
    "judged",
    "largest_loads",
    "optima",
    "possible_loads",
    "sample_name",
    "two_stage",
]

REQUESTS, CLIENTS = 8, 3
SAMPLES = (5, 20, 50)
TAIL = 0.1
"""CVaR at level 0.9 is the mean of the worst tenth."""

OPTIMUM, OPTIMUM_TAIL, WAIT_AND_SEE = "optimum", "optimum, CVaR", "wait and see"
MEAN_VALUE = "mean values"


def sample_name(size: int, tail: float) -> str:
    """What a sample average is called."""
    return f"{size} scenarios" + (", CVaR" if tail < 1 else "")


def possible_loads(prediction: Prediction) -> NDArray[np.int64]:
    """(n, 3) decodes, equally likely: mean and mean -+ sqrt(3/2) standard deviations, whole tokens, at least one."""
    steps = math.sqrt(1.5) * np.array([-1.0, 0.0, 1.0])
    tokens = prediction.mean_tokens[:, None] + steps * prediction.sd_tokens[:, None]
    return np.maximum(np.rint(tokens), 1.0).astype(np.int64) - 1


def every_scenario(loads: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 3^n): all that may come, equally likely."""
    return np.ascontiguousarray(np.array(list(itertools.product(*loads.tolist())), np.int64).T)


def every_assignment(requests: int, clients: int) -> NDArray[np.int32]:
    """(assignments, n): each once, as clients are interchangeable: request 0 goes to 0, the next ones to 0 or 1..."""

    def rows(left: int, opened: int) -> Iterator[tuple[int, ...]]:
        if not left:
            yield ()
            return
        for client in range(min(opened + 1, clients)):
            for rest in rows(left - 1, max(opened, client + 1)):
                yield (client, *rest)

    return np.array(list(rows(requests, 0)), np.int32)


def largest_loads(client_of: NDArray[np.int32], scenarios: NDArray[np.int64]) -> NDArray[np.int64]:
    """(scenarios,) largest load of a client."""
    held = np.zeros((CLIENTS, scenarios.shape[1]), np.int64)
    for request, client in enumerate(client_of.tolist()):
        held[client] += scenarios[request]
    largest: NDArray[np.int64] = held.max(axis=0)
    return largest


def two_stage(workload_name: str, certainty: str, number: int, seed: int) -> dict[str, dict[str, float]]:
    """Expected largest load and its CVaR of every method on one instance, in decodes, under the true law.

    ``in_sample`` is what a sample average said of its own objective.
    """
    source = workload(workload_name)
    requests = source.requests("test", number, num_requests=REQUESTS)
    prediction = predictor_of(certainty, seed).predict(source, "test", number, requests)
    loads = possible_loads(prediction)
    scenarios = every_scenario(loads)
    found = {name: judged(assigned, scenarios) for name, assigned in _without_samples(loads).items()}
    random = np.random.default_rng([seed, number])
    for size in SAMPLES:
        sample = loads[np.arange(REQUESTS), random.integers(loads.shape[1], size=(size, REQUESTS))]
        for tail in (1.0, TAIL):
            best = sample_average(sample, CLIENTS, tail=tail)
            found[sample_name(size, tail)] = {
                **judged(best.client_of, scenarios),
                "in_sample": best.objective_decodes,
            }
    found.update(optima(loads, scenarios))
    return found


def judged(client_of: NDArray[np.int32], scenarios: NDArray[np.int64]) -> dict[str, float]:
    """Expectation and CVaR of the largest load."""
    largest = largest_loads(client_of, scenarios)
    return {"mean": float(largest.mean()), "cvar": tail_mean(largest, TAIL)}


def _without_samples(loads: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
    mean, sd = loads.mean(axis=1), loads.std(axis=1)
    found = {f"LPT, {weight_name(k)}": lpt(np.rint(mean + k * sd).astype(np.int64), CLIENTS) for k in WEIGHTS}
    found["expected max"] = assign_expected_max(mean, sd, CLIENTS)
    return found


def optima(loads: NDArray[np.int64], scenarios: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """The best of all assignments for each objective and for mean values, and with every scenario known beforehand."""
    mean_values = np.rint(loads.mean(axis=1)).astype(np.int64)[:, None]
    least = np.full(scenarios.shape[1], np.iinfo(np.int64).max)
    best: dict[str, tuple[float, dict[str, float]]] = {}
    for client_of in every_assignment(len(loads), CLIENTS):
        np.minimum(least, largest_loads(client_of, scenarios), out=least)
        found = judged(client_of, scenarios)
        with_mean_values = float(largest_loads(client_of, mean_values)[0])
        values = {OPTIMUM: found["mean"], OPTIMUM_TAIL: found["cvar"], MEAN_VALUE: with_mean_values}
        for name, value in values.items():
            if name not in best or value < best[name][0]:
                best[name] = value, found
    known = {"mean": float(least.mean()), "cvar": tail_mean(least, TAIL)}
    return {**{name: found for name, (_, found) in best.items()}, WAIT_AND_SEE: known}
