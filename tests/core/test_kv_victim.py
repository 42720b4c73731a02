"""Who gives way where the KV cache is full: the last, or who is expected to be shortest."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import DECODE, PREFILL, Case

from llmsched_env.config import KVCache
from llmsched_env.engine import codes
from llmsched_env.simulator import Simulator


def after(case: Case, decodes: int) -> Simulator:
    """All that fit are started, and so many decodes run."""
    simulator = Simulator(case.problem(), record=True)
    for action in (PREFILL, *[DECODE] * decodes):
        simulator.step(action)
    return simulator


def gone(simulator: Simulator) -> list[int]:
    """Requests that were preempted and have not come back."""
    return [request for request, tokens in enumerate(simulator.emitted) if tokens and request not in running(simulator)]


def running(simulator: Simulator) -> list[int]:
    positions = np.asarray(simulator.episode.clients)[:, codes.RUNNING]
    return sorted(positions[positions >= 0].tolist())


@pytest.mark.parametrize(
    ("victim", "estimates", "first"),
    [("last", (2, 6), 1), ("least_estimate", (2, 6), 0), ("least_estimate", (6, 2), 1), ("least_estimate", (6, 6), 1)],
)
def test_who_gives_way_on_paper(victim, estimates, first):
    """Two requests of 3 + 6 tokens in a cache of 10: 4 + 4, 5 + 5 after a decode, and no room for 2 more."""
    case = Case((3, 3), (6, 6), 2, estimates=estimates, kv_cache=KVCache(10, victim=victim))
    simulator = after(case, 1)
    assert gone(simulator) == [first]
    assert (simulator.totals.preemptions, simulator.view.active) == (1, 1)


@pytest.mark.parametrize(("estimates", "first"), [((2, 4), 1), ((4, 2), 1), ((6, 4), 1), ((4, 6), 0)])
def test_an_estimate_goes_up_with_what_is_emitted(estimates, first):
    """The same of 3 + 8 tokens in a cache of 16, full after 4 decodes, with 5 tokens each.

    Estimates of 2 and 4 are 5 by then, the last of equal ones gives way; 6 is 6 still, and 4 is 5.
    """
    case = Case((3, 3), (8, 8), 2, estimates=estimates, kv_cache=KVCache(16, victim="least_estimate"))
    assert gone(after(case, 4)) == [first]


def test_as_many_give_way_as_have_to():
    """Three of 2 + 9 tokens in a cache of 12: 3 each, 4 each after a decode, and no room for 3 more.

    The shortest leaves 8 + 2 of 12. After the next decode 5 + 5, and room for 2; then 6 + 6, and the next one goes.
    """
    case = Case((2, 2, 2), (9, 9, 9), 3, estimates=(7, 5, 9), kv_cache=KVCache(12, victim="least_estimate"))
    assert gone(after(case, 1)) == [1]
    assert gone(after(case, 2)) == [1]
    assert gone(after(case, 3)) == [0, 1]
