"""xorshift32, the same on every machine (Marsaglia, Xorshift RNGs, J. Stat. Softw. 8(14), 2003)."""

from __future__ import annotations

import cython


def low_bits(word: cython.longlong) -> cython.longlong:
    """The lowest 32 bits of a number that is not negative."""
    return word - ((word >> 32) << 32)


def next_random(state: cython.longlong) -> cython.longlong:
    """The next state after a non-zero 32-bit state; 64-bit integers never overflow here."""
    state ^= low_bits(state << 13)
    state ^= state >> 17
    return state ^ low_bits(state << 5)
