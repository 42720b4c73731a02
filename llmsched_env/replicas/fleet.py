"""Several accelerators behind a router: each an engine of its own, with the same options and the same policy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cases import build_problem
from llmsched_env.config import MAX_SEED, Scenario, whole
from llmsched_env.engine import codes
from llmsched_env.engine.replica import NEVER, Replica
from llmsched_env.engine.rule import PythonRule, Rule
from llmsched_env.engine.view import Totals, View
from llmsched_env.errors import ConfigError, EpisodeOverError
from llmsched_env.metrics import request_metrics, serving_summary
from llmsched_env.policy import EpisodeContext, Policy, check_policy
from llmsched_env.problem import Problem
from llmsched_env.replicas.routers import Router, make_router
from llmsched_env.simulator import SERVED, Records, Simulator

__all__ = ["MAX_REPLICAS", "Fleet", "FleetRun", "check_fleet", "make_fleet", "send_all", "simulate_replicas"]

MAX_REPLICAS = 1024


@dataclass(frozen=True, eq=False)
class FleetRun:
    """What replicas did together on one case.

    Attributes:
        metrics: `llmsched_env.metrics.SERVING_METRICS` over all requests; ``makespan_s``, when the last is complete;
            and ``prefills``, of all replicas.
        replica_of: (n,) int64: where each request was sent, by its number.
        release_ns: (n,) int64: when each arrived.
        served: (n,) `llmsched_env.simulator.SERVED`; clients are numbered in each replica by itself.
        shares: (replicas,) share of the requests that each replica was sent.
        utilization: (replicas,) share of the makespan, in client time, in which its clients took part in iterations.
    """

    metrics: dict[str, float]
    replica_of: NDArray[np.int64]
    release_ns: NDArray[np.int64]
    served: Records
    shares: NDArray[np.float64]
    utilization: NDArray[np.float64]


def check_fleet(scenario: Scenario, policy: Policy, replicas: int) -> int:
    """The number of replicas, where they can be simulated.

    Raises:
        ConfigError: a scenario without SLOs, with queues of clients, prefix caching or a horizon; a policy that plans,
            or is told the truth; a number out of range.
    """
    for wrong, given, remedy in (
        (not scenario.serving, "without SLOs", "Give ttft_s and tpot_s: requests are sent as they arrive"),
        (scenario.queue != "shared", f"with queue = {scenario.queue!r}", "Set queue='shared': a replica has one line"),
        (scenario.kv_prefix_caching, "with prefix caching", "Leave kv_prefix_caching out: no router knows of it"),
        (scenario.max_iterations is not None, f"with max_iterations = {scenario.max_iterations}", "Leave it out"),
    ):
        if wrong:
            raise ConfigError(f"replicas of a scenario {given}: {remedy}.")
    check_policy(policy)
    if policy.clairvoyant or getattr(policy, "plans", False):
        raise ConfigError(
            f"policy {policy.name!r} looks at the future of an episode, and what a replica will be sent is not known: "
            "take a rule or an agent."
        )
    return whole("replicas", replicas, 1, MAX_REPLICAS)


class Fleet:
    """One case on several replicas, request by request; :func:`make_fleet` makes one of a scenario.

    Args:
        problem: the case as a single accelerator has it: one shared queue, with SLOs.
        rules: (replicas,) what decides in each replica, each with a memory of its own.
        release_ns: (n,) int64, ascending: when each request arrives; ``None`` for the problem's own times.
        record: keep every iteration, for :meth:`result`.
        forecast: keep in the views what is expected of active requests.

    Attributes:
        problem: as given.
        release_ns: (n,) int64: when each request arrives.
        replica_of: (n,) int64: where each was sent; -1 where it was not yet.
        next: number of the request that is to be sent next; n at the end.
    """

    def __init__(
        self,
        problem: Problem,
        rules: Sequence[Rule],
        release_ns: NDArray[np.int64] | None = None,
        *,
        record: bool = False,
        forecast: bool = False,
    ) -> None:
        n, slo = problem.num_requests, problem.options["slo"]
        self.problem, self.next = problem, 0
        self.release_ns = problem.release_ns if release_ns is None else release_ns
        self.replica_of = np.full(n, -1, np.int64)
        self._first, self._last, self._limits = slo["first"], slo["last"], (slo["ttft_ns"], slo["tpot_ns"])
        # With SLOs and one shared queue a position is a number.
        self._requests = problem.requests[:, [codes.PROMPT, codes.OUTPUT, codes.ESTIMATE]].tolist()
        self._times = self.release_ns.tolist()
        self._ranks: list[tuple[int, ...]] = [()] * n
        if problem.data.ranked:
            self._ranks = [tuple(row) for row in np.asarray(problem.data.ranking)[:, : codes.RANKINGS].tolist()]
        self._replicas = []
        for number, rule in enumerate(rules):
            options = dict(problem.options)
            if "noise" in options:
                options["noise"] = {**options["noise"], "key": _own(options["noise"]["key"], number) % 2**32}
            data = problem.data.changed()
            np.asarray(data.release_ns)[:] = NEVER
            self._replicas.append(Replica(data, options, rule, record))
            self._replicas[-1].keeps_forecast = forecast
        self._run_to(self._times[0])

    @property
    def views(self) -> list[View]:
        """What a router may know of each replica now, updated in place."""
        return [replica.shown for replica in self._replicas]

    @property
    def clock_ns(self) -> int:
        """When the next request arrives; at the end, when the last was complete."""
        if self.next < len(self._times):
            return int(self._times[self.next])
        return max(int(replica.view.clock_ns) for replica in self._replicas)

    @property
    def done(self) -> bool:
        """Whether every request was sent, and is complete."""
        return self.next == len(self._times)

    @property
    def arriving(self) -> tuple[int, int]:
        """Prompt and estimated output tokens of the request that is to be sent next; 0 and 0 at the end."""
        if self.done:
            return 0, 0
        prompt, _, estimate = self._requests[self.next]
        return prompt, estimate

    @property
    def left_ns(self) -> list[int]:
        """How long the iteration under way in each replica is still to last, as schedulers believe; 0 without one."""
        now = self.clock_ns
        return [max(0, int(replica.ends_ns) - now) for replica in self._replicas]

    @property
    def violations(self) -> int:
        """Counted requests that have violated an SLO for certain."""
        return sum(int(totals.violations) for totals in self.totals)

    @property
    def totals(self) -> list[Totals]:
        """What metrics are made of, of each replica."""
        return [replica.totals for replica in self._replicas]

    @property
    def completed(self) -> int:
        """Requests complete, as a router may know."""
        return sum(int(view.completed) for view in self.views)

    @property
    def counted(self) -> int:
        """Requests that count for the SLOs."""
        return int(self._last - self._first)

    def send(self, replica: int) -> None:
        """Send the next request there, and run all replicas up to the arrival after it, or to the end.

        Raises:
            EpisodeOverError: every request was sent.
            ConfigError: no such replica.
        """
        number = self.next
        if number == len(self._times):
            raise EpisodeOverError("every request was sent: make a new Fleet.")
        if not 0 <= replica < len(self._replicas):
            raise ConfigError(
                f"request {number} was sent to replica {replica}: they are numbered from 0 to "
                f"{len(self._replicas) - 1}."
            )
        prompt, output, estimate = self._requests[number]
        counts = 0 if number < self._first else 1 if number < self._last else 2
        self._replicas[replica].receive(prompt, output, estimate, self._times[number], self._ranks[number], counts)
        self.replica_of[number] = replica
        self.next = number + 1
        self._run_to(self._times[self.next] if self.next < len(self._times) else NEVER)

    def _run_to(self, time_ns: int) -> None:
        for replica in self._replicas:
            replica.run_to(time_ns)

    def result(self) -> FleetRun:
        """What came of it.

        Raises:
            EpisodeOverError: there are requests to be sent.
            ConfigError: it was not recorded.
        """
        if not self.done:
            raise EpisodeOverError(f"request {self.next} was not sent yet: send all {len(self._times)} first.")
        n = len(self._times)
        served = np.zeros(n, SERVED)
        seconds: dict[str, NDArray[np.float64]] = {}
        logs = []
        for number, replica in enumerate(self._replicas):
            mine = np.flatnonzero(self.replica_of == number)
            simulator = self._simulator(replica)
            for name, column in request_metrics(simulator).items():
                seconds.setdefault(name, np.full(n, np.nan))[mine] = column[: len(mine)]
            served[mine] = simulator.served[: len(mine)]
            logs.append(simulator.log)
        output = self.problem.requests[:, codes.OUTPUT].astype(np.int64)
        counted = slice(self._first, self._last)
        metrics = serving_summary(self.release_ns, output, served, seconds, logs, *self._limits, counted)
        end_ns = self.clock_ns
        busy = np.array([float(totals.busy_client_ns) for totals in self.totals])
        return FleetRun(
            {"makespan_s": end_ns / 1e9, **metrics, "prefills": sum(int(one.view.prefills) for one in self._replicas)},
            self.replica_of.copy(),
            self.release_ns.copy(),
            served,
            np.bincount(self.replica_of, minlength=len(self._replicas)) / n,
            busy / (float(end_ns) * self.problem.num_clients),
        )

    def _simulator(self, replica: Replica) -> Simulator:
        """A replica as metrics read an episode."""
        data = replica.problem
        simulator = Simulator.__new__(Simulator)
        simulator.problem = replace(
            self.problem,
            data=data,
            requests=np.asarray(data.requests),
            release_ns=np.asarray(data.release_ns),
            request_of=np.asarray(data.number_of),
        )
        simulator.episode = replica
        return simulator


def _own(key: int, number: int) -> int:
    """A key of a replica's own: the first has the one that is given."""
    return key if number == 0 else int(np.random.SeedSequence([key, number]).generate_state(1, np.uint64)[0])


