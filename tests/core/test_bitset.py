"""The bitset against Python's set, and compiled against sorting."""

from __future__ import annotations

import bisect
from collections import deque

import numpy as np
import pytest
from strategies import CHOICES, Case

from llmsched_env.engine import compiled
from llmsched_env.engine.arrays import view_of
from llmsched_env.engine.bitset import contains, find_from, insert, remove, words_needed
from llmsched_env.simulator import Simulator

SIZES = [1, 63, 64, 65, 4096, 4097, 300_000]


def members_to_try(size, rng):
    edges = {0, 1, 62, 63, 64, 65, 4094, 4095, 4096, 4097, size // 2, size - 2, size - 1}
    return sorted({int(m) for m in edges if 0 <= m < size} | set(rng.integers(0, size, 20).tolist()))


@pytest.mark.parametrize("size", SIZES)
def test_bitset_is_a_set(size):
    rng = np.random.default_rng(size)
    start = size % 3
    array = np.zeros(start + words_needed(size) + 1, np.uint64)
    guard = np.uint64(0xDEADBEEF)
    array[:start] = array[-1] = guard
    words, truth, tried = view_of(array), set(), members_to_try(size, rng)
    emptied = 0
    for round_ in range(400):
        # Fill up and drain in turn, so that upper levels are set and cleared many times; also what is (not) there.
        filling = round_ % 100 < 40
        member = int(rng.choice(sorted(truth) if truth and not filling and round_ % 5 else tried))
        if filling:
            insert(words, start, size, member)
            truth.add(member)
        else:
            remove(words, start, size, member)
            truth.discard(member)
        emptied += not truth
        ordered = sorted(truth)
        for first in tried:
            following = bisect.bisect_left(ordered, first)
            assert find_from(words, start, size, first) == (ordered[following] if following < len(ordered) else -1)
            assert contains(words, start, first) == (first in truth)
    assert find_from(words, start, size, size) == -1
    assert emptied, "never drained: clearing of upper levels was not tested"
    assert {*array[:start], array[-1]} == {guard}, "wrote beside its words"


@pytest.mark.parametrize("size", SIZES)
def test_a_full_bitset_is_walked_in_order(size):
    array = np.zeros(words_needed(size), np.uint64)
    words = view_of(array)
    members = range(0, size, 1 + size // 5000)
    for member in members:
        insert(words, 0, size, member)
    walked, member = [], find_from(words, 0, size, 0)
    while member >= 0:
        walked.append(member)
        member = find_from(words, 0, size, member + 1)
    assert walked == list(members)
    for member in members:
        remove(words, 0, size, member)
    assert not array.any(), "an empty set left a bit behind"


@pytest.mark.parametrize(
    ("size", "words"), [(1, 1), (64, 1), (65, 2 + 1), (4096, 64 + 1), (4097, 65 + 2 + 1), (300_000, 4688 + 74 + 2 + 1)]
)
def test_words_needed(size, words):
    assert words_needed(size) == words


SERVED = [63, 64, 65, 4096, 4097, 5000] + [300_000] * compiled
"""Requests of an episode; as many as need a set of four levels take too long uncompiled."""


@pytest.mark.parametrize("n", SERVED)
def test_requests_are_taken_in_the_order_asked_for(n):
    """One client, tokens of one each: every prefill takes the first that waits, by release or by length, by turns.

    In an episode the sets are those that are compiled. What waits ends up scattered over all words.
    """
    rng = np.random.default_rng(n)
    estimates = rng.integers(1, min(5000, n // 2), n)
    case = Case(
        (1,) * n, (1,) * n, 1, estimates=tuple(estimates.tolist()), ttft_ns=10**15, tpot_ns=10**9, choose_order=True
    )
    simulator = Simulator(case.problem(), record=True)
    actions = [number for number, order in enumerate(CHOICES, 1) if not order.startswith("late")]
    chosen = rng.choice(actions, n)
    for action in chosen.tolist():
        simulator.step(action)
    assert simulator.done
    signs = {"fcfs": 0, "shortest_first": 1, "longest_first": -1}
    lines = {
        action: deque(np.lexsort((np.arange(n), signs[CHOICES[action - 1]] * estimates)).tolist()) for action in actions
    }
    expected, taken = [], np.zeros(n, bool)
    for action in chosen.tolist():
        line = lines[action]
        while taken[line[0]]:
            line.popleft()
        taken[line[0]] = True
        expected.append(line.popleft())
    assert np.argsort(simulator.served["completion_ns"], kind="stable").tolist() == expected
