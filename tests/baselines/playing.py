"""Small worlds for policies: cases with and without arrivals, a view written by hand, episodes recorded and named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel
from llmsched_env.evaluation.rollout import start
from llmsched_env.policy import EpisodeContext, View
from llmsched_env.simulator import Simulator
from llmsched_env.workload import SPLITS, Requests

COST = CostModel("test", 100, 10, 50, 1, prefill_token_cap=60)
"""Prefill 100 + 10 a token, decode 50 + 1 a client, in ns."""


@dataclass(frozen=True)
class Drawn:
    """Cases of 40 short requests; they arrive over time where ``mean_gap_ns`` is not 0."""

    mean_gap_ns: int = 0
    count: int = 40
    longest_output: int = 30
    name: str = "drawn"

    def pool_size(self, split: str) -> int | None:
        return None

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        rng = np.random.default_rng([SPLITS.index(split), number])
        n = num_requests or self.count
        gaps_ns = rng.integers(0, 2 * self.mean_gap_ns, n, endpoint=True)
        return Requests.of(
            rng.integers(1, 15, n),
            rng.integers(1, self.longest_output, n, endpoint=True),
            release_ns=np.cumsum(gaps_ns),
        )


def world(*, mean_gap_ns: int = 0, **changes: Any) -> Scenario:
    """40 requests on 6 clients, LPT queues, sorted, with stealing."""
    base = Scenario(workload=Drawn(mean_gap_ns), split="test", num_clients=6, cost=COST, assignment="lpt")
    return base.replace(**changes)


WORLDS = {
    "shared": world(queue="shared", order="longest_first"),
    "client": world(),
    "fixed queues": world(order="fcfs", stealing=False),
    "shared, arrivals": world(mean_gap_ns=150, queue="shared", order="fcfs"),
    "client, arrivals": world(mean_gap_ns=150),
    "SLO": world(mean_gap_ns=300, queue="shared", order="fcfs", ttft_s=1e-6, tpot_s=1.1e-7),
    "SLO, late last": world(mean_gap_ns=300, queue="shared", order="late_last", ttft_s=1e-6, tpot_s=1.1e-7),
    "memory": world(queue="shared", order="fcfs", kv_budget_tokens=150, kv_block_tokens=4),
    "mixed": world(queue="shared", order="fcfs", mixed_tokens=9),
    "mixed, SLO": world(
        mean_gap_ns=300,
        queue="shared",
        order="fcfs",
        ttft_s=1e-6,
        tpot_s=1.1e-7,
        mixed_tokens=9,
        mixed_counts_active=True,
    ),
    "moving": world(cached_share=0.5, steal="running", move_gb_per_s=1e6),
    "memory, swapped": world(mean_gap_ns=150, queue="shared", order="fcfs", kv_budget_tokens=150, kv_swap_gb_per_s=1e6),
}


def view_of(**fields: int) -> View:
    """A view with these fields; the coefficients are those of `COST`, the rest is 0."""
    constants = {"alpha_prefill_ns": 100, "alpha_decode_ns": 50, "beta_decode_ns": 1, "token_cap": 60}
    return View(**{**constants, **fields})


def start_of(scenario: Scenario, *, mean_output_tokens: float = 10.0, **facts: Any) -> EpisodeContext:
    return EpisodeContext(scenario, mean_output_tokens, **facts)


def asked(policy: Any, simulator: Simulator) -> Simulator:
    """Run to the end by asking ``policy``, which was started, wherever there is a choice."""
    while not simulator.done:
        action = int(policy.act(simulator.view)) if simulator.has_choice else int(simulator.can_prefill)
        simulator.step(action if action or simulator.can_decode else 1)
    return simulator


def by_act(policy: Any, scenario: Scenario, case: int, *, seed: int = 0) -> Simulator:
    """A recorded episode in which every decision is asked for from Python."""
    simulator = Simulator(build_problem(scenario, case), record=True)
    policy.reset(start(policy, scenario, simulator, seed))
    return asked(policy, simulator)


def kinds(simulator: Simulator) -> str:
    """The iterations of a recorded episode: P for a prefill, D for a decode."""
    return "".join("DP"[kind] for kind in simulator.log["prefill"])


def history(simulator: Simulator) -> tuple[bytes, bytes]:
    return simulator.log.tobytes(), simulator.served.tobytes()