def make_fleet(
    scenario: Scenario,
    policy: Policy,
    replicas: int,
    case: int,
    *,
    seed: int = 0,
    rate_per_s: float | None = None,
    record: bool = False,
    forecast: bool = False,
) -> Fleet:
    """One case of a scenario on several replicas.

    The case is that of the scenario at as many times its rate as there are replicas: release times are divided by their
    number, rounded down to the nanosecond. So ``load`` is that of each replica where all are sent as much. Where the
    scenario has no load, requests come at their own times, however many replicas there are.

    Args:
        scenario: of each replica: one shared queue, with SLOs.
        policy: decides in each replica; each has a copy of its own.
        replicas: N.
        case: its number.
        seed: for policies that draw random numbers. The first replica is given this one, as `play` gives it.
        rate_per_s: of arrivals at all replicas together, in requests/s, in place of the scenario's load.
        record: as `Fleet` takes it.
        forecast: as `Fleet` takes it.

    Raises:
        ConfigError: as `check_fleet`; no such case; a seed or a rate that is none.
        WorkloadError: a rate where all requests come at one time.
    """
    count = check_fleet(scenario, policy, replicas)
    seed = whole("seed", seed, 0, MAX_SEED)
    problem = build_problem(scenario, case)
    mean = float(problem.data.mean_output_tokens)
    rules = [_rule_of(policy, EpisodeContext(scenario, mean, _own(seed, number))) for number in range(count)]
    release_ns = problem.release_ns if scenario.load is None else problem.release_ns // count
    if rate_per_s is not None:
        requests = scenario.source.requests(scenario.split, case, num_requests=scenario.num_requests)
        release_ns = requests.at_rate(rate_per_s).release_ns
    return Fleet(problem, rules, release_ns, record=record, forecast=forecast)


