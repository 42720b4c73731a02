"""Replicas behind a router as plainly as it can be said: one plain simulator each, run from arrival to arrival."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from reference import Reference
from reference.client_queues import ClientQueues
from reference.shared_queue import SharedQueue
from strategies import Case

from llmsched_env.config import SLO

FOREVER = 10**18


class PlainReplica(Reference):
    """A plain simulator that has only the requests that it was sent."""

    def __init__(self, case: Case, rule: Callable[[int, int, int], int]) -> None:
        super(SharedQueue, self).__init__(case)  # its own would run through the arrivals
        self.unreleased = []
        self.rule = rule
        self.sent: list[int] = []
        self.ends_ns = 0
        self.let_time_pass()
        self.held = self.tokens()

    def tokens(self) -> int:
        """In the cache, or of prompts that wait."""
        held = self.kv_used if self.case.kv_cache else self.context_tokens
        left = self.reading.left if self.reading else 0
        return held + left + sum(self.case.prompts[i] for i in self.waiting)

    @property
    def busy(self) -> bool:
        return bool(self.active or self.waiting or self.preempted or self.reading)

    def choose(self) -> int:
        """As an episode asks its rule: only where more than one iteration is possible, and makes a difference."""
        could_read = self.ready or (self.case.mixed and self.reading)
        several = self.case.num_actions > 2 and (len(self.waiting) > 1 or self.case.mixed)
        if not could_read or not (self.active or several):
            return 1 if self.ready else 0
        action = self.rule(self.clock_ns, len(self.active), len(self.waiting)) % self.case.num_actions
        return 1 if action == 0 and not self.active else action

    def run_to(self, time_ns: int) -> None:
        while True:
            self.let_time_pass()
            if self.clock_ns <= time_ns:
                self.held = self.tokens()
            if self.clock_ns >= time_ns or not self.busy:
                return
            self.step(self.choose())

    def outstanding(self, time_ns: int) -> int:
        return sum(self.completion_ns.get(i, FOREVER) > time_ns for i in self.sent)

    def receive(self, request: int) -> None:
        self.sent.append(request)
        self.unreleased.append(request)
        self.held += self.case.prompts[request]


class PlainFleet:
    """All replicas, and the routers that use no chance."""

    def __init__(self, case: Case, replicas: int, rule: Callable[[int, int, int], int]) -> None:
        self.case = case
        self.replicas = [PlainReplica(keyed(case, number), rule) for number in range(replicas)]
        self.replica_of: list[int] = []

    def play(self, router: str | list[int]) -> None:
        for request, arrival_ns in enumerate(self.case.releases_ns):
            for replica in self.replicas:
                replica.run_to(arrival_ns)
            if router == "round_robin":
                chosen = request % len(self.replicas)
            elif router == "least_outstanding":
                chosen = first_least([one.outstanding(arrival_ns) for one in self.replicas])
            elif router == "least_kv":
                chosen = first_least([one.held for one in self.replicas])
            else:
                chosen = router[request]
            self.replicas[chosen].receive(request)
            self.replica_of.append(chosen)
        for replica in self.replicas:
            replica.run_to(FOREVER)

    def times_of(self, request: int) -> tuple[int, int, int]:
        replica = self.replicas[self.replica_of[request]]
        return (
            replica.prefill_start_ns[request],
            replica.first_token_ns[request],
            replica.completion_ns[request],
        )

    def violations(self, slo: SLO) -> int:
        """Counted requests that were served too late, or too slowly."""
        late = 0
        for request in range(slo.first, slo.last):
            _, first_ns, end_ns = self.times_of(request)
            slow = end_ns - first_ns > slo.tpot_ns * (self.case.outputs[request] - 1)
            late += slow or first_ns - self.case.releases_ns[request] > slo.ttft_ns
        return late


def first_least(loads: list[int]) -> int:
    return min(range(len(loads)), key=lambda i: loads[i])


def keyed(case: Case, number: int) -> Case:
    """The case as a replica has it: the noise of all but the first has a key of its own."""
    if case.noise is None or number == 0:
        return case
    key = int(np.random.SeedSequence([case.noise.key, number]).generate_state(1, np.uint64)[0]) % 2**32
    return replace(case, noise=replace(case.noise, key=key))


assert issubclass(Reference, ClientQueues)
