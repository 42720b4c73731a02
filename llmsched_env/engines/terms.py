"""Terms of a cost model that are in it only where a recording shows them, and what shows them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmsched_env.calibration import KindFit

__all__ = ["AfterPrefill", "Term", "after_prefill", "follows", "t_of", "tested"]

ENOUGH_DECODES = 8
"""Decodes that follow a prefill, and others, to be compared."""

T_NEEDED = 4.0
"""Standard errors that a term must be away from 0. Successive iterations are not independent, so 2 would be too few."""

LEAST_EFFECT = 0.01
"""Share of a usual iteration that a term must move over the range of the recording."""

P_NEEDED = 1e-3


@dataclass(frozen=True)
class Term:
    """A term that is in the model only where the data show it.

    Attributes:
        name: "context" or "interference".
        used: whether it is in the model.
        t: its coefficient over its standard error; infinite where the fit is exact.
        effect: share of a usual iteration that it moves over the range of the recording.
        why: why it could not be tested; "" where it was.
    """

    name: str
    used: bool
    t: float = 0.0
    effect: float = 0.0
    why: str = ""

    def told(self) -> str:
        """A line of text."""
        if self.why:
            return f"{self.name}: not tested, {self.why}"
        return (
            f"{self.name}: {'in the model' if self.used else 'left out'}; t = {self.t:.1f} (needed: {T_NEEDED:g}), "
            f"moves an iteration by {self.effect:.1%} over the range recorded (needed: {LEAST_EFFECT:.0%})"
        )


@dataclass(frozen=True)
class AfterPrefill:
    """Whether a decode that follows a prefill lasts longer than other decodes of its size.

    After a mixed iteration it does not: in 27 recordings of vLLM's own scheduler (docs/calibration.md) such decodes
    lasted 0.03 ms longer in the median; after the prefills of 45 others, 1.2 ms.

    Attributes:
        rows: such decodes.
        extra_ns: difference of the medians of what the other terms of the model leave over.
        p: of the Mann-Whitney test, two-sided.
        shown: whether the difference is one, and large enough to matter.
        used: whether it is in the model, as ``first_decode_ns``: it is shown, above 0, and t is large enough.
        t: that coefficient over its standard error; infinite where the fit is exact, 0 where it was not fitted.
    """

    rows: int
    extra_ns: float
    p: float
    shown: bool
    used: bool = False
    t: float = 0.0

    def told(self) -> str:
        """A line of text."""
        if self.rows == 0:
            return "first decode after a prefill: not tested, too few of them"
        what = "differs" if self.shown else "shows no difference that matters"
        return (
            f"first decode after a prefill: {what}: {self.extra_ns / 1e6:+.3g} ms in the median of {self.rows} "
            f"(Mann-Whitney p = {self.p:.2g}, t = {self.t:.1f}); {'' if self.used else 'not '}in the model"
        )


def t_of(fit: tuple[list[int], KindFit], place: int) -> float:
    """A coefficient over its standard error: infinite where the fit is exact, 0 where nothing is left to judge by."""
    value, error = fit[0][place], fit[1].standard_errors_ns[place]
    if math.isnan(error) or value <= 0:
        return 0.0
    return value / error if error > 0 else math.inf


def tested(name: str, fit: tuple[list[int], KindFit], range_per_ns: float) -> Term:
    """Whether the last coefficient of a fit is there, and matters.

    Args:
        name: of the term.
        fit: coefficients and their quality.
        range_per_ns: how far what it multiplies varies, over the time of a usual iteration in ns.
    """
    value, t = fit[0][-1], t_of(fit, -1)
    effect = value * range_per_ns
    return Term(name, bool(value > 0 and t >= T_NEEDED and effect >= LEAST_EFFECT), t, effect)


def follows(iterations: NDArray[np.void]) -> NDArray[np.bool_]:
    """(iterations,) which only decode, right after one that only reads."""
    reads, decodes = iterations["prefill_tokens"] > 0, iterations["decode_requests"] > 0
    found = np.zeros(len(reads), bool)
    found[1:] = (reads & ~decodes)[:-1] & ~reads[1:]
    return found


def after_prefill(
    first: NDArray[np.bool_], left_over: NDArray[np.float64], lasting: NDArray[np.float64]
) -> AfterPrefill:
    """Whether first decodes differ from the others in what a model leaves over.

    Args:
        first: (decodes,) which are the first after a prefill.
        left_over: (decodes,) ns beyond the model, without the term that is tested.
        lasting: (decodes,) ns in all.
    """
    from scipy.stats import mannwhitneyu  # a second to import

    rows = int(np.count_nonzero(first))
    if rows < ENOUGH_DECODES or np.count_nonzero(~first) < ENOUGH_DECODES:
        return AfterPrefill(0, 0.0, 1.0, False)
    extra = float(np.median(left_over[first]) - np.median(left_over[~first]))
    p = float(mannwhitneyu(left_over[first], left_over[~first]).pvalue) if extra else 1.0
    usual = float(np.median(lasting))
    return AfterPrefill(rows, extra, p, p < P_NEEDED and abs(extra) >= LEAST_EFFECT * usual)
