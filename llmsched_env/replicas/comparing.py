"""Routers on the same cases, and the number of replicas that a rate of requests needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.cost import capacity_requests_per_s
from llmsched_env.engine import codes
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import Estimate, mean_estimate, share_estimate
from llmsched_env.evaluation.rollout import SHARES, episode_seed
from llmsched_env.metrics import NS_PER_S
from llmsched_env.policy import Policy
from llmsched_env.replicas.fleet import MAX_REPLICAS, simulate_replicas
from llmsched_env.replicas.routers import Router, make_router

__all__ = ["Needed", "RouterRow", "compare_routers", "replicas_needed"]


@dataclass(frozen=True, eq=False)
class RouterRow:
    """One router on some cases.

    Attributes:
        router: its name.
        replicas: N.
        load: of each replica where all are sent as much; ``None`` where requests come at a rate, or at their own times.
        cases: (cases,) their numbers.
        columns: a (cases,) array a metric: those of `FleetRun`, ``requests`` (of a case), ``offered_requests_per_s``
            (the rate of arrivals), ``largest_share`` (of the requests, at one replica, times N: 1 where all are sent as
            much) and ``utilization``, the mean over replicas.
    """

    router: str
    replicas: int
    load: float | None
    cases: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]

    def estimate(self, metric: str) -> Estimate:
        """Mean over the cases with its 95 % confidence interval, which for a share stays within 0 and 1."""
        return (share_estimate if metric in SHARES else mean_estimate)(self.columns[metric])

    def above(self, other: RouterRow, metric: str = "goodput") -> Estimate:
        """Of the difference to another router, case by case."""
        return mean_estimate(self.columns[metric] - other.columns[metric])

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        metrics = {name: self.estimate(name).as_json() for name in self.columns}
        return {"router": self.router, "replicas": self.replicas, "load": self.load, "metrics": metrics}


@dataclass(frozen=True, eq=False)
class Needed:
    """How many replicas a router needs.

    Attributes:
        router: its name.
        tried: what each number did that was tried, by number.
        replicas: the least that reaches the goodput, ``None`` where none of those allowed does.
    """

    router: str
    tried: dict[int, RouterRow]
    replicas: int | None


def compare_routers(
    scenario: Scenario,
    policy: Policy,
    routers: Sequence[str | Router],
    replicas: int,
    cases: NDArray[np.int64],
    *,
    seed: int = 0,
    rate_per_s: float | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[RouterRow]:
    """Several routers on the same cases.

    Args:
        scenario: of each replica, as `make_fleet` takes it.
        policy: decides in each replica.
        routers: which.
        replicas: N.
        cases: (cases,) their numbers.
        seed: of routers and policies that draw random numbers; each case has one of its own.
        rate_per_s: of arrivals at all replicas together, in requests/s, in place of the scenario's load.
        progress: called with 1 after each run.

    Raises:
        ConfigError: what cannot be simulated.
        UnknownNameError: no such router.
    """
    rows = []
    for router in map(make_router, routers):
        found: dict[str, list[float]] = {}
        for case in cases.tolist():
            run = simulate_replicas(
                scenario, policy, router, replicas, case, seed=episode_seed(seed, case), rate_per_s=rate_per_s
            )
            span_ns = int(run.release_ns[-1] - run.release_ns[0])
            numbers = {
                **run.metrics,
                "requests": len(run.release_ns),
                "offered_requests_per_s": (len(run.release_ns) - 1) * NS_PER_S / span_ns if span_ns else np.inf,
                "largest_share": float(run.shares.max()) * replicas,
                "utilization": float(run.utilization.mean()),
            }
            for name, value in numbers.items():
                found.setdefault(name, []).append(value)
            if progress is not None:
                progress(1)
        load = scenario.load if rate_per_s is None else None
        columns = {name: np.array(values) for name, values in found.items()}
        rows.append(RouterRow(router.name, replicas, load, cases, columns))
    return rows


def replicas_needed(
    scenario: Scenario,
    policy: Policy,
    router: str | Router,
    rate_per_s: float | None,
    goodput: float,
    cases: NDArray[np.int64],
    *,
    seed: int = 0,
    max_replicas: int = 64,
    progress: Callable[[int], Any] | None = None,
) -> Needed:
    """The least number of replicas whose mean goodput over the cases is at least so much, by bisection.

    The search takes for granted that more replicas never do worse; the number below the one that is found was tried,
    unless the capacity of that many is less than the rate.

    Args:
        scenario: of each replica.
        policy: decides in each.
        router: sends the requests.
        rate_per_s: of arrivals, in requests/s; ``None`` for the times that the workload itself has.
        goodput: what is to be reached, in (0, 1].
        cases: (cases,) their numbers.
        seed: of routers and policies that draw random numbers.
        max_replicas: more are not tried.
        progress: called with 1 after each run.

    Raises:
        ConfigError: a goodput out of range; what cannot be simulated.
    """
    if not 0 < goodput <= 1:
        raise ConfigError(f"goodput = {goodput!r} is out of range: it is a share above 0 and at most 1, as 0.99.")
    if not 1 <= max_replicas <= MAX_REPLICAS:
        raise ConfigError(f"max_replicas = {max_replicas!r} is out of range: give a number from 1 to {MAX_REPLICAS}.")
    place = scenario if rate_per_s is not None else scenario.replace(load=None)
    chosen, tried = make_router(router), dict[int, RouterRow]()

    def holds(replicas: int) -> bool:
        if replicas not in tried:
            (tried[replicas],) = compare_routers(
                place, policy, [chosen], replicas, cases, seed=seed, rate_per_s=rate_per_s, progress=progress
            )
        return bool(tried[replicas].columns["goodput"].mean() >= goodput)

    low = 0 if rate_per_s is None else min(max_replicas, _kept_up_with(scenario, int(cases[0]), rate_per_s)) - 1
    step, high = 1, low + 1
    while not holds(high):
        low = high
        if high == max_replicas:
            return Needed(chosen.name, tried, None)
        high, step = min(max_replicas, high + step), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return Needed(chosen.name, tried, high)


def _kept_up_with(scenario: Scenario, case: int, rate_per_s: float) -> int:
    """Replicas below whose number no schedule keeps up with the rate, less one tenth, since cases differ."""
    if not scenario.cost_model.has_capacity or scenario.mixes:
        return 1
    rows = build_problem(scenario, case).requests
    prompt, output = (float(rows[:, column].mean()) for column in (codes.PROMPT, codes.OUTPUT))
    capacity = capacity_requests_per_s(scenario.cost_model, scenario.num_clients, prompt, output)
    return max(1, int(0.9 * rate_per_s / capacity))
