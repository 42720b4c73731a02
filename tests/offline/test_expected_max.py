"""Uncertain loads: the expected maximum against closed forms and samples, the search against all assignments."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from llmsched_env.errors import ConfigError
from llmsched_env.offline import assign_expected_max, expected_max, expected_max_bound, lpt

DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)


def held(client_of, means, sds, clients):
    return np.bincount(client_of, means, clients), np.sqrt(np.bincount(client_of, np.square(sds), clients))


def uneven(n, seed):
    """Loads of which every other one is nearly certain."""
    rng = np.random.default_rng(seed)
    means = rng.integers(100, 500, n).astype(float)
    return means, means * np.where(np.arange(n) % 2, 0.05, 0.6)


@pytest.mark.parametrize(("means", "sds"), [((10, 10), (3, 4)), ((400, 300), (80, 60)), ((500, 100), (10, 20))])
def test_two_loads_as_by_clark(means, sds):
    spread = math.hypot(*sds)
    a = (means[0] - means[1]) / spread
    below = 0.5 * math.erfc(-a / math.sqrt(2))
    exact = means[0] * below + means[1] * (1 - below) + spread * DENSITY_AT_0 * math.exp(-a * a / 2)
    assert expected_max(means, sds) == pytest.approx(exact, rel=1e-6)


def test_on_paper():
    # Two equal loads: 10 + 5 phi(0) with sd 3 and 4; the bound at x = 10 is 10 + (3 + 4) phi(0).
    assert expected_max([10, 10], [3, 4]) == pytest.approx(10 + 5 * DENSITY_AT_0, rel=1e-6)
    assert expected_max_bound([10, 10], [3, 4]) == pytest.approx(10 + 7 * DENSITY_AT_0, rel=1e-6)
    # One load: its mean. A certain one of 100 beside N(100, 10^2): 100 + 10 phi(0).
    assert expected_max([50], [5]) == pytest.approx(50, rel=1e-6)
    assert expected_max([100, 100], [0, 10]) == pytest.approx(100 + 10 * DENSITY_AT_0, rel=1e-3)
    assert expected_max([7, 9, 8], [0, 0, 0]) == 9


def test_against_a_sample():
    rng = np.random.default_rng(3)
    means, sds = rng.uniform(500, 600, 40), rng.uniform(0, 80, 40)
    sample = rng.normal(means, sds, (200_000, 40)).max(axis=1)
    assert expected_max(means, sds) == pytest.approx(sample.mean(), abs=5 * sample.std() / math.sqrt(len(sample)))


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_is_never_below(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30))
    means, sds = rng.uniform(200, 900, count), rng.uniform(0, 90, count) * (rng.random(count) < 0.8)
    assert expected_max_bound(means, sds) >= expected_max(means, sds) - 1e-3 >= means.max() - 2e-3


@pytest.mark.parametrize("seed", range(5))
def test_search_against_all_assignments(seed):
    means, sds = uneven(7, seed)
    best = min(
        expected_max_bound(*held(np.array(client_of), means, sds, 3))
        for client_of in itertools.product(range(3), repeat=7)
    )
    found = assign_expected_max(means, sds, 3)
    assert found.dtype == np.int32
    assert set(found) <= {0, 1, 2}
    reached = expected_max_bound(*held(found, means, sds, 3))
    start = lpt(means.astype(np.int64), 3)
    assert best - 1e-9 <= reached <= min(1.05 * best, expected_max_bound(*held(start, means, sds, 3)))


def test_a_better_maximum_than_lpt_where_certainty_differs():
    means, sds = uneven(264, 1)
    start = lpt(np.rint(means).astype(np.int64), 40)
    before, after = (held(client_of, means, sds, 40) for client_of in (start, assign_expected_max(means, sds, 40)))
    assert expected_max_bound(*after) < 0.98 * expected_max_bound(*before)
    assert expected_max(*after) < 0.98 * expected_max(*before)
    assert after[0].sum() == pytest.approx(means.sum())


def test_the_search_repeats_and_depends_on_its_seed():
    means, sds = uneven(100, 2)
    one, same, other = (assign_expected_max(means, sds, 15, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_where_all_is_certain_it_is_lpt():
    means = np.arange(1.0, 30.0)
    assert np.array_equal(assign_expected_max(means, np.zeros(29), 4), lpt(means.astype(np.int64), 4))


def test_one_client_and_more_clients_than_requests():
    assert assign_expected_max([3, 4], [1, 1], 1).tolist() == [0, 0]
    assert sorted(assign_expected_max([30, 40], [10, 10], 5).tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("means", "sds", "words"),
    [
        ([1, 2], [1], r"shape \(2,\) and sds \(1,\)"),
        ([], [], "at least one"),
        ([1, -2], [1, 1], r"means\[1\] = -2.0 is out of range"),
        ([1, 2], [math.nan, 1], r"sds\[0\] = nan is out of range"),
        ([1, 2**32], [1, 1], r"means\[1\] = 4294967296.0 is out of range"),
    ],
)
def test_bad_input(means, sds, words):
    for call in (expected_max, expected_max_bound, lambda m, s: assign_expected_max(m, s, 2)):
        with pytest.raises(ConfigError, match=words):
            call(means, sds)
    with pytest.raises(ConfigError, match="clients = 0 is out of range"):
        assign_expected_max([1], [1], 0)
