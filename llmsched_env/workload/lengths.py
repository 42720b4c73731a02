"""Token counts with a given mean and standard deviation: smooth laws, rounded to whole tokens."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import ConfigError, UnknownNameError

__all__ = ["LengthFamily", "LengthLaw", "check_limit", "check_moments", "check_number"]

LengthFamily = Literal["gamma", "lognormal"]

LARGEST_LIMIT = 2**20
"""A law keeps one threshold a token, so its limit bounds its memory: 8 MiB at most."""

NEGLIGIBLE_SD_TOKENS = 1e-6
"""Below it a law is a constant: special functions lose their footing, and rounding hides the difference."""


@dataclass(frozen=True)
class LengthLaw:
    """A positive continuous law, rounded to the nearest token and clipped to ``[1, max_tokens]``.

    Drawing is a search in a table of integers, ``thresholds[k - 1] = round(2**53 * P(X < k + 1/2))``, so that a draw
    depends on floating point only through that table: where two builds of the special functions differ in the last
    bit, a draw differs with a chance of about 1e-12.

    Rounding adds about 1/12 to the variance. Clipping moves what lies below half a token to 1 and what lies above the
    limit to the limit; :meth:`moments` has the mean and sd of what is really drawn.

    Attributes:
        family: ``"gamma"`` or ``"lognormal"``.
        mean_tokens: mean before rounding and clipping, in [1, ``max_tokens``].
        sd_tokens: standard deviation before rounding and clipping; below 1e-6, a constant.
        max_tokens: the longest length drawn.

    Raises:
        UnknownNameError: no such family.
        ConfigError: a mean, sd or limit out of range or not finite.
    """

    family: LengthFamily
    mean_tokens: float
    sd_tokens: float
    max_tokens: int = 2**16

    def __post_init__(self) -> None:
        if self.family not in get_args(LengthFamily):
            raise UnknownNameError("family of lengths", self.family, get_args(LengthFamily))
        check_limit("max_tokens", self.max_tokens)
        check_moments("", self.mean_tokens, self.sd_tokens, self.max_tokens)

    def thresholds(self) -> NDArray[np.uint64]:
        """(K,) uint64, non-decreasing, K < ``max_tokens``: the share of draws of at most k tokens, times 2**53."""
        return _thresholds(self)

    def draw(self, uniforms: NDArray[np.uint64]) -> NDArray[np.int32]:
        """(n,) int32 token counts from (n,) integers uniform on [0, 2**53)."""
        return (1 + np.searchsorted(_thresholds(self), uniforms, side="right")).astype(np.int32)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of what :meth:`draw` returns, from the table; no sampling."""
        return _moments(self)


def check_limit(name: str, value: object, most: int = LARGEST_LIMIT) -> None:
    """Check a longest length: an int in ``[1, most]``.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigError(f"{name} = {value!r} is out of range: pass an int in [1, {most}].")


def check_moments(prefix: str, mean_tokens: object, sd_tokens: object, max_tokens: int) -> None:
    """Check a mean against the longest length and a standard deviation; ``prefix`` begins their names in messages.

    Raises:
        ConfigError: one of them is not a finite number or out of range.
    """
    check_number(f"{prefix}mean_tokens", mean_tokens, 1.0, float(max_tokens))
    check_number(f"{prefix}sd_tokens", sd_tokens, 0.0, float(LARGEST_LIMIT))


def check_number(name: str, value: object, least: float, most: float) -> float:
    """A real number in ``[least, most]``.

    Raises:
        ConfigError: not a number (bool included), NaN, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ConfigError(f"{name} = {value!r} is not a number.")
    if not least <= value <= most:  # false for NaN
        raise ConfigError(f"{name} = {value} is out of range: it must lie in [{least:g}, {most:g}].")
    return float(value)


@functools.lru_cache(maxsize=64)
def _thresholds(law: LengthLaw) -> NDArray[np.uint64]:
    edges: NDArray[np.float64] = np.arange(1, law.max_tokens, dtype=np.float64) + 0.5
    table = np.rint(np.clip(_cdf(law, edges), 0.0, 1.0) * 2.0**53).astype(np.uint64)
    table = np.maximum.accumulate(table)
    # No uniform reaches 2**53, so entries there never count.
    table = table[: np.searchsorted(table, np.uint64(2**53), side="left")].copy()
    table.setflags(write=False)
    return table


@functools.lru_cache(maxsize=64)
def _moments(law: LengthLaw) -> tuple[float, float]:
    longer = 1.0 - _thresholds(law).astype(np.float64) * 2.0**-53  # P(N > k), k = 1, 2, ...
    k = np.arange(1, len(longer) + 1)
    mean = 1.0 + math.fsum(longer)
    second = 1.0 + math.fsum((2 * k + 1) * longer)
    return mean, math.sqrt(max(second - mean * mean, 0.0))


def _cdf(law: LengthLaw, x: NDArray[np.float64]) -> NDArray[Any]:
    mean, sd = float(law.mean_tokens), float(law.sd_tokens)
    if sd < NEGLIGIBLE_SD_TOKENS:
        return (mean < x).astype(np.float64)
    # scipy takes a tenth of a second to import, and the GSM8K workload does not need it.
    from scipy import special

    if law.family == "gamma":
        cdf: NDArray[Any] = special.gammainc((mean / sd) ** 2, x * (mean / sd**2))
        return cdf
    variance_log = math.log1p((sd / mean) ** 2)
    cdf = special.ndtr((np.log(x) - (math.log(mean) - variance_log / 2)) / math.sqrt(variance_log))
    return cdf
