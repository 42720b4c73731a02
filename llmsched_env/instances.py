"""From a scenario and a case number to what the core reads: requests, estimates, queues and bound, built once."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from llmsched_env.config import Scenario
from llmsched_env.core.episode import Instance
from llmsched_env.errors import WorkloadError
from llmsched_env.offline import lb1_ns, stored_assignment
from llmsched_env.workload import Requests
from llmsched_env.workload.protocol import check_case

__all__ = ["draw_case", "estimates", "instance", "pool_size"]

BYTES_KEPT = 2**29
"""Memory for instances that may be asked for again: a GSM8K case takes about 60 kB, the default pools 45 MB."""

UNBOUNDED_POOL = 2**31
"""Cases to draw from where a workload makes them without end."""

_lock = threading.Lock()
_instances: LRUCache[Any, Instance] = LRUCache(BYTES_KEPT, getsizeof=lambda kept: kept.nbytes)


def instance(scenario: Scenario, case: int) -> Instance:
    """The case of that number in the scenario's split; the same for ever, read-only, shared by all its users.

    Raises:
        ConfigError: not a case number.
        WorkloadError: lengths that the workload does not predict.
    """
    # Before the cache, to which True and 1.0 are 1.
    _, case = check_case(scenario.split, case)
    key = scenario, case, getattr(scenario.source, "version", None)
    with _lock:
        found = _instances.get(key)
    if found is None:
        found = _build(scenario, case)
        if found.nbytes <= BYTES_KEPT:
            with _lock:
                _instances[key] = found
    return found


def _build(scenario: Scenario, case: int) -> Instance:
    requests = scenario.source.requests(scenario.split, case, num_requests=scenario.num_requests)
    guess = estimates(scenario, requests)
    cost = scenario.cost_model
    queues = None
    if scenario.queue == "client":
        queues = stored_assignment(
            requests, scenario.num_clients, scenario.assignment, loads=guess - 1, progress=sys.stderr.isatty()
        ).client_of
    return Instance.build(
        requests,
        guess,
        cost,
        scenario.num_clients,
        client_of=queues,
        order=scenario.order,
        stealing=scenario.stealing,
        bound_ns=lb1_ns(requests, scenario.num_clients, cost),
        reward=scenario.reward,
        skip_forced=scenario.skip_forced,
        max_iterations=scenario.max_iterations or 0,
    )


def estimates(scenario: Scenario, requests: Requests) -> NDArray[np.int32]:
    """(n,) int32, at least 1: output lengths as the scenario lets a scheduler see them.

    Raises:
        WorkloadError: ``lengths="predicted"`` and the workload brings no predictions.
    """
    if scenario.lengths == "known":
        return requests.output_tokens
    if scenario.lengths == "hidden":
        return np.full(len(requests), max(1, round(requests.mean_output_tokens)), np.int32)
    if requests.predicted_tokens is None:
        raise WorkloadError(
            f"lengths='predicted' but workload {scenario.source.name!r} has no predictions: give a file with a "
            "column predicted_tokens, or lengths='hidden'."
        )
    return requests.predicted_tokens


def pool_size(scenario: Scenario) -> int | None:
    """Cases in the scenario's default pool, or ``None`` where there is no end to them."""
    return scenario.source.pool_size(scenario.split)


def draw_case(scenario: Scenario, stream: np.random.Generator) -> int:
    """The next case number of a seeded stream, uniform over the scenario's pool."""
    return int(stream.integers(pool_size(scenario) or UNBOUNDED_POOL))
