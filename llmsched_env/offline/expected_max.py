"""Assignments for loads that are not known for certain: the least expected maximum of normal client loads.

Loads of requests are independent, with means and standard deviations as a predictor states them; the load of a client,
their sum, is taken as normal. The expected largest one has a closed form for two clients (Clark, The greatest of a
finite set of random variables, Oper. Res. 9, 1961). For any number, and for any level x,

    E[max_j L_j] <= x + sum_j E[(L_j - x)^+]

(Lai and Robbins, Maximally dependent random variables, PNAS 73, 1976). The right side is least where the expected
number of clients above x is one. With m_j and s_j mean and standard deviation of L_j, z = (x - m_j) / s_j, and phi and
Phi density and distribution function of the standard normal law,

    E[(L_j - x)^+] = s_j * phi(z) - (x - m_j) * Phi(-z)

so that for a given x the bound is a sum over clients, and an exchange between two of them changes two terms.
"""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.errors import ConfigError
from llmsched_env.offline.assignment import check_clients
from llmsched_env.offline.greedy import lpt
from llmsched_env.offline.kernels.expected_max import Exchange, total_excess

__all__ = ["assign_expected_max", "expected_max", "expected_max_bound"]

PAIRS_PER_CLIENT = 8
"""Pairs of clients tried in a round, for each client."""

POINTS = 1025
TAIL_SD = 9.0
"""Normal laws are cut there: 1e-19 lies beyond."""

MOST_DECODES = 2.0**31
LEAST_SD = 1e-9
LEAST_GAIN = 1e-9
"""Decode iterations: what is less is rounding."""

Loads = NDArray[np.float64]


def expected_max(means: ArrayLike, sds: ArrayLike) -> float:
    """Expected largest of independent normal loads, by integrating the product of their distribution functions.

    To a hundredth of the largest standard deviation, and far better where all are of a kind. What lies below 0 counts
    as 0.

    Args:
        means: (clients,) means.
        sds: (clients,) standard deviations; 0 for a load that is certain.

    Raises:
        ConfigError: not as many numbers in [0, 2**31] in both.
    """
    from scipy import special

    mean, sd = _checked(means, sds)
    certain = float(mean[sd == 0].max(initial=0.0))
    mean, sd = mean[sd > 0], sd[sd > 0]
    low = max(certain, float((mean - TAIL_SD * sd).max(initial=0.0)))
    high = float((mean + TAIL_SD * sd).max(initial=0.0))
    if high <= low:
        return low
    at = np.linspace(low, high, POINTS)
    below = np.exp(special.log_ndtr((at[:, None] - mean) / sd).sum(axis=1))
    return high - float(below.sum() - (below[0] + below[-1]) / 2) * (high - low) / (POINTS - 1)


def expected_max_bound(means: ArrayLike, sds: ArrayLike) -> float:
    """The bound of Lai and Robbins on it, at its best level; it holds for dependent loads, too.

    Args:
        means: (clients,) means.
        sds: (clients,) standard deviations.

    Raises:
        ConfigError: not as many numbers in [0, 2**31] in both.
    """
    mean, sd = _checked(means, sds)
    level = _level(mean, sd)
    return level + total_excess(level, mean.copy(), sd * sd)


def assign_expected_max(
    means: ArrayLike, sds: ArrayLike, clients: SupportsIndex, *, rounds: int = 8, seed: int = 0
) -> NDArray[np.int32]:
    """Assign requests to clients so that the bound on the expected largest load is low.

    Local search from LPT on the means: pairs of clients drawn by chance exchange one request for another, or one moves,
    where that lowers the bound most. The level follows after each round. Where all is certain it stays LPT.

    Args:
        means: (n,) expected loads in decode iterations.
        sds: (n,) their standard deviations; loads are independent.
        clients: number of clients, at least 1.
        rounds: of 8 pairs a client.
        seed: of the pairs. Equal arguments give equal assignments.

    Returns:
        (n,) int32 client of each request.

    Raises:
        ConfigError: not as many numbers in [0, 2**31] in both; no clients.
    """
    mean, sd = _checked(means, sds)
    count = check_clients(clients)
    mean, variance = mean.copy(), sd**2
    client_of = lpt(np.rint(mean).astype(np.int64), count)
    # xorshift32 needs a state that is not 0.
    state = (seed * 2654435761 + 0x9E3779B9) & 0xFFFFFFFF or 1
    for _ in range(rounds if count > 1 else 0):
        held_mean: Loads = np.bincount(client_of, mean, count).astype(np.float64)
        held_variance: Loads = np.bincount(client_of, variance, count).astype(np.float64)
        level = _level(held_mean, np.sqrt(held_variance))
        exchange = Exchange(mean, variance, client_of, held_mean, held_variance, LEAST_GAIN, state)
        state = exchange.run(level, PAIRS_PER_CLIENT * count)
    return client_of


def _checked(means: ArrayLike, sds: ArrayLike) -> tuple[Loads, Loads]:
    columns = np.asarray(means, np.float64), np.asarray(sds, np.float64)
    if columns[0].ndim != 1 or columns[0].shape != columns[1].shape or not columns[0].size:
        raise ConfigError(
            f"means has shape {columns[0].shape} and sds {columns[1].shape}: give one of each for every load, at least "
            "one."
        )
    for name, column in zip(("means", "sds"), columns, strict=True):
        bad = np.flatnonzero(~((column >= 0) & (column <= MOST_DECODES)))
        if bad.size:
            raise ConfigError(
                f"{name}[{bad[0]}] = {column[bad[0]]} is out of range: give decode iterations in [0, 2**31]."
            )
    return columns


def _level(mean: Loads, sd: Loads) -> float:
    """Where the expected number of clients above is one, by bisection."""
    from scipy import special

    sd = np.maximum(sd, LEAST_SD)
    low, high = float((mean - TAIL_SD * sd).min()), float((mean + TAIL_SD * sd).max())
    for _ in range(60):
        middle = (low + high) / 2
        if special.ndtr((mean - middle) / sd).sum() > 1:
            low = middle
        else:
            high = middle
    return high
