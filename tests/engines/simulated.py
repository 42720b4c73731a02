"""Recordings that the simulator wrote, of a cost model that is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmsched_env import Scenario
from llmsched_env.cost import MeasuredCost, MixedCost
from llmsched_env.engines.replay import engine_entry, simulate
from llmsched_env.workload import Requests

TRUTH = MeasuredCost(
    "truth", 3_100_000, 21_000, 2_500_000, 310_000, prefill_token_cap=512,
    mixed=MixedCost(False, 3_100_000, 21_000, 290_000),
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """Requests over some seconds, or all at once."""

    n: int = 80
    within_ns: int = 4 * 10**9
    name: str = "drawn"

    def pool_size(self, split):
        return 1

    def requests(self, split, number, *, num_requests=None):
        rng = np.random.default_rng(number)
        release = np.sort(rng.integers(0, self.within_ns + 1, self.n))
        return Requests.of(rng.integers(5, 900, self.n), rng.integers(1, 60, self.n), release_ns=release)


def scenario(*, mixes=True, cost=TRUTH, within_ns=4 * 10**9, **changes):
    mixed = {"mixed_tokens": 512, "mixed_counts_active": True, "mixed_cost": "fitted"} if mixes else {}
    common = {"queue": "shared", "order": "fcfs", "lengths": "hidden", "num_clients": 16, "prefill_token_cap": 512}
    return Scenario(workload=Drawn(within_ns=within_ns), cost=cost, **{**common, **mixed, **changes})


def recorded(policy="engine", **options):
    entry = engine_entry(policy, scenario(**options))
    return simulate(entry.policy, entry.scenario)
