"""Means with confidence intervals over cases, and scores that are ratios of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

__all__ = ["Estimate", "mean_estimate", "score_estimate"]

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


def score_estimate(policy: ArrayLike, rule: ArrayLike, planner: ArrayLike) -> Estimate:
    """(rule - policy) / (rule - planner) of means of what is to be small; percentile bootstrap over cases (seed 0).

    0 is the best tuned rule, 1 the planner. NaN where rule and planner do not differ.
    """
    columns = np.stack([np.asarray(values, np.float64) for values in (policy, rule, planner)])
    mean = _ratio(columns.mean(axis=1)[:, None])[0]
    if columns.shape[1] < 2 or np.isnan(mean):
        return Estimate(float(mean), float("nan"), float("nan"))
    drawn = np.random.default_rng(0).integers(columns.shape[1], size=(RESAMPLES, columns.shape[1]))
    low, high = np.nanquantile(_ratio(columns[:, drawn].mean(axis=2)), [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Estimate(float(mean), float(low), float(high))


def _ratio(means: NDArray[np.float64]) -> NDArray[np.float64]:
    policy, rule, planner = means
    gain = rule - planner
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(gain > 0, (rule - policy) / gain, np.nan)
