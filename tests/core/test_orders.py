"""Orders by a number of each request: instances on paper, and the papers' own."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import DECODE, PREFILL, Case

from llmsched_env.config import KVCache, Scenario
from llmsched_env.engines.driver import Driver
from llmsched_env.errors import ConfigError
from llmsched_env.orders import volumes
from llmsched_env.problem import Problem
from llmsched_env.simulator import Simulator


def taken(case: Case) -> list[int]:
    """Requests in the order in which one client takes them, each of one true token."""
    simulator = Simulator(case.problem(), record=True)
    while not simulator.done:
        simulator.step(PREFILL)
    return np.argsort(simulator.served["completion_ns"], kind="stable").tolist()


def test_volumes_on_paper():
    """3 prompt tokens and 4 outputs hold 4 + 5 + 6 + 7 = 22 = 3 * 4 + 4 * 5 / 2 token-iterations."""
    assert volumes(np.array([3, 1, 10]), np.array([4, 1, 2])).tolist() == [22, 2, 23]
    longest = np.array([2**24], np.int32)
    assert volumes(longest, longest).tolist() == [2**48 + 2**23 * (2**24 + 1)], "beyond 32 bits"


@pytest.mark.parametrize("slo", [{}, {"ttft_ns": 10**9, "tpot_ns": 10**9}])
@pytest.mark.parametrize("queues", [None, (0, 0, 0, 0)])
def test_smallest_volume_first_on_paper(slo, queues):
    """Volumes 5 * 3 + 6 = 21, 40 * 2 + 3 = 83, 1 * 5 + 15 = 20 and 6 * 3 + 6 = 24.

    Shortest first takes 1, 0, 3, 2: the longest prompt first, the smallest volume last.
    """
    case = Case((5, 40, 1, 6), (1,) * 4, 1, estimates=(3, 2, 5, 3), order="smallest_volume_first", queues=queues, **slo)
    assert taken(case) == [2, 0, 3, 1]


def test_equal_volumes_go_by_release():
    """2 prompts of 3 and 2 outputs, and one of 8 and 1: 3 * 2 + 3 = 9 = 8 + 1."""
    assert taken(Case((3, 8, 3), (1,) * 3, 1, estimates=(2, 1, 2), order="smallest_volume_first")) == [0, 1, 2]


def test_where_volume_beats_length_under_a_budget():
    """A budget of 12 tokens; one request of 9 + 2 tokens, of volume 9 * 2 + 3 = 21, four of 1 + 3, of 1 * 3 + 6 = 9.

    Shortest first runs the big one alone (11 of 12 tokens) and then the small ones, at most three of them side by side
    (3 * 4 = 12). Smallest volume first has three small ones in the first prefill.
    """
    cache = KVCache(12, admission="predicted")
    first = {}
    for order in ("shortest_first", "smallest_volume_first"):
        case = Case((9, 1, 1, 1, 1), (2, 3, 3, 3, 3), 5, order=order, kv_cache=cache)
        simulator = Simulator(case.problem(), record=True)
        simulator.step(PREFILL)
        first[order] = simulator.view.active
        while not simulator.done:
            simulator.step(PREFILL if simulator.view.ready else DECODE)
        assert simulator.totals.preemptions == 0
    assert first == {"shortest_first": 1, "smallest_volume_first": 3}


def test_an_engine_keeps_no_such_order():
    scenario = Scenario(queue="shared", order="smallest_volume_first", lengths="hidden", num_clients=2)
    with pytest.raises(ConfigError, match=r"order = 'smallest_volume_first': .* not kept for arriving requests"):
        Driver("prefill_first", scenario)


def test_a_joint_order_needs_its_plan():
    case = Case((1,), (1,), 1)
    with pytest.raises(KeyError, match="joint"):
        Problem.build(
            case.requests,
            np.ones(1, np.int32),
            case.cost,
            1,
            client_of=None,
            order="joint",
            stealing=False,
            bound_ns=1,
        )
