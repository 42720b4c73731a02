"""A set of small integers with insert, remove and 'first member from here on' in O(log_64 size).

A tree of 64-bit words: bit i of level 0 is member i, bit w of the next level says that word w of this one is not empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from llmsched_env.core.pointers import array_at
from llmsched_env.jit import inlined, jit

__all__ = ["contains", "find_from", "insert", "remove", "words_needed"]

ONE = np.uint64(1)
ZERO = np.uint64(0)
FULL = np.uint64(0xFFFFFFFFFFFFFFFF)


def words_needed(size: int) -> int:
    """Number of uint64 words that hold a set of members 0..size-1."""
    total = 0
    while True:
        size = (size + 63) >> 6
        total += size
        if size <= 1:
            return total


def _lowest_bit(word: Any) -> int:
    """Index of the lowest bit set (word is not 0)."""
    value = int(word)
    return (value & -value).bit_length() - 1


@intrinsic  # type: ignore[untyped-decorator]
def _count_trailing_zeros(typing_context: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@overload(_lowest_bit)  # type: ignore[untyped-decorator]
def _compiled_lowest_bit(word: Any) -> Any:
    def compiled(word: Any) -> Any:
        return _count_trailing_zeros(word)

    return compiled


@inlined
def _words(address: int, size: int) -> NDArray[np.uint64]:
    # At least as many words as there are; only interpreted code looks at the length.
    return array_at(address, ((size >> 5) + 4,), np.uint64)


@inlined
def insert(address: int, size: int, member: int) -> None:
    """Add ``member`` to the set of members below ``size`` whose words lie at ``address``."""
    bits = _words(address, size)
    base = 0
    while True:
        size = (size + 63) >> 6
        word = base + (member >> 6)
        before = bits[word]
        bits[word] = before | (ONE << np.uint64(member & 63))
        if before != ZERO or size <= 1:
            return
        base += size
        member >>= 6


@inlined
def remove(address: int, size: int, member: int) -> None:
    """Take ``member`` out of the set."""
    bits = _words(address, size)
    base = 0
    while True:
        size = (size + 63) >> 6
        word = base + (member >> 6)
        after = bits[word] & ~(ONE << np.uint64(member & 63))
        bits[word] = after
        if after != ZERO or size <= 1:
            return
        base += size
        member >>= 6


@inlined
def contains(address: int, size: int, member: int) -> bool:
    """Whether ``member`` is in the set."""
    return (_words(address, size)[member >> 6] >> np.uint64(member & 63)) & ONE != ZERO


@inlined
def find_from(address: int, size: int, member: int) -> int:
    """Smallest member that is at least ``member``, or -1."""
    if member >= size:
        return -1
    bits = _words(address, size)
    word = bits[member >> 6] & (FULL << np.uint64(member & 63))
    if word != ZERO:
        return (member & ~63) + _lowest_bit(word)
    # Climb until a word further right is not empty, then descend along lowest bits.
    level_base, width, level = 0, (size + 63) >> 6, 0
    while width > 1:
        level_base += width
        level += 1
        member = (member >> 6) + 1
        if member >= width:
            return -1
        word = bits[level_base + (member >> 6)] & (FULL << np.uint64(member & 63))
        if word != ZERO:
            return _descend(address, size, (member & ~63) + _lowest_bit(word), level)
        width = (width + 63) >> 6
    return -1


@jit
def _descend(address: int, size: int, member: int, level: int) -> int:
    # `member` counts the words of level - 1.
    bits = _words(address, size)
    while level > 0:
        level -= 1
        level_base, width = 0, (size + 63) >> 6
        for _ in range(level):
            level_base += width
            width = (width + 63) >> 6
        member = (member << 6) + _lowest_bit(bits[level_base + member])
    return member
