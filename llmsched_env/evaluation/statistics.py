"""Means with confidence intervals over cases and training runs, and scores that are ratios of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from llmsched_env.errors import ConfigError

__all__ = ["Estimate", "mean_estimate", "runs_estimate", "score_estimate"]

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
    means = values[:, cases].mean(axis=2)
    if len(means) > 1:
        runs = np.random.default_rng(1).integers(len(means), size=means.shape)
        means = np.take_along_axis(means, runs, axis=0)
    return _interquartile_mean(means)


def _interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the first axis: the mean of what is left without the lowest and the highest quarter."""
    cut = len(values) // 4
    mean: NDArray[np.float64] = np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)
    return mean


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.nanquantile(values, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)
