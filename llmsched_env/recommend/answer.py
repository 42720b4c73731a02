"""The answer: search on the first part of a trace, confirm on the rest, and say up to which rate it holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from llmsched_env.cases import most_cached
from llmsched_env.cost import mixed_cost
from llmsched_env.errors import ConfigError, WorkloadError
from llmsched_env.evaluation import Estimate
from llmsched_env.recommend.search import MAX_SIMULATIONS, Found, search
from llmsched_env.recommend.setting import BLOCK_TOKENS, VLLM_DEFAULT, Machine, Setting
from llmsched_env.recommend.trial import Load, Outcome, try_setting
from llmsched_env.workload.requests import Requests

__all__ = ["FEWEST_REQUESTS", "Candidate", "Capacity", "Recommendation", "attainable", "recommend"]

FEWEST_REQUESTS = 400
"""Of a trace: half of them are searched on, and the others are cut into blocks of at least eight."""

RESOLUTION = 1.01
"""Neighbouring rates of the capacity search differ by less than this factor."""

WIDEST = 2.0**30
"""How far from the rate that was asked for capacity is looked for, as a factor: it may be that any rate holds."""

FASTEST_PER_S = 1e6
IDLE_CLIENT_S = 4e9
"""Capacity is looked for up to this rate, and down to where the longest gap, times the sequences, is this long: the
simulator counts 2^62 ns of client time."""

STOCK, FLAGS = "vLLM as it is", "the best with flags alone"

PREMIUM = (0.005, 1.02)
"""What a change from vLLM as it is, or from its flags to a scheduler class, must be worth: goodput up to the target, or
the rate that is held, as a factor."""


@dataclass(frozen=True)
class Capacity:
    """The rate up to which a setting holds the SLOs, in requests a second.

    Attributes:
        mean: up to which goodput is at the target.
        low: up to which the lower end of its interval is; 0 where so few requests cannot prove the target at any rate.
        high: up to which the upper end is.
    """

    mean: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"requests_per_s": self.mean, "ci95": [self.low, self.high]}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A setting on the part of the trace that the search did not see.

    Attributes:
        role: why it is here: "vLLM as it is", "the best with flags alone", "the best of all", or of another rule.
        setting: what was set.
        outcome: at the rate that was asked for.
        capacity: up to which rate it holds.
        tried: (rate, goodput) of every simulation of it, by rate.
    """

    role: str
    setting: Setting
    outcome: Outcome
    capacity: Capacity
    tried: tuple[tuple[float, Estimate], ...]


@dataclass(frozen=True, eq=False)
class Recommendation:
    """What to set, and why.

    Attributes:
        machine: what it is for.
        target: share of requests that are to meet both SLOs.
        rate_per_s: that was asked for.
        searched: requests that the search saw.
        confirmed: requests that it did not.
        chosen: the recommended setting.
        others: vLLM as it is, and further settings, best first.
        holds: whether the chosen one reaches the target at the rate; else the machine is too small.
        found: everything that the search tried.
        searched_at_per_s: rate of the search: lower than was asked for where that is too much for the machine.
    """

    machine: Machine
    target: float
    rate_per_s: float
    searched: int
    confirmed: int
    chosen: Candidate
    others: tuple[Candidate, ...]
    holds: bool
    found: Found = field(repr=False)
    searched_at_per_s: float

    @property
    def stock(self) -> Candidate:
        """The setting of a vLLM as it is."""
        return next(one for one in (self.chosen, *self.others) if one.setting == VLLM_DEFAULT)

    def machines(self) -> int:
        """How many such machines the rate needs, each with an equal share of it, as far as shares behave alike."""
        return math.ceil(self.rate_per_s / self.chosen.capacity.mean) if self.chosen.capacity.mean > 0 else 0

    def as_json(self) -> dict[str, Any]:
        """Plain values: everything but single requests."""

        def plain(one: Candidate) -> dict[str, Any]:
            return {
                "role": one.role,
                **one.setting.as_json(self.machine),
                **one.outcome.as_json(),
                "capacity": one.capacity.as_json(),
                "goodput_at": [[rate, *estimate] for rate, estimate in one.tried],
            }

        return {
            "holds": self.holds,
            "target": self.target,
            "rate_requests_per_s": self.rate_per_s,
            "ttft_s": self.machine.ttft_s,
            "tpot_s": self.machine.tpot_s,
            "cost": self.machine.cost_name,
            "kv_tokens": self.machine.kv_tokens,
            "prefix_caching": self.machine.prefix_caching,
            "requests_searched": self.searched,
            "requests_confirmed": self.confirmed,
            "search_rate_requests_per_s": self.searched_at_per_s,
            "recommended": plain(self.chosen),
            "others": [
                {**plain(one), "recommended_less_this": self.chosen.outcome.better_than(one.outcome).as_json()}
                for one in self.others
            ],
            "machines": None if self.holds else self.machines(),
            "tried": [
                {**setting.as_json(self.machine), "value": value} for setting, value in self.found.values.items()
            ],
        }


