"""Round numbers for axes."""

from __future__ import annotations

import math

__all__ = ["round_step", "round_up", "ticks", "time_unit"]

ROUND = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def round_up(value: float) -> float:
    """The next round number: an axis that ends there is at least four fifths full, and seldom changes."""
    decade = 10.0 ** math.floor(math.log10(value))
    return next(r * decade for r in ROUND if r * decade >= value * (1 - 1e-12))


def round_step(span: float, at_most: int) -> float:
    """The smallest 1, 2 or 5 times a power of ten that divides ``span`` into at most that many parts."""
    least = span / at_most
    decade = 10.0 ** math.floor(math.log10(least))
    return next(r * decade for r in (1.0, 2.0, 5.0, 10.0) if r * decade >= least * (1 - 1e-12))


def ticks(span: float, at_most: int) -> list[float]:
    """Multiples of a round step from 0 up to ``span``."""
    step = round_step(span, at_most)
    return [step * i for i in range(math.floor(span / step * (1 + 1e-12)) + 1)]


def time_unit(span_ns: float) -> tuple[str, float]:
    """The unit in which a span of time reads well, and its length in ns."""
    for name, length_ns in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if span_ns >= 2 * length_ns:
            return name, length_ns
    return "ns", 1.0
