"""Iterations that do not last what schedulers are told: random factors, and a cost model that is not the believed one.

The durations in `VIEW`, and those that planners go on with, are the believed model's (``k.alpha_prefill_ns``, ...).
What an iteration lasts comes from the true coefficients (``k.true_alpha_prefill_ns``, ...), times the factor of its
kind and count: the i-th prefill and the i-th decode of a case have the same factors under every policy (common random
numbers).
A factor is a mean over one of `QUANTILES` equally likely parts of the lognormal law with mean 1; a straggler lasts
``straggler_factor`` times as long on top of it. Factors are whole multiples of 2^-20, and all arithmetic is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.core.layout import CAPACITY_TOKENS, LEVEL_COLUMNS, LEVEL_NS
from llmsched_env.core.pointers import array_at
from llmsched_env.jit import inlined, jit

__all__ = [
    "COEFFICIENTS",
    "ONE",
    "decode_lasts",
    "factor_table",
    "forget_truth",
    "mixed_lasts",
    "prefill_lasts",
]

FRACTION_BITS = 20
ONE = 2**FRACTION_BITS
"""The factor 1."""
QUANTILES = 2**12

COEFFICIENTS = ("alpha_prefill_ns", "beta_prefill_ns", "alpha_decode_ns", "beta_decode_ns", "gamma_decode_ns")

DECODES, PREFILLS = 0, 1
WORD = 0xFFFFFFFF
STRAGGLER = 0x3C6EF372
"""Tells the word that makes a straggler from the one that draws a factor."""


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


def forget_truth(k: Any) -> None:
    """Make a `SETUP` one of the world as it is believed to be: no noise, and the believed cost model."""
    k["disturbed"] = 0
    plain = not (k["kv_budget"] or k["mixed_budget"] or k["moving"])
    k["affine"] = k["num_levels"] == 0 and k["gamma_decode_ns"] == 0 and plain
    for name in (*(f"true_{name}" for name in COEFFICIENTS), "true_num_levels", "noise_key", "noise_size"):
        k[name] = 0
    k["straggler_limit"] = k["straggler_factor"] = 0


@inlined
def _scrambled(word: int) -> int:
    """A permutation of the 32-bit words, after 'lowbias32' of C. Wellons; 64-bit integers never overflow here."""
    word ^= word >> 16
    word = word * 0x7FEB352D & WORD
    word ^= word >> 15
    word = word * (0x846CA68B - 2**32) & WORD
    return word ^ (word >> 16)


@inlined
def _times(ns: int, factor: int) -> int:
    """``ns`` times a factor, rounded down: in two parts, neither of which overflows."""
    return (ns >> FRACTION_BITS) * factor + ((ns & (ONE - 1)) * factor >> FRACTION_BITS)


@inlined
def _lasts(k: Any, ns: int, kind: int, count: int) -> int:
    """What the iteration of this kind and count lasts, instead of ``ns``; at least 1 ns."""
    word = _scrambled(k.noise_key ^ _scrambled(2 * count + kind))
    if k.noise_size > 0:
        ns = _times(ns, array_at(k.noise_address, (k.noise_size,), np.int64)[word * k.noise_size >> 32])
    if _scrambled(word ^ STRAGGLER) < k.straggler_limit:
        ns = _times(ns, k.straggler_factor)
    return max(1, ns)


@jit
def prefill_lasts(v: Any, k: Any, tokens: int, copying_ns: int) -> int:
    """Duration of a prefill of ``tokens`` (which may be 0) and some copying, now."""
    ns = copying_ns
    if tokens > 0 and k.true_num_levels == 0:
        ns += k.true_alpha_prefill_ns + k.true_beta_prefill_ns * tokens
    elif tokens > 0:
        # The true levels lie behind the believed ones.
        levels = array_at(
            k.levels_address + 8 * LEVEL_COLUMNS * k.num_levels, (k.true_num_levels, LEVEL_COLUMNS), np.int64
        )
        level = 0
        while level < k.true_num_levels - 1 and levels[level, CAPACITY_TOKENS] < tokens:
            level += 1
        ns += levels[level, LEVEL_NS]
    return _lasts(k, ns, PREFILLS, v.prefills)


@jit
def decode_lasts(v: Any, s: Any, k: Any) -> int:
    """Duration of a decode now, copying included."""
    ns = k.true_alpha_decode_ns + k.true_beta_decode_ns * v.active + k.true_gamma_decode_ns * v.context_tokens
    return _lasts(k, ns + s.swap_out_ns, DECODES, v.decodes)


@jit
def mixed_lasts(v: Any, k: Any) -> int:
    """Duration of a mixed iteration now: its factor is that of its decode, or of a prefill where there is none."""
    if v.active > 0:
        return _lasts(k, v.mixed_ns, DECODES, v.decodes)
    return _lasts(k, v.mixed_ns, PREFILLS, v.prefills)
