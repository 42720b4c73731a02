"""Jobs of `uncertain_lengths`: whole cases under assignments and orders by uncertain lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines.registry import make_policy
from llmsched_env.cases import estimates
from llmsched_env.config import Scenario
from llmsched_env.evaluation import evaluate, play
from llmsched_env.offline import assign_expected_max, expected_max, stored_assignment
from llmsched_env.workload import NoisyTruth, Prediction, Predictor, Requests, UnevenTruth, Workload, predictor
from llmsched_env.workload.draws import Stream, raw_words, standard_normal
from llmsched_env.workload.lengths import check_number

__all__ = [
    "CERTAINTIES",
    "ERRORS",
    "EXPECTED_LOAD",
    "EXPECTED_MAX",
    "HYBRID",
    "KNOWN",
    "KNOWN_MIP",
    "LARGEST_LOAD",
    "MEANS",
    "NOTHING",
    "QUEUES",
    "RULES",
    "WEIGHTS",
    "Gaps",
    "RelativeError",
    "by_error",
    "by_estimate",
    "by_knowledge",
    "place",
    "predictor_of",
    "weight_name",
]

CERTAINTIES = ("equal", "unequal")
"""Whether all lengths are predicted equally well, or half of them much better than the other half."""

EQUAL, UNEQUAL = 0.8, (0.2, 0.95)
"""Correlations of the predictors' signals with the logarithm of the length."""

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""k of mean + k standard deviations."""

ERRORS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Coefficients of variation of estimate / length."""

QUEUES: dict[str, dict[str, Any]] = {
    "fixed": {"queue": "client", "assignment": "lpt", "stealing": False},
    "stealing": {"queue": "client", "assignment": "lpt", "stealing": True},
    "shared": {"queue": "shared"},
}
RULES = ("lagrangian", "prefill_first")
LARGEST_LOAD, EXPECTED_LOAD = "largest load", "expected largest load"
HYBRID = "hybrid"
EXPECTED_MAX, NOTHING, KNOWN, KNOWN_MIP = "expected max", "nothing", "known", "known, MIP"

Gaps = dict[str, dict[str, list[float]]]
"""Gaps to LB1 as fractions, one a case, by method and by queues and rule; and largest over average load, less 1."""


def weight_name(k: float) -> str:
    """What mean + k standard deviations is called."""
    return f"mean + {k:g} sd" if k else "mean"


MEANS = weight_name(0.0)


@dataclass(frozen=True)
class RelativeError:
    """Estimates that are wrong by a factor: log-normal, of mean 1 and a given coefficient of variation e.

    With e' = sqrt(ln(1 + e^2)) and z standard normal, the estimate is N exp(e' z - e'^2 / 2), and the stated standard
    deviation e times that. Unlike `NoisyTruth` it knows nothing of the law of the lengths and does not shrink towards
    its mean: its estimates vary more than the lengths do. All errors share their z.

    Attributes:
        error: e, in [0, 10].
        seed: of the factors.

    Raises:
        ConfigError: an error out of range.
    """

    error: float
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "error", check_number("error", self.error, 0.0, 10.0))

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"error of {100 * self.error:g} % (seed {self.seed})"

    @property
    def exact(self) -> bool:
        """Whether it says the truth."""
        return self.error == 0.0

    def predict(self, workload: Workload, split: str, number: int, requests: Requests) -> Prediction:
        """The prediction for a case; see `Predictor`."""
        words = raw_words(f"{workload.name}/factors/{self.seed}", split, number, Stream.PREDICTION, len(requests))
        sd = math.sqrt(math.log1p(self.error**2))
        factors = np.exp(sd * standard_normal(words) - sd**2 / 2)
        estimate: NDArray[np.float64] = requests.output_tokens.astype(np.float64) * factors
        return Prediction(estimate, self.error * estimate)


def predictor_of(certainty: str, seed: int) -> Predictor:
    """The predictor of one of `CERTAINTIES`."""
    return NoisyTruth(EQUAL, seed) if certainty == "equal" else UnevenTruth(UNEQUAL, seed)


def place(workload_name: str, clients: int, **changes: Any) -> Scenario:
    """Test cases of a workload with as many requests for each client as the paper's case has."""
    count = None if clients == 200 else round(1319 * clients / 200)
    return Scenario(workload=workload_name, split="test", num_clients=clients, num_requests=count, **changes)


