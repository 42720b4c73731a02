"""Means with confidence intervals over cases and training runs, and scores that are ratios of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from llmsched_env.errors import ConfigError

__all__ = [
    "Estimate",
    "aggregate_estimate",
    "mean_estimate",
    "runs_estimate",
    "score_estimate",
    "share_estimate",
    "wilson_interval",
]

CONFIDENCE = 0.95
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean over cases and its 95 % confidence interval (NaN bounds where one case says nothing of the spread)."""

    mean: float
    low: float
    high: float

    def as_json(self) -> dict[str, object]:
        """``{"mean", "ci95": [lo, hi]}``; null where not a number."""
        plain = [None if np.isnan(x) else float(x) for x in self]
        return {"mean": plain[0], "ci95": plain[1:]}


def mean_estimate(values: ArrayLike) -> Estimate:
    """Student's t interval of the mean over cases."""
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    half = float(stdtrit(len(x) - 1, 0.5 + CONFIDENCE / 2) * x.std(ddof=1) / np.sqrt(len(x)))
    return Estimate(mean, mean - half, mean + half)


def share_estimate(values: ArrayLike) -> Estimate:
    """As `mean_estimate`, of shares: the interval stays within 0 and 1."""
    found = mean_estimate(values)
    return Estimate(found.mean, *np.clip([found.low, found.high], 0.0, 1.0).tolist())


def wilson_interval(met: ArrayLike) -> tuple[float, float]:
    """Wilson's score interval of a share, as if its members were independent; it is never of width 0 (JASA 1927).

    Args:
        met: (m,) whether each did.
    """
    flags = np.asarray(met, np.bool_)
    z2, m = float(ndtri(0.5 + CONFIDENCE / 2)) ** 2, len(flags)
    share = float(flags.mean())
    middle = (share + z2 / (2 * m)) / (1 + z2 / m)
    half = math.sqrt(z2 * (share * (1 - share) / m + z2 / (4 * m * m))) / (1 + z2 / m)
    return max(0.0, middle - half), min(1.0, middle + half)


def runs_estimate(runs: ArrayLike) -> Estimate:
    """Interquartile mean over training runs of their means over cases; percentile bootstrap over both.

    As rliable reports results (Agarwal et al., NeurIPS 2021), for one task: runs and cases are both drawn again, the
    cases alike for all runs, which played the same ones (2000 times, seeds 0 and 1).

    Args:
        runs: (runs, cases), or (cases,) for a single run, whose interval is then over the cases alone.

    Raises:
        ConfigError: another shape, or nothing in it.
    """
    values = _by_runs("runs", runs)
    mean = float(_interquartile_mean(values.mean(axis=1)))
    if values.shape[1] < 2:
        return Estimate(mean, float("nan"), float("nan"))
    return Estimate(mean, *_interval(_drawn_means(values, _draws(values.shape[1]))))


def score_estimate(policy: ArrayLike, rule: ArrayLike, planner: ArrayLike) -> Estimate:
    """(rule - policy) / (rule - planner) of means of what is to be small; percentile bootstrap over cases (seed 0).

    0 is the best tuned rule, 1 the planner. NaN where the planner is not better than the rule, or not surely so: where
    the interval of rule - planner reaches 0, the ratio means nothing.

    Args:
        policy: (cases,), or (runs, cases) for several training runs: their interquartile mean, as `runs_estimate`.
        rule: (cases,).
        planner: (cases,).

    Raises:
        ConfigError: another shape, another number of cases than the others, or nothing in it.
    """
    runs = _by_runs("policy", policy)
    ends = [_of_cases(name, values, runs.shape[1]) for name, values in (("rule", rule), ("planner", planner))]
    nothing = float("nan")
    reached, tuned, planned = (float(_interquartile_mean(values.mean(axis=1))) for values in (runs, *ends))
    if not tuned > planned:
        return Estimate(nothing, nothing, nothing)
    mean = (tuned - reached) / (tuned - planned)
    if runs.shape[1] < 2:
        return Estimate(mean, nothing, nothing)
    cases = _draws(runs.shape[1])
    tuned_means, planned_means = (_drawn_means(values, cases) for values in ends)
    gain = tuned_means - planned_means
    if _interval(gain)[0] <= 0:
        return Estimate(nothing, nothing, nothing)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(gain > 0, (tuned_means - _drawn_means(runs, cases)) / gain, np.nan)
    return Estimate(mean, *_interval(ratio))


