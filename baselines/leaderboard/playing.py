"""Playing an entry's policies on the cases of a benchmark: one whole number a case."""

from __future__ import annotations

import os
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines import registry
from llmsched_env.baselines.leaderboard.bench import Benchmark, Place
from llmsched_env.baselines.leaderboard.entries import LeaderboardEntry
from llmsched_env.cases import build_problem
from llmsched_env.errors import ConfigError, LLMSchedError
from llmsched_env.evaluation import CoverageWarning, evaluate

__all__ = ["contestant", "given_the_future", "play_place", "runs_own_code"]

SEED = 0
"""Of policies that draw random numbers."""

NOT_OWN = (sysconfig.get_path("stdlib"), f"{os.sep}site-packages{os.sep}", f"{os.sep}llmsched_env{os.sep}")
"""Parts of the paths of code that is not the policy's."""


def runs_own_code(policy: str) -> bool:
    """Whether a policy of an entry is ``module:factory``."""
    return ":" in policy and not policy.endswith(".npz")


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
        ConfigError: a policy that does not fit the scenario, changes its queues, would run code that is not allowed, or
            whose code fails.
        PathError: the file of an agent that cannot be read.
        FileFormatError: one that is no agent of this version.
    """
    scenario = benchmark.places[name].scenario
    if runs_own_code(policy) and not own_code:
        raise ConfigError(
            f"policy {policy!r} runs code of its own: read it first, then allow it with --own-code, where it can be "
            "imported."
        )
    given = str(folder / policy) if policy.endswith(".npz") else policy
    try:
        with _failures_said(policy):
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


def given_the_future(entry: LeaderboardEntry, benchmark: Benchmark, *, own_code: bool = False) -> bool:
    """Whether a policy of an entry is, in any of its scenarios. Nothing is played.

    Agents' files are not opened: a network is never given the future.

    Raises:
        LLMSchedError: a policy that cannot be made, or would run code that is not allowed; as :func:`contestant`.
    """
    return any(
        contestant(policy, name, benchmark, entry.path.parent, own_code=own_code).policy.clairvoyant
        for name, results in entry.results.items()
        for policy in results.policies
        if not policy.endswith(".npz")
    )


@contextmanager
def _failures_said(policy: str) -> Iterator[None]:
    """Turns what a policy's code raises into a sentence; also an exit, after which nobody would know the outcome.

    Raises:
        ConfigError: it raised something.
    """
    try:
        yield
    except (LLMSchedError, KeyboardInterrupt):
        raise
    except BaseException as error:
        text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
        own = [  # none where a worker sent it
            f" ({Path(frame.filename).name}, line {frame.lineno})"
            for frame in traceback.extract_tb(error.__traceback__)
            if not any(place in frame.filename for place in NOT_OWN)
        ]
        where = own[-1] if own else ""
        raise ConfigError(f"policy {policy!r} raised {text}{where}. It has to finish every case.") from error


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
        ConfigError: an episode that did not end, or a policy that failed.
        WorkerError: a worker died.
    """
    with warnings.catch_warnings(), _failures_said(item.name):
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
