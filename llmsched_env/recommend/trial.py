"""One setting under one load: what became of each request, in shares, margins and intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine import codes
from llmsched_env.evaluation import Estimate, mean_estimate, play
from llmsched_env.evaluation.rollout import left_range
from llmsched_env.recommend.setting import Machine, Setting
from llmsched_env.workload.requests import Requests

__all__ = ["BLOCKS", "Load", "Outcome", "try_setting"]

BLOCKS = 20
"""Stretches of consecutive requests that intervals are made of (the method of batch means)."""

RESAMPLES = 400

NS_PER_S = 10**9


@dataclass(frozen=True, eq=False)
class Load:
    """Requests as a workload of one case.

    Attributes:
        name: what messages call it.
        given: the requests.
    """

    name: str
    given: Requests

    def pool_size(self, split: str) -> int:
        """One case."""
        return 1

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests, whatever is asked for."""
        return self.given

    def at_rate(self, requests_per_s: float) -> Load:
        """The same at another rate: time is stretched."""
        return Load(self.name, self.given.at_rate(requests_per_s))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the counted requests, in order of arrival; the first and the last tenth are not counted.

    Attributes:
        ttft_s: (m,) time to first token.
        tpot_s: (m,) time per output token after the first; 0 for a request of one token.
        ttft_limit_s: the SLOs.
        tpot_limit_s: ...
        served_per_s: requests completed a second, over the whole run.
        preemptions: of requests, over the whole run.
        outside: how the run left the range that the cost model was measured in; ``None`` where it did not.
    """

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    ttft_limit_s: float
    tpot_limit_s: float
    served_per_s: float
    preemptions: int
    outside: str | None = None

    @cached_property
    def used(self) -> NDArray[np.float64]:
        """(m,) the larger of TTFT and TPOT as a share of its limit: the SLOs are met up to 1."""
        return np.maximum(self.ttft_s / self.ttft_limit_s, self.tpot_s / self.tpot_limit_s)

    @cached_property
    def met(self) -> NDArray[np.bool_]:
        """(m,) whether a request met both SLOs."""
        return self.used <= 1.0

    @cached_property
    def goodput(self) -> Estimate:
        """Share of requests that met both, with its interval over blocks, within 0 and 1."""
        found = mean_estimate(self.blocks())
        low, high = np.clip([found.low, found.high], 0.0, 1.0).tolist()
        return Estimate(float(self.met.mean()), low, high)

    def blocks(self) -> NDArray[np.float64]:
        """(BLOCKS,) goodput of stretches of consecutive requests."""
        return np.array([part.mean() for part in np.array_split(self.met, BLOCKS)])

    def value(self, target: float) -> float:
        """What a search maximises: goodput up to the target; from there on 2 - the share of the limits that is used.

        The used share is that of the request at the target: with a target of 0.99, the least share that 99 % of the
        requests do not exceed. So settings that all meet the target are told apart by their margin, and a setting that
        meets it is worth at least 1: more than any that does not.
        """
        reached = float(self.met.mean())
        return reached if reached < target else 2.0 - float(np.quantile(self.used, target, method="inverted_cdf"))

    def quantile(self, name: str, share: float) -> Estimate:
        """A quantile of ``ttft_s`` or ``tpot_s`` with its interval: blocks are drawn again."""
        values: NDArray[np.float64] = getattr(self, name)
        parts = np.array_split(values, BLOCKS)
        draws = np.random.default_rng(0).integers(BLOCKS, size=(RESAMPLES, BLOCKS))
        found = [np.quantile(np.concatenate([parts[i] for i in row]), share) for row in draws]
        return Estimate(float(np.quantile(values, share)), *np.quantile(found, [0.025, 0.975]).tolist())

    def better_than(self, other: Outcome) -> Estimate:
        """Goodput less another setting's under the same load, with the interval of the paired difference."""
        return mean_estimate(self.blocks() - other.blocks())

    def as_json(self) -> dict[str, Any]:
        """Plain values, fractions as fractions."""
        quantiles = {
            f"{name[:4]}_p{share:.0f}_s": self.quantile(name, share / 100).as_json()
            for name in ("ttft_s", "tpot_s")
            for share in (50.0, 99.0)
        }
        return {
            "goodput": self.goodput.as_json(),
            "ttft_met": float((self.ttft_s <= self.ttft_limit_s).mean()),
            "tpot_met": float((self.tpot_s <= self.tpot_limit_s).mean()),
            **quantiles,
            "served_requests_per_s": self.served_per_s,
            "preemptions": self.preemptions,
        }


def try_setting(setting: Setting, machine: Machine, load: Load) -> Outcome:
    """Simulate a setting under a load.

    Raises:
        ConfigError: a setting that the simulator refuses, or a request that the memory cannot hold.
    """
    scenario = machine.scenario(setting, load)
    episode = play(setting.policy(), scenario, 0, record=True)
    problem, served = episode.problem, episode.served
    slo = scenario.slo(problem.num_requests)
    assert slo is not None
    counted = slice(slo.first, slo.last)
    output = np.empty(problem.num_requests, np.int64)
    output[problem.request_of] = problem.requests[:, codes.OUTPUT]
    first, end = served["first_token_ns"][counted], served["completion_ns"][counted]
    return Outcome(
        (first - problem.release_ns[counted]) / NS_PER_S,
        (end - first) / np.maximum(1, output[counted] - 1) / NS_PER_S,
        machine.ttft_s,
        machine.tpot_s,
        problem.num_requests / (episode.view.clock_ns / NS_PER_S),
        int(episode.totals.preemptions),
        left_range(scenario, episode),
    )
