"""One setting under one load: what became of each request, in shares, margins and intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.evaluation import Estimate, mean_estimate, play, share_estimate, wilson_interval
from llmsched_env.evaluation.rollout import left_range
from llmsched_env.metrics import NS_PER_S, request_metrics, slos_met
from llmsched_env.recommend.setting import Machine, Setting
from llmsched_env.workload.requests import Requests

__all__ = ["BLOCKS", "Load", "Outcome", "try_setting"]

BLOCKS = 20
"""Stretches of consecutive requests that intervals are made of (the method of batch means)."""

RESAMPLES = 400


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
        ttft_met: (m,) whether a request met its SLO on the time to first token.
        tpot_met: (m,) whether it met that on the time per output token.
        ttft_limit_s: SLO on the time to first token.
        tpot_limit_s: SLO on the time per output token.
        served_per_s: requests completed a second, over the whole run.
        preemptions: of requests, over the whole run.
        outside: how the run left the range that the cost model was measured in; ``None`` where it did not.
    """

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    ttft_met: NDArray[np.bool_]
    tpot_met: NDArray[np.bool_]
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
        return self.ttft_met & self.tpot_met

    @cached_property
    def goodput(self) -> Estimate:
        """Share of requests that met both, with its interval over blocks, within 0 and 1.

        It is no narrower than if the requests were independent: blocks that are all at 100 % prove no certainty.
        """
        found = share_estimate(self.blocks())
        low, high = wilson_interval(self.met)
        return Estimate(float(self.met.mean()), min(found.low, low), max(found.high, high))

    @property
    def provable(self) -> float:
        """The lower end of that interval if every request met both."""
        return wilson_interval(np.ones(len(self.met)))[0]

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
            "ttft_met": float(self.ttft_met.mean()),
            "tpot_met": float(self.tpot_met.mean()),
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
    slo = scenario.slo(episode.problem.num_requests)
    assert slo is not None
    counted = slice(slo.first, slo.last)
    times_s = request_metrics(episode)
    ttft_met, tpot_met = slos_met(episode, slo.ttft_ns, slo.tpot_ns)
    return Outcome(
        times_s["ttft_s"][counted],
        np.nan_to_num(times_s["tpot_s"][counted]),
        ttft_met[counted],
        tpot_met[counted],
        machine.ttft_s,
        machine.tpot_s,
        episode.problem.num_requests / (episode.view.clock_ns / NS_PER_S),
        int(episode.totals.preemptions),
        left_range(scenario, episode),
    )