def _rule_of(policy: Policy, context: EpisodeContext) -> Rule:
    """The policy as the engine asks it, with a memory of its own."""
    compiled: Callable[[EpisodeContext], Rule] | None = getattr(policy, "compiled", None)
    if compiled is not None:
        return compiled(context)
    own: Any = copy.deepcopy(policy)
    own.reset(context)
    return PythonRule(own.act)


def simulate_replicas(
    scenario: Scenario,
    policy: Policy,
    router: str | Router,
    replicas: int,
    case: int,
    *,
    seed: int = 0,
    rate_per_s: float | None = None,
) -> FleetRun:
    """Serve one case with several replicas.

    Args:
        scenario: of each replica (see :func:`make_fleet`).
        policy: decides in each replica.
        router: the name of one of `ROUTERS`, or an object of that protocol.
        replicas: N.
        case: its number.
        seed: of routers and policies that draw random numbers.
        rate_per_s: of arrivals at all replicas together, in requests/s, in place of the scenario's load.

    Raises:
        ConfigError: what cannot be simulated.
        UnknownNameError: no such router.
    """
    chosen = make_router(router)
    forecast = bool(getattr(chosen, "reads_forecast", False))
    fleet = make_fleet(
        scenario, policy, replicas, case, seed=seed, rate_per_s=rate_per_s, record=True, forecast=forecast
    )
    send_all(fleet, chosen, seed)
    return fleet.result()


def send_all(fleet: Fleet, router: Router, seed: int) -> None:
    """Send every request of a fleet where a router says.

    Raises:
        ConfigError: the router answers what is no replica.
    """
    views = fleet.views
    router.reset(len(views), seed)
    while not fleet.done:
        fleet.send(router.choose(views, *fleet.arriving))