def recommend(
    requests: Requests,
    machine: Machine,
    *,
    rate_per_s: float | None = None,
    target: float = 0.99,
    max_simulations: int = MAX_SIMULATIONS,
    own_engine: bool = False,
    progress: Callable[[str, int], object] = lambda stage, done: None,
) -> Recommendation:
    """The setting of a machine for a trace and its SLOs.

    The search sees the first half of the requests. What is reported is simulated on the second half, from an empty
    server, without its first and last tenth. Up to four settings are confirmed there: vLLM as it is, the best with
    vLLM's flags alone, the best of all, and the best of another rule. Other flags, and then a scheduler class, are
    recommended where they are better by more than `PREMIUM`; the class only where flags do not surely hold the SLOs at
    the rate. Whether a difference is sure (95 %, paired) is said beside it.

    Args:
        requests: of the trace, in order of arrival.
        machine: what it is for, with the SLOs.
        rate_per_s: requests a second; ``None``: as recorded.
        target: share of requests that are to meet both SLOs.
        max_simulations: the search makes no more.
        own_engine: whether admission to the KV cache and swapping may be chosen, too.
        progress: called with the stage ("search", "confirm") and simulations done since the last call.

    Raises:
        ConfigError: a target that is no share, SLOs that no setting can keep, or a setting that is refused.
        WorkloadError: too few requests, or all at one time.
    """
    if not 0 < target <= 1:
        raise ConfigError(f"target = {target} is out of range: give the share of requests that are to meet the SLOs.")
    if len(requests) < FEWEST_REQUESTS:
        raise WorkloadError(
            f"the trace has {len(requests)} requests: half of them are searched on, the others confirm, and intervals "
            f"need blocks of them. Give at least {FEWEST_REQUESTS}."
        )
    reachable = attainable(requests, machine)
    if reachable < target:
        raise ConfigError(
            f"SLOs of {machine.ttft_s:g} s to the first token and {machine.tpot_s:g} s a token: even alone on this "
            f"machine only {reachable:.2%} of the requests meet them, and {target:.2%} are asked for. Relax them, "
            "lower the target, or take a faster machine."
        )
    first, second = halves(requests)
    recorded = requests.rate_per_s
    rate = recorded if rate_per_s is None else rate_per_s
    stretch = rate / recorded
    searching, confirming = (Load(name, part) for name, part in (("first part", first), ("second part", second)))
    searching, confirming = (load.at_rate(load.given.rate_per_s * stretch) for load in (searching, confirming))

    def count(best: float) -> None:
        progress("search", 1)

    searched = partial(
        search, machine, target=target, max_simulations=max_simulations, own_engine=own_engine, progress=count
    )
    found = searched(searching)
    searched_at = rate
    if max(found.values.values()) < target:
        # What is best in overload need not hold the highest rate: search again where overload begins.
        best = found.best()
        assert best is not None
        holds = _capacity(best, machine, searching, target, rate, ends=("mean",))[0].mean
        if holds > 0:
            searched_at = holds
            found = searched(searching.at_rate(searching.given.rate_per_s * holds / rate))
    candidates = []
    for role, setting in _candidates(found).items():
        outcome = try_setting(setting, machine, confirming)
        capacity, tried = _capacity(setting, machine, confirming, target, rate, lambda: progress("confirm", 1))
        candidates.append(Candidate(role, setting, outcome, capacity, tried))
    chosen, others = _choose(candidates, target, rate)
    return Recommendation(
        machine, target, rate, len(first), len(second), chosen, others, chosen.outcome.goodput.mean >= target, found,
        searched_at,
    )  # fmt: skip


def halves(requests: Requests) -> tuple[Requests, Requests]:
    """The first and the second half, each from time 0; of output lengths the mean of the first is known in both.

    Raises:
        WorkloadError: a half whose requests come all at one time.
    """
    cut = len(requests) // 2
    known = float(requests.output_tokens[:cut].mean())
    parts = []
    blocks = requests.prefix_blocks
    for rows in (slice(0, cut), slice(cut, None)):
        release = requests.release_ns[rows]
        if release[0] == release[-1]:
            raise WorkloadError(
                "half of the trace's requests come at one time: a rate needs arrival times. Give a trace with them."
            )
        parts.append(
            Requests.of(
                requests.prompt_tokens[rows], requests.output_tokens[rows], release_ns=release - release[0],
                mean_output_tokens=known,
                prefix_blocks=None if blocks is None else blocks.take(np.arange(len(requests))[rows]),
            )
        )  # fmt: skip
    return parts[0], parts[1]


