"""Chance: laws of the maps, and the raw streams themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched_env.workload.draws import Stream, bernoulli, permutation, raw_words, uniform_53, with_replacement

WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50).map(lambda xs: np.array(xs, np.uint64))


def test_raw_words_are_what_they_were():
    # numpy promises these streams; if this fails, numpy broke the promise and no case is what it was.
    got = [hex(int(word)) for word in raw_words("gsm8k", "test", 0, Stream.ORDER, 3)]
    assert got == ["0x50b2cfb8272a4355", "0x717f64976eae3a64", "0xe1046a03df78e210"]


def test_fewer_words_are_a_prefix_of_more():
    np.testing.assert_array_equal(
        raw_words("a", "train", 3, Stream.CAP, 5), raw_words("a", "train", 3, Stream.CAP, 9)[:5]
    )


def test_every_part_of_the_seed_matters():
    seeds = [
        ("a", "train", 0, Stream.ORDER),
        ("b", "train", 0, Stream.ORDER),
        ("a", "test", 0, Stream.ORDER),
        ("a", "train", 1, Stream.ORDER),
        ("a", "train", 2**32, Stream.ORDER),
        ("a", "train", 2**32 + 1, Stream.ORDER),
        ("a", "train", 0, Stream.CAP),
    ]
    first = {int(raw_words(*seed, 1)[0]) for seed in seeds}
    assert len(first) == len(seeds)


@given(words=WORDS, probability=st.floats(0, 1))
@settings(deadline=None)
def test_bernoulli_compares_with_the_exact_threshold(words, probability):
    expected = [int(word) < int(probability * 2.0**64) for word in words]
    assert bernoulli(words, probability).tolist() == expected


def test_bernoulli_at_the_ends():
    words = np.array([0, 2**64 - 1], np.uint64)
    assert bernoulli(words, 0.0).tolist() == [False, False]
    assert bernoulli(words, 1.0).tolist() == [True, True]
    assert bernoulli(words, 0.5).tolist() == [True, False]


@given(words=WORDS)
@settings(deadline=None)
def test_permutation_sorts_and_keeps_ties_in_order(words):
    order = permutation(words)
    assert sorted(order.tolist()) == list(range(len(words)))
    keys = [(int(words[i]), int(i)) for i in order]
    assert keys == sorted(keys)
    for count in range(len(words) + 2):
        assert permutation(words, count).tolist() == order[:count].tolist()


@given(words=WORDS, population=st.integers(1, 2**32))
@settings(deadline=None)
def test_with_replacement_stays_in_the_population(words, population):
    rows = with_replacement(words, population)
    assert rows.tolist() == [(int(word) >> 32) * population >> 32 for word in words]
    assert rows.max() < population


@given(words=WORDS)
@settings(deadline=None)
def test_uniform_53_is_the_upper_bits(words):
    assert uniform_53(words).tolist() == [int(word) >> 11 for word in words]


@pytest.mark.parametrize("population", [3, 1319])
def test_with_replacement_is_uniform(population):
    draws = 200 * population
    counts = np.bincount(
        with_replacement(raw_words("law", "test", 0, Stream.RESAMPLE, draws), population), minlength=population
    )
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert abs(chi_square - (population - 1)) < 5 * np.sqrt(2 * population)