def aggregate_estimate(tasks: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]]) -> Estimate:
    """One number for several tasks: the interquartile mean of the scores of all runs in all tasks, and its interval.

    As rliable aggregates (Agarwal et al., NeurIPS 2021): the lowest and the highest quarter of the scores are left out,
    and the rest is averaged. All tasks weigh alike, also where one has more runs than another, and a score at the edge
    of a quarter counts in part: a run that is given twice changes nothing. A score is that of :func:`score_estimate`.
    NaN where one task has no score.

    The interval is a stratified percentile bootstrap (2000 times): each task keeps its numbers of cases and of runs.
    The cases are drawn again alike for policy, rule and planner, and alike in all tasks with as many cases: tasks that
    share their requests err together, and independent draws would make the interval too narrow. Runs are drawn again
    in each task by themselves.

    Args:
        tasks: (policy, rule, planner) of each, of what is to be small, as `score_estimate` takes them.

    Raises:
        ConfigError: no tasks, or one that `score_estimate` refuses.
    """
    if not tasks:
        raise ConfigError("no tasks: give (policy, rule, planner) of at least one.")
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    scores, drawn = [], []
    for number, (policy, rule, planner) in enumerate(tasks):
        if math.isnan(score_estimate(policy, rule, planner).mean):
            return nothing
        runs = _by_runs("policy", policy)
        ends = [np.asarray(values, np.float64) for values in (rule, planner)]
        scores.append((ends[0].mean() - runs.mean(axis=1)) / (ends[0].mean() - ends[1].mean()))
        cases = _draws(runs.shape[1])
        tuned, planned = (values[cases].mean(axis=1) for values in ends)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = np.where(
                tuned > planned, (tuned - _drawn_runs(runs, cases, [1, number])) / (tuned - planned), np.nan
            )
        drawn.append(ratios)
    weights = _equal_tasks([len(one) for one in scores])
    mean = float(_weighted_middle(np.concatenate(scores)[:, None], *weights)[0])
    if any(len(np.atleast_1d(rule)) < 2 for _, rule, _ in tasks):  # one case says nothing of the spread
        return nothing._replace(mean=mean)
    return Estimate(mean, *_interval(_weighted_middle(np.concatenate(drawn), *weights)))


def _equal_tasks(counts: Sequence[int]) -> tuple[NDArray[np.float64], float]:
    """(runs of all tasks,) weights that sum up to 1 in each task, and what is cut off at each end.

    A quarter exactly, through the middle of a score where it falls there: rounded to whole scores, it would be another
    one where runs are repeated. Where it is whole it is scipy's ``trim_mean``.
    """
    return np.concatenate([np.full(count, 1.0 / count) for count in counts]), len(counts) / 4


def _weighted_middle(values: NDArray[np.float64], weights: NDArray[np.float64], cut: float) -> NDArray[np.float64]:
    """Along the first axis: the weighted mean without ``cut`` of the weight at each end; NaN where one value is."""
    order = np.argsort(values, axis=0)
    weight = weights[order]
    above = np.cumsum(weight, axis=0)
    end = weights.sum() - cut
    kept = np.clip(above, cut, end) - np.clip(above - weight, cut, end)
    mean: NDArray[np.float64] = (kept * np.take_along_axis(values, order, axis=0)).sum(axis=0) / kept.sum(axis=0)
    return mean


def _by_runs(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """(runs, cases)."""
    table = np.asarray(values, np.float64)
    if table.ndim not in (1, 2) or not table.size:
        raise ConfigError(
            f"{name} has shape {table.shape}: give (cases,), or (runs, cases) for several training runs, with at least "
            "one of each."
        )
    return np.atleast_2d(table)


def _of_cases(name: str, values: ArrayLike, cases: int) -> NDArray[np.float64]:
    """(1, cases)."""
    row = np.asarray(values, np.float64)
    if row.shape != (cases,):
        raise ConfigError(
            f"{name} has shape {row.shape}, but the policy played {cases} cases: give one value a case, ({cases},), "
            "of the same cases in the same order."
        )
    return np.atleast_2d(row)


def _draws(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def _drawn_means(values: NDArray[np.float64], cases: NDArray[np.int64]) -> NDArray[np.float64]:
    """(resamples,): interquartile means over runs, drawn again if there are several, of means over the drawn cases."""
    return _interquartile_mean(_drawn_runs(values, cases, 1))


def _drawn_runs(values: NDArray[np.float64], cases: NDArray[np.int64], seed: int | list[int]) -> NDArray[np.float64]:
    """(runs, resamples): means over the drawn cases, of runs drawn again if there are several."""
    means: NDArray[np.float64] = values[:, cases].mean(axis=2)
    if len(means) > 1:
        runs = np.random.default_rng(seed).integers(len(means), size=means.shape)
        means = np.take_along_axis(means, runs, axis=0)
    return means


def _interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the first axis: the mean of what is left without the lowest and the highest quarter."""
    cut = len(values) // 4
    mean: NDArray[np.float64] = np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)
    return mean


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.nanquantile(values, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