def attainable(requests: Requests, machine: Machine) -> float:
    """An upper bound on goodput: the share of requests that would meet both SLOs alone on an idle machine.

    Alone a prompt takes at least its prefill or its part of a mixed iteration, whichever is cheaper, and a token a
    decode of one client. With prefix caching what another prompt begins with, too, may be there already.
    """
    cost = machine.cost
    prompts = requests.prompt_tokens.astype(np.int64)
    if machine.prefix_caching:
        prompts = prompts - most_cached(requests, BLOCK_TOKENS)
    if cost.prefill_levels:
        read_ns = np.full(len(prompts), cost.prefill_levels[0][1], np.int64)
    else:
        mixed = mixed_cost(machine.mixed_cost, cost)
        alpha, beta = cost.alpha_prefill_ns, cost.beta_prefill_ns
        if not mixed.overlaps:
            alpha, beta = min(alpha, mixed.alpha_ns), min(beta, mixed.beta_prompt_ns)
        read_ns = alpha + beta * prompts
    in_time = read_ns <= machine.ttft_s * 1e9
    if cost.decode_ns(1) > machine.tpot_s * 1e9:
        in_time &= requests.output_tokens == 1
    return float(in_time.mean())


def _candidates(found: Found) -> dict[str, Setting]:
    """What is confirmed: vLLM as it is, and the best of each kind, each setting once."""
    flags = found.best(lambda setting: setting.runs_in_vllm and not setting.needs_scheduler)
    best = found.best()
    assert best is not None
    other = found.best(lambda setting: setting.rule != best.rule)
    named = {STOCK: VLLM_DEFAULT, FLAGS: flags, "the best of all": best, "the best of another rule": other}
    kept: dict[str, Setting] = {}
    for role, setting in named.items():
        if setting is not None and setting not in kept.values():
            kept[role] = setting
    return kept


def _choose(candidates: list[Candidate], target: float, rate: float) -> tuple[Candidate, tuple[Candidate, ...]]:
    """What is recommended, and the others, best first; of those within half a point of goodput the highest rate held.

    A scheduler class is nobody's wish where vLLM's flags surely hold the SLOs, or where it is not surely better.
    """

    def rank(one: Candidate) -> tuple[float, float]:
        return min(one.outcome.goodput.mean, target), one.capacity.mean

    chosen = candidates[0]
    for needs_scheduler in (False, True):
        kind = [one for one in candidates if one.setting.needs_scheduler is needs_scheduler]
        first = max(kind, key=rank, default=chosen)
        level = [one for one in kind if rank(one)[0] >= rank(first)[0] - PREMIUM[0]]
        best = max(level, key=lambda one: one.capacity.mean, default=chosen)
        if needs_scheduler and (chosen.capacity.low >= rate or not _surely_better(best, chosen)):
            break
        if _worth_it(best, chosen, target):
            chosen = best
    return chosen, tuple(sorted((one for one in candidates if one is not chosen), key=rank, reverse=True))


def _worth_it(one: Candidate, other: Candidate, target: float) -> bool:
    """Whether it is better by more than `PREMIUM`."""
    goodput, capacity = PREMIUM
    ahead = min(one.outcome.goodput.mean, target) - min(other.outcome.goodput.mean, target)
    return ahead > goodput or (ahead >= 0 and one.capacity.mean > capacity * other.capacity.mean)


def _surely_better(one: Candidate, other: Candidate) -> bool:
    """Whether the interval of its goodput's lead, or that of the rate that it holds, says so."""
    return one.outcome.better_than(other.outcome).low > 0 or one.capacity.low > other.capacity.mean


def _capacity(
    setting: Setting,
    machine: Machine,
    load: Load,
    target: float,
    rate: float,
    progress: Callable[[], object] = lambda: None,
    ends: tuple[str, ...] = ("mean", "low", "high"),
) -> tuple[Capacity, tuple[tuple[float, Estimate], ...]]:
    """Up to which rate a setting holds the SLOs, by bisection over the rate."""
    tried: dict[float, Outcome] = {}
    own = load.given.rate_per_s

    def at(step: float) -> Outcome:
        there = rate * step
        if there not in tried:
            tried[there] = try_setting(setting, machine, load.at_rate(own * step))
            progress()
        return tried[there]

    longest_gap_s = float(np.diff(load.given.release_ns).max()) / 1e9
    lowest = max(1 / WIDEST, longest_gap_s * setting.max_num_seqs / IDLE_CLIENT_S)
    highest = min(WIDEST, FASTEST_PER_S / own)
    found = {
        end: rate * _last_that_holds(lambda step: getattr(at(step).goodput, end) >= target, lowest, highest)  # noqa: B023
        for end in ends
        if end != "low" or at(1.0).provable >= target
    }
    mean = found["mean"]
    low = found.get("low", 0.0 if "low" in ends else mean)
    goodput = sorted((there, outcome.goodput) for there, outcome in tried.items())
    return Capacity(mean, low, found.get("high", mean)), tuple(goodput)


def _last_that_holds(holds: Callable[[float], bool], lowest: float, highest: float) -> float:
    """The largest factor of the rate at which something holds, within `RESOLUTION`; 0 for none.

    No factor below ``lowest`` nor above ``highest`` is tried, but for 1.
    """
    low = high = 1.0
    if holds(1.0):
        while holds(high):
            if high >= highest:
                return high
            low, high = high, min(highest, high * 2)
    else:
        while not holds(low):
            if low <= lowest:
                return 0.0
            low, high = max(lowest, low / 2), low
    while high / low > RESOLUTION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
