"""Chance that is the same for ever: raw 64-bit words, and our own maps from them.

numpy keeps the raw streams of its bit generators (and ``SeedSequence``) stable between versions, but not the methods of
``Generator``. A case must not change when numpy does, so nothing here calls such a method.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from llmsched_env.workload.protocol import SPLITS

__all__ = ["Stream", "bernoulli", "permutation", "raw_words", "standard_normal", "uniform_53", "with_replacement"]

Words = NDArray[np.uint64]


class Stream(IntEnum):
    """What a stream of words is for. Each purpose has a stream of its own, so that none shifts another."""

    ORDER = 0
    RESAMPLE = 1
    CAP = 2
    PROMPT = 3
    OUTPUT = 4
    ARRIVAL = 5
    STATE = 6
    WINDOW = 7
    PREDICTION = 8
    CERTAINTY = 9
    JITTER = 10


def raw_words(family: str, split: str, number: int, stream: Stream, count: int) -> Words:
    """The first ``count`` words of one stream of one case.

    Args:
        family: what seeds the workload; workloads of one family share their chance and can be compared in pairs.
        split: one of ``SPLITS``.
        number: of the case, from 0.
        stream: what the words are for.
        count: how many; fewer are a prefix of more.

    Returns:
        (count,) uint64, uniform on [0, 2**64).
    """
    family_id = int.from_bytes(hashlib.sha256(family.encode()).digest()[:4], "little")
    # SeedSequence concatenates 32-bit words: only the last entry may need several, or two cases could coincide.
    seed = np.random.SeedSequence([family_id, SPLITS.index(split), int(stream), number])
    return np.random.PCG64(seed).random_raw(count)


def bernoulli(words: Words, probability: float) -> NDArray[np.bool_]:
    """(n,) bool: whether each word is below ``probability`` * 2**64."""
    threshold = int(probability * 2.0**64)  # exact: a power of two only moves the exponent
    if threshold >= 2**64:
        return np.ones(len(words), np.bool_)
    hits: NDArray[np.bool_] = words < np.uint64(threshold)
    return hits


def permutation(words: Words, count: int | None = None) -> NDArray[np.int64]:
    """(n,) int64: the numbers 0..n-1 in the order of the words, equal ones in their own; or the first ``count``."""
    if count is None or not 0 < count < len(words):
        return np.argsort(words, kind="stable").astype(np.int64)[:count]
    last = np.partition(words, count - 1)[count - 1]
    (early,) = np.nonzero(words <= last)  # in their order, those that equal the last included
    return early[np.argsort(words[early], kind="stable")][:count].astype(np.int64)


def with_replacement(words: Words, population: int) -> NDArray[np.int64]:
    """(n,) int64: numbers in [0, ``population``), each with chance 1/``population`` to within 2**-32.

    ``population`` is at most 2**32; the upper half of the word is scaled, which needs no rejection.
    """
    assert 1 <= population <= 2**32
    scaled: Words = (words >> np.uint64(32)) * np.uint64(population) >> np.uint64(32)
    return scaled.astype(np.int64)


def uniform_53(words: Words) -> Words:
    """(n,) uint64, uniform on [0, 2**53): the integers that a double holds exactly."""
    upper: Words = words >> np.uint64(11)
    return upper


def standard_normal(words: Words) -> NDArray[np.float64]:
    """(n,) float64, standard normal: by inversion of the upper 52 bits and a half, exact in a double and below 1."""
    # scipy takes a tenth of a second to import.
    from scipy import special

    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    normal: NDArray[np.float64] = special.ndtri(uniform)
    return normal