def by_estimate(workload_name: str, clients: int, certainty: str, cases: int, seed: int) -> Gaps:
    """Assignments and orders by mean + k standard deviations, and the assignment of least expected maximum."""
    told: dict[str, Any] = {"lengths": "predicted", "predictor": predictor_of(certainty, seed)}
    found: Gaps = {}
    for k in WEIGHTS:
        found[weight_name(k)] = _on_all_queues(place(workload_name, clients, sd_weight=k, **told), cases)
    where = place(workload_name, clients, **told)
    assigned = [_least_expected_max(where, case) for case in range(cases)]
    least = _largest_loads(where, assigned)
    for queues in ("fixed", "stealing"):
        for rule in RULES:
            played = [
                play(make_policy(rule), where.replace(**QUEUES[queues]), case, client_of=client_of)
                for case, client_of in enumerate(assigned)
            ]
            least[f"{queues}, {rule}"] = [int(one.view.clock_ns) / one.problem.lb1_ns - 1.0 for one in played]
    return {**found, EXPECTED_MAX: least}


def by_knowledge(workload_name: str, clients: int, cases: int) -> Gaps:
    """References: all lengths known, with LPT queues and (at 200 clients) the MIP's; and nothing known."""
    known = place(workload_name, clients)
    found = {KNOWN: _on_all_queues(known, cases)}
    if clients == 200:
        found[KNOWN_MIP] = _on_all_queues(known, cases, ("fixed", "stealing"), assignment="mip")
    hidden = place(workload_name, clients, lengths="hidden", order="fcfs")
    found[NOTHING] = _on_all_queues(hidden, cases, assignment="round_robin")
    return found


def by_error(workload_name: str, clients: int, error: float, cases: int, seed: int) -> dict[str, list[float]]:
    """Every way of queueing, with the Lagrangian rule, where estimates have a relative error."""
    where = place(workload_name, clients, lengths="predicted", predictor=RelativeError(error, seed))
    found = {name: _gaps(where.replace(**changes), "lagrangian", cases) for name, changes in QUEUES.items()}
    found[HYBRID] = _gaps(where.replace(**{**QUEUES["stealing"], "assignment": "mip"}), "lagrangian", cases)
    return found


def _on_all_queues(
    scenario: Scenario, cases: int, queues: Sequence[str] = tuple(QUEUES), assignment: str = "lpt"
) -> dict[str, list[float]]:
    """Under both rules; and the largest loads of the assignment."""
    found = {}
    for name in queues:
        where = scenario.replace(**{**QUEUES[name], "assignment": assignment})
        for rule in RULES:
            found[f"{name}, {rule}"] = _gaps(where, rule, cases)
    where = scenario.replace(assignment=assignment)
    return {**found, **_largest_loads(where, [_assigned(where, case) for case in range(cases)])}


def _gaps(scenario: Scenario, rule: str, cases: int) -> list[float]:
    columns = evaluate(make_policy(rule), scenario, cases).columns
    found: list[float] = (columns["makespan_s"] / columns["lb1_s"] - 1.0).tolist()
    return found


def _largest_loads(scenario: Scenario, assigned: Sequence[NDArray[np.int32]]) -> dict[str, list[float]]:
    """Decodes of the most loaded client over the average, less 1: the true ones, and what the normal model expects.

    It expects nothing where there is no predictor.
    """
    clients = scenario.num_clients
    found: dict[str, list[float]] = {LARGEST_LOAD: [], EXPECTED_LOAD: []}
    for case, client_of in enumerate(assigned):
        held = np.bincount(client_of, _requests(scenario, case).decodes, clients)
        found[LARGEST_LOAD].append(float(held.max() / held.mean()) - 1.0)
        if scenario.predictor is not None:
            loads, sds = _predicted_loads(scenario, case)
            mean, variance = np.bincount(client_of, loads, clients), np.bincount(client_of, sds**2, clients)
            found[EXPECTED_LOAD].append(expected_max(mean, np.sqrt(variance)) / float(mean.mean()) - 1.0)
    return {name: values for name, values in found.items() if values}


def _requests(scenario: Scenario, case: int) -> Requests:
    return scenario.source.requests(scenario.split, case, num_requests=scenario.num_requests)


def _assigned(scenario: Scenario, case: int) -> NDArray[np.int32]:
    """The scenario's own assignment."""
    requests = _requests(scenario, case)
    loads = estimates(scenario, case, requests) - 1
    return stored_assignment(requests, scenario.num_clients, scenario.assignment, loads=loads).client_of


def _predicted_loads(scenario: Scenario, case: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) means and standard deviations of decodes."""
    assert scenario.predictor is not None
    said = predictor(scenario.predictor).predict(scenario.source, scenario.split, case, _requests(scenario, case))
    return np.maximum(said.mean_tokens - 1.0, 0.0), said.sd_tokens


def _least_expected_max(scenario: Scenario, case: int) -> NDArray[np.int32]:
    return assign_expected_max(*_predicted_loads(scenario, case), scenario.num_clients)
