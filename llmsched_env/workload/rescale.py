"""Exact stretching of integer times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["rescaled"]


def rescaled(values: NDArray[np.int64], numerator: int, denominator: int) -> NDArray[np.int64]:
    """(n,) int64: floor(value * ``numerator`` / ``denominator``), as if integers had no limit.

    Products leave 64 bits long before quotients do. So a quotient is estimated in floating point, and its remainder,
    which fits, is computed modulo 2**64 and corrects it.

    Args:
        values: (n,) integers in [0, ``denominator``].
        numerator: in [0, 2**62].
        denominator: at least 1, below 2**63.
    """
    # The estimate is off by at most 1 + numerator * 2**-51, so the remainder by as many denominators.
    if denominator * (numerator // 2**51 + 3) >= 2**63:
        return np.array([value * numerator // denominator for value in values.tolist()], np.int64)
    estimate = np.floor(values * (numerator / denominator)).astype(np.int64)
    with np.errstate(over="ignore"):
        remainder = values * np.int64(numerator) - estimate * np.int64(denominator)
    exact: NDArray[np.int64] = estimate + remainder // np.int64(denominator)
    return exact
