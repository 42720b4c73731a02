"""The bitset against Python's set."""

from __future__ import annotations

import bisect

import numpy as np
import pytest

from llmsched_env.core.bitset import contains, find_from, insert, remove, words_needed

SIZES = [1, 63, 64, 65, 4096, 4097, 300_000]


def members_to_try(size, rng):
    edges = {0, 1, 62, 63, 64, 65, 4094, 4095, 4096, 4097, size // 2, size - 2, size - 1}
    return sorted({int(m) for m in edges if 0 <= m < size} | set(rng.integers(0, size, 20).tolist()))


@pytest.mark.parametrize("size", SIZES)
def test_bitset_is_a_set(size):
    rng = np.random.default_rng(size)
    words = np.zeros(words_needed(size) + 1, np.uint64)
    guard = np.uint64(0xDEADBEEF)
    words[-1] = guard
    address, truth, tried = words.ctypes.data, set(), members_to_try(size, rng)
    emptied = 0
    for round_ in range(400):
        # Fill up and drain in turn, so that upper levels are set and cleared many times; also what is (not) there.
        filling = round_ % 100 < 40
        member = int(rng.choice(sorted(truth) if truth and not filling and round_ % 5 else tried))
        if filling:
            insert(address, size, member)
            truth.add(member)
        else:
            remove(address, size, member)
            truth.discard(member)
        emptied += not truth
        ordered = sorted(truth)
        for start in tried:
            following = bisect.bisect_left(ordered, start)
            assert find_from(address, size, start) == (ordered[following] if following < len(ordered) else -1)
            assert contains(address, size, start) == (start in truth)
    assert find_from(address, size, size) == -1
    assert emptied, "never drained: clearing of upper levels was not tested"
    assert words[-1] == guard, "wrote past its words"


@pytest.mark.parametrize("size", SIZES)
def test_a_full_bitset_is_walked_in_order(size):
    words = np.zeros(words_needed(size), np.uint64)
    members = range(0, size, 1 + size // 5000)
    for member in members:
        insert(words.ctypes.data, size, member)
    walked, member = [], find_from(words.ctypes.data, size, 0)
    while member >= 0:
        walked.append(member)
        member = find_from(words.ctypes.data, size, member + 1)
    assert walked == list(members)
    for member in members:
        remove(words.ctypes.data, size, member)
    assert not words.any(), "an empty set left a bit behind"


@pytest.mark.parametrize(
    ("size", "words"), [(1, 1), (64, 1), (65, 2 + 1), (4096, 64 + 1), (4097, 65 + 2 + 1), (300_000, 4688 + 74 + 2 + 1)]
)
def test_words_needed(size, words):
    assert words_needed(size) == words
