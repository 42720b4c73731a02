"""Iterations that do not last what schedulers believe: random factors, the same under every policy.

What an iteration lasts is its duration under the true cost model, times the factor of its kind and count: the i-th
prefill and the i-th decode of a case have the same factors under every policy (common random numbers). A factor is a
mean over one of `QUANTILES` equally likely parts of the lognormal law with mean 1; a straggler lasts
``straggler_factor`` times as long on top of it. Factors are whole multiples of 2^-20, and all arithmetic is exact.
"""

from __future__ import annotations

import cython
import numpy as np
from numpy.typing import NDArray

from llmsched_env.engine.arrays import view_of

FRACTION_BITS = 20
ONE = 2**FRACTION_BITS
"""The factor 1."""

QUANTILES = 2**12


class Noise:
    """The factors of a case.

    Attributes:
        enabled: whether iterations last something else than schedulers believe, be it a wrong model without noise.
        key: 32 bits that fix all factors of a case.
        size: entries of the table; 0 without random factors.
        table: (max(1, size),) int64: factors in multiples of 2^-20, ascending.
        straggler_limit: an iteration whose 32-bit word is below it is a straggler.
        straggler_factor: in multiples of 2^-20.
    """

    enabled: cython.bint
    key: cython.longlong
    size: cython.longlong
    table: cython.longlong[::1]
    straggler_limit: cython.longlong
    straggler_factor: cython.longlong

    def __init__(
        self,
        enabled: bool = False,
        noise_sd: float = 0.0,
        straggler_probability: float = 0.0,
        straggler_factor: float = 1.0,
        key: int = 0,
    ) -> None:
        self.enabled = enabled
        self.key = key
        table = factor_table(noise_sd)
        self.size = len(table)
        self.table = view_of(table if len(table) else np.zeros(1, np.int64))
        self.straggler_limit = round(straggler_probability * 2**32)
        self.straggler_factor = round(straggler_factor * ONE)

    def actual_ns(self, ns: cython.longlong, kind: cython.int, count: cython.longlong) -> cython.longlong:
        """What the ``count``-th iteration of this kind (0 decode, 1 prefill) lasts, instead of ``ns``; at least 1."""
        word: cython.longlong = scrambled(self.key ^ scrambled(2 * count + kind))
        if self.size > 0:
            ns = times(ns, self.table[(word * self.size) >> 32])
        if scrambled(word ^ 0x3C6EF372) < self.straggler_limit:  # another word than the factor's
            ns = times(ns, self.straggler_factor)
        return ns if ns > 1 else 1


def scrambled(word: cython.longlong) -> cython.longlong:
    """A permutation of the 32-bit words, after 'lowbias32' of C. Wellons; in 64 bits, of which nothing overflows."""
    word ^= word >> 16
    word = low_bits(word * 0x7FEB352D)
    word ^= word >> 15
    # 0x846CA68B in two factors' worth of additions, each product below 2^63.
    word = low_bits(word * 0x046CA68B + low_bits(word << 31))
    return word ^ (word >> 16)


def low_bits(word: cython.longlong) -> cython.longlong:
    """The lowest 32 bits."""
    return word - ((word >> 32) << 32)


def times(ns: cython.longlong, factor: cython.longlong) -> cython.longlong:
    """``ns`` times a factor, rounded down: in two parts, neither of which overflows."""
    return (ns >> 20) * factor + (((ns & 0xFFFFF) * factor) >> 20)


def factor_table(noise_sd: float) -> NDArray[np.int64]:
    """(QUANTILES,) factors in multiples of 2^-20, ascending, with mean 1; none where ``noise_sd`` is 0.

    With z the standard normal and q_i its quantiles, the factor exp(sd z - sd^2 / 2) has, over z in (q_i, q_i+1), the
    mean (Phi(q_i+1 - sd) - Phi(q_i - sd)) * QUANTILES.
    """
    if noise_sd == 0:
        return np.empty(0, np.int64)
    # scipy takes a tenth of a second to import.
    from scipy import special

    ends = special.ndtr(special.ndtri(np.arange(QUANTILES + 1) / QUANTILES) - noise_sd)
    table: NDArray[np.int64] = np.rint(np.diff(ends) * QUANTILES * ONE).astype(np.int64)
    return table
