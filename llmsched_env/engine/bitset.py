"""Sets of small integers with insert, remove and 'first member from here on' in O(log_64 size).

A tree of 64-bit words: bit i of level 0 is member i, bit w of the next level says that word w of this one is not empty.
Each function takes the words, where in them the set begins, and its size, which is above all members.
"""

from __future__ import annotations

import cython


def words_needed(size: cython.int) -> cython.int:
    """Number of words that hold a set of members 0..size-1."""
    total: cython.int = 0
    while True:
        size = (size + 63) >> 6
        total += size
        if size <= 1:
            return total


def lowest_bit(word: cython.ulonglong) -> cython.int:
    """Index of the lowest bit set; the word is not 0."""
    # Each bit of the index tells in which half of its group the bit lies: no table. (Larger literals are no C numbers.)
    bit: cython.ulonglong = word & (~word + 1)
    index: cython.int = 0
    if (bit >> 32) != 0:
        bit >>= 32
        index = 32
    index += 0 if (bit & 0x55555555) != 0 else 1
    index += 0 if (bit & 0x33333333) != 0 else 2
    index += 0 if (bit & 0x0F0F0F0F) != 0 else 4
    index += 0 if (bit & 0x00FF00FF) != 0 else 8
    index += 0 if (bit & 0x0000FFFF) != 0 else 16
    return index


def insert(words: cython.ulonglong[::1], start: cython.int, size: cython.int, member: cython.int) -> cython.void:
    """Add ``member``."""
    first: cython.int = start
    at: cython.int
    before: cython.ulonglong
    one: cython.ulonglong = 1
    while True:
        size = (size + 63) >> 6
        at = first + (member >> 6)
        before = words[at]
        words[at] = before | (one << (member & 63))
        if before != 0 or size <= 1:
            return
        first += size
        member >>= 6


def remove(words: cython.ulonglong[::1], start: cython.int, size: cython.int, member: cython.int) -> cython.void:
    """Take ``member`` out."""
    first: cython.int = start
    at: cython.int
    after: cython.ulonglong
    one: cython.ulonglong = 1
    while True:
        size = (size + 63) >> 6
        at = first + (member >> 6)
        after = words[at] & ~(one << (member & 63))
        words[at] = after
        if after != 0 or size <= 1:
            return
        first += size
        member >>= 6


def contains(words: cython.ulonglong[::1], start: cython.int, member: cython.int) -> cython.bint:
    """Whether ``member`` is in the set."""
    return (words[start + (member >> 6)] >> (member & 63)) & 1


def find_from(words: cython.ulonglong[::1], start: cython.int, size: cython.int, member: cython.int) -> cython.int:
    """Smallest member that is at least ``member``, or -1."""
    word: cython.ulonglong
    first: cython.int = start
    width: cython.int
    level: cython.int = 0
    if member >= size:
        return -1
    word = words[start + (member >> 6)] >> (member & 63)
    if word != 0:
        return member + lowest_bit(word)
    # Climb until a word further right is not empty, then descend along lowest bits.
    width = (size + 63) >> 6
    while width > 1:
        first += width
        level += 1
        member = (member >> 6) + 1
        if member >= width:
            return -1
        word = words[first + (member >> 6)] >> (member & 63)
        if word != 0:
            return descend(words, start, size, member + lowest_bit(word), level)
        width = (width + 63) >> 6
    return -1


def ones(word: cython.ulonglong) -> cython.int:
    """How many bits are set."""
    one: cython.ulonglong = 1
    low: cython.ulonglong = word & ((one << 32) - 1)
    return ones_of_half(low) + ones_of_half(word >> 32)


def ones_of_half(word: cython.ulonglong) -> cython.int:
    """The same below 2**32: counted in pairs, fours and eights of bits."""
    word -= (word >> 1) & 0x55555555
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    word += word >> 8
    return cython.cast(cython.int, (word + (word >> 16)) & 63)


def nth(words: cython.ulonglong[::1], start: cython.int, size: cython.int, rank: cython.longlong) -> cython.int:
    """The member that ``rank`` members are smaller than, or -1; in O(size / 64)."""
    at: cython.int
    word: cython.ulonglong
    count: cython.int
    for at in range((size + 63) >> 6):
        word = words[start + at]
        count = ones(word)
        if rank < count:
            while rank > 0:
                word &= word - 1
                rank -= 1
            return (at << 6) + lowest_bit(word)
        rank -= count
    return -1


def descend(
    words: cython.ulonglong[::1], start: cython.int, size: cython.int, member: cython.int, level: cython.int
) -> cython.int:
    """First member below the word ``member`` of ``level`` - 1."""
    first: cython.int
    width: cython.int
    i: cython.int
    while level > 0:
        level -= 1
        first = start
        width = (size + 63) >> 6
        for i in range(level):  # noqa: B007  # a C variable
            first += width
            width = (width + 63) >> 6
        member = (member << 6) + lowest_bit(words[first + member])
    return member
