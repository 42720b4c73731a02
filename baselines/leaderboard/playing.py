"""Playing an entry's policies on the cases of a benchmark: one whole number a case."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines import registry
from llmsched_env.baselines.leaderboard.bench import Benchmark, Place
from llmsched_env.cases import build_problem
from llmsched_env.errors import ConfigError, LLMSchedError
from llmsched_env.evaluation import CoverageWarning, evaluate

__all__ = ["contestant", "play_place"]

SEED = 0
"""Of policies that draw random numbers."""


def contestant(policy: str, name: str, benchmark: Benchmark, folder: Path, *, own_code: bool = False) -> registry.Entry:
    """The policy as it plays in a scenario of the benchmark.

    Args:
        policy: as `Results.policies` has it.
        name: of the scenario.
        benchmark: which has it.
        folder: where agents' files are looked for.
        own_code: whether ``module:factory`` may be imported and called.

    Raises:
        UnknownNameError: no such policy.
        ConfigError: a policy that does not fit the scenario, changes its queues, or would run code that is not allowed.
        PathError: the file of an agent that cannot be read.
        FileFormatError: one that is no agent of this version.
    """
    scenario = benchmark.places[name].scenario
    if ":" in policy and not policy.endswith(".npz") and not own_code:
        raise ConfigError(
            f"policy {policy!r} runs code of its own: read it first, then allow it with --own-code, where it can be "
            "imported."
        )
    given = str(folder / policy) if policy.endswith(".npz") else policy
    try:
        item = registry.entry(given, scenario)
    except ConfigError as error:
        raise ConfigError(f"scenario {name!r}: {error}") from None
    except LLMSchedError:
        raise
    if item.kind == "method":
        raise ConfigError(
            f"policy {policy!r} brings queues of its own, but those of scenario {name!r} are fixed: give its rule, "
            f"{item.policy.name.removeprefix(policy) or 'lagrangian'!r} say."
        )
    same = {"order": scenario.order, "choose_order": scenario.choose_order}
    if "@" in policy and not scenario.choose_order and item.scenario.replace(**same) != item.scenario:
        raise ConfigError(
            f"policy {policy!r} brings an order of its own, but that of scenario {name!r} is {scenario.order!r}: give "
            "the rule without an order."
        )
    return item


def play_place(
    item: registry.Entry, place: Place, *, workers: int = 1, progress: Callable[[int], Any] | None = None
) -> NDArray[np.int64]:
    """(cases,) makespans in ns, or numbers of counted requests that violate an SLO.

    Args:
        item: of :func:`contestant`.
        place: where.
        workers: processes that share the cases, as in `evaluate`.
        progress: called with a number of cases when they are done.

    Raises:
        ConfigError: an episode that did not end.
        WorkerError: a worker died.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        columns = evaluate(
            item.policy, item.scenario, place.cases, seed=SEED, workers=workers, progress=progress, latencies=False
        ).columns
    scenario = item.scenario
    values = columns[scenario.objective]
    if np.isnan(values).any():
        raise ConfigError(f"policy {item.name!r} left case {place.cases[int(np.isnan(values).argmax())]} unfinished.")
    if not scenario.serving:
        return np.rint(values * 1e9).astype(np.int64)
    # Exact, since the share of a few thousand requests in 64 bits tells their number.
    return np.rint((1.0 - values) * [_counted(place, case) for case in place.cases]).astype(np.int64)


def _counted(place: Place, case: int) -> int:
    """How many requests of a case count for the SLOs."""
    scenario = place.scenario
    slo = scenario.slo(build_problem(scenario, case).num_requests)
    assert slo is not None
    return slo.last - slo.first
