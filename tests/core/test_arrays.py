"""Where the arrays of episodes lie makes no difference to what they compute."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from episodes import batch_digest, kinds_of, slo_case
from states import state_of
from strategies import seeded_case

from llmsched_env.engine import batch
from llmsched_env.engine.arrays import LINE_BYTES, Region, arrays_in, int32s, int64s, table_of
from llmsched_env.engine.batch import Batch


def places(*views):
    """(first byte, byte after the last) of each."""
    arrays = [np.asarray(view) for view in views]
    return [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays]


def test_another_thread_makes_its_arrays_elsewhere():
    region = Region(4096)
    with arrays_in(region), ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(int32s, 50).result()
        here = int32s(50)
    (first, end), (start, _), (other, _) = places(region.block, here, elsewhere)
    assert first <= start < end
    assert not first <= other < end


def test_arrays_of_a_region_lie_in_it_side_by_side():
    region = Region(4096)
    with arrays_in(region):
        made = [
            int32s(50, 7),
            int64s(9, -1),
            table_of(np.arange(60, dtype=np.int32).reshape(20, 3)),
            int32s(1),
            int32s(2),
        ]
    found = places(*made)
    first, end = places(region.block)[0]
    assert all(first <= start and stop <= end for start, stop in found)
    assert all(start % LINE_BYTES == 0 for start, stop in found if stop - start >= LINE_BYTES), (
        "a long one begins in the middle of a line"
    )
    assert found[3][0] // LINE_BYTES == found[4][0] // LINE_BYTES, "short ones share a line"
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(found))
    assert [np.asarray(one).tolist() for one in made] == [
        [7] * 50,
        [-1] * 9,
        np.arange(60).reshape(20, 3).tolist(),
        [0],
        [0, 0],
    ]
    outside, _ = places(int32s(5))[0]
    assert not first <= outside < end


def test_a_region_that_is_full_leaves_the_rest_to_others():
    region = Region(256)
    with arrays_in(region):
        inside, larger = int32s(16), int64s(100, 3)
    first, end = places(region.block)[0]
    assert first <= places(inside)[0][0] < end
    assert not first <= places(larger)[0][0] < end
    assert np.asarray(larger).tolist() == [3] * 100


@pytest.mark.parametrize("case", [seeded_case(3), slo_case(2)], ids=["plain", "SLO"])
def test_episodes_in_a_region_are_independent(case):
    problem, region = case.problem(), Region(2**18)
    with arrays_in(region):
        one, other = problem.episode(), problem.episode()
    plain, start = problem.episode(), state_of(problem.start)
    assert region.taken - region.begun > 2000, "they lie elsewhere"
    for action in (1, 0, 0, 1) * 10:
        if plain.feasible_now():
            one.step(action)
            plain.step(action)
    assert state_of(one) == state_of(plain)
    assert state_of(other) == start


def test_a_batch_in_regions_steps_like_one_without(monkeypatch):
    cases = [seeded_case(3 * i).problem() for i in range(4)]
    found = {}
    for large_from in (2**22, 1):
        monkeypatch.setattr(batch, "LARGE_PAGES_FROM", large_from)
        monkeypatch.setattr(batch, "REGION_BYTES", 3 * max(case.episode_nbytes for case in cases))  # of several
        made = Batch(9, kinds_of(cases[0]), cases[0].num_features)
        found[large_from] = batch_digest(made, cases, 300, 0)
        starts = [start for copy in made.copies for start, _ in places(copy.episode.clients, copy.episode.ring)]
        assert all(start % LINE_BYTES == 0 for start in starts) == (large_from == 1)
    assert found[1] == found[2**22]
    assert found[1][1] > 3, "hardly an episode has ended"
