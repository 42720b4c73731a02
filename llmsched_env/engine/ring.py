"""The ring of decodes to come: who finishes at each, and how many are expected to, by decode count modulo its size."""

from __future__ import annotations

import cython

from llmsched_env.engine import codes


def ending(mask: cython.longlong, decode: cython.longlong) -> cython.longlong:
    """Where it says who finishes in a decode."""
    return (decode & mask) * codes.RING_COLUMNS + codes.ENDING


def expected(mask: cython.longlong, decode: cython.longlong) -> cython.longlong:
    """Where it says how many are expected to."""
    return (decode & mask) * codes.RING_COLUMNS + codes.EXPECTED
