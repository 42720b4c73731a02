"""Orders by a number of each request: instances on paper, and the papers' own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from strategies import DECODE, PREFILL, Case

from llmsched_env.config import KVCache, Scenario
from llmsched_env.engines.driver import Driver
from llmsched_env.errors import ConfigError
from llmsched_env.orders import sorted_f, volumes
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


def test_sorted_f_on_paper():
    """A budget of 64 holds eight requests of 7 + 1 tokens, F = 8 / 64 = 1/8, or 21 of 1 + 2, F = 42 / 441 = 2/21.

    With 20 of those F is 40 / 400 = 1/10, and a big one beside 18 of them gives 37 / 361, which is more than 2/21, too.
    So the small ones are the first batch, though they are longer. With a budget of 32 it is four big ones,
    F = 4 / 16 = 1/4, against ten small ones, F = 20 / 100 = 1/5, and then with 16 two, 1/2, against five, 2/5.
    Of 9 tokens there is one big one at a time, F = 1, against three small ones, 6 / 9.
    """
    big, small = [(7, 1)] * 8, [(1, 2)] * 21
    for budget, first in ((64, 21), (32, 10), (16, 5), (9, 3)):
        place = sorted_f(*np.array(big + small).T, budget)
        assert sorted(place.tolist()) == list(range(29))
        assert sorted(place[8:].tolist())[:first] == list(range(first))
    case = Case((7,) * 8 + (1,) * 21, (1,) * 29, 1, estimates=(1,) * 8 + (2,) * 21, kv_cache=KVCache(64))
    assert taken(replace(case, order="sorted_f")) == [*range(8, 29), *range(8)]
    assert taken(replace(case, order="shortest_first")) == [*range(29)]


def test_sorted_f_needs_a_budget():
    with pytest.raises(ConfigError, match="order = 'sorted_f' without a KV cache"):
        Case((1,), (1,), 1, order="sorted_f").problem()


def test_sorted_f_serves_the_shortest_of_a_batch_first():
    """All fit, with F = 10/9; two of them have 3/4, 8/4 or 9/4, one of them 1, 2 or 7. The least is 3/4."""
    assert sorted_f(np.array([1, 1, 1]), np.array([7, 2, 1]), 99).tolist() == [2, 1, 0]


def test_sorted_f_is_near_the_least_f():
    """The first batch against all subsets of nine requests: the least F in 97 of 100 draws, at most 15 % above it."""
    rng, above = np.random.default_rng(0), []
    for _ in range(100):
        s, o = rng.integers(1, 60, 9), rng.integers(1, 40, 9)
        budget = int(rng.integers((s + o).max(), 200))
        some = [list(x) for k in range(1, 10) for x in itertools.combinations(range(9), k)]
        least = min(o[x].sum() / len(x) ** 2 for x in some if (s + o)[x].sum() <= budget)
        line = np.argsort(sorted_f(s, o, budget))
        # Where the first batch ends is not told: no first requests of the line that fit have a smaller F.
        sums, fits = np.cumsum(o[line]), np.cumsum((s + o)[line]) <= budget
        above.append(float((sums / np.arange(1, 10) ** 2)[fits].min() / least - 1))
    assert min(above) > -1e-12
    assert np.mean(np.array(above) < 1e-9) >= 0.95
    assert max(above) < 0.15


def test_short_outputs_with_long_prompts_first_is_what_sorted_f_avoids():
    """The family by which the paper shows that shortest first has no constant ratio: o = 1 with a prompt of sqrt(M).

    M = 400, 100 requests of 19 + 1 tokens and 1,000 of 1 + 2, every iteration lasts 50 ns and prompts cost nothing.
    Shortest first serves the big ones first, at most 20 at a time: some five prefills that all others wait for.
    """
    flat = {"alpha_prefill_ns": 50, "beta_prefill_ns": 0, "alpha_decode_ns": 50, "beta_decode_ns": 0}
    prompts, outputs = (19,) * 100 + (1,) * 1000, (1,) * 100 + (2,) * 1000
    cache, total = KVCache(400, admission="predicted"), {}
    for order in ("fcfs", "shortest_first", "sorted_f", "smallest_volume_first"):
        case = Case(prompts, outputs, 200, order=order, kv_cache=cache, token_cap=10**6, **flat)
        simulator = Simulator(case.problem(), record=True)
        while not simulator.done:
            simulator.step(PREFILL if simulator.view.ready else DECODE)
        total[order] = int(simulator.served["completion_ns"].sum())
    assert total["sorted_f"] == total["smallest_volume_first"] < 0.9 * total["shortest_first"]
    assert total["fcfs"] == total["shortest_first"], "the big ones came first"


@pytest.mark.parametrize("slo", [{}, {"ttft_ns": 10**9, "tpot_ns": 10**9}])
def test_ageing_on_paper(slo):
    """One client; outputs 9, 4, 6, 1 of which one is true, released at 0, 5, 20 and 40 ns; every prefill lasts 100 ns.

    The first runs alone from 0 to 100. At 0.1 tokens a ns the others then count as 4 - 9.5, 6 - 8 and 1 - 6: -5.5, -2
    and -5, so 1, 3, 2. Shortest first takes 3, 1, 2, first come first served 1, 2, 3. With 1 token a ns it is 4 - 95,
    6 - 80 and 1 - 60, in order of arrival.
    """
    case = Case((1,) * 4, (1,) * 4, 1, estimates=(9, 4, 6, 1), releases_ns=(0, 5, 20, 40), **slo)
    flat = replace(case, beta_prefill_ns=0, order="aged_shortest_first")
    assert [taken(replace(flat, aging_tokens_per_s=rate)) for rate in (0.0, 1e8, 1e9)] == [
        [0, 3, 1, 2],
        [0, 1, 3, 2],
        [0, 1, 2, 3],
    ]
    assert taken(replace(flat, order="shortest_first")) == [0, 3, 1, 2]


def test_ageing_bounds_how_often_a_request_is_overtaken():
    """One of 50 tokens, and one of 5 each 100 ns, which is as fast as they are served: it waits for ever, or 450 ns.

    With 0.1 tokens a ns it counts as 5 after 450 ns, and is taken before whoever comes then: 5 or 6 go before it.
    """
    case = Case((1,) * 40, (1,) * 40, 1, estimates=(5, 50, *[5] * 38), releases_ns=(0, 1, *range(90, 3890, 100)))
    flat = replace(case, beta_prefill_ns=0)
    assert taken(replace(flat, order="shortest_first"))[-1] == 1
    aged = taken(replace(flat, order="aged_shortest_first", aging_tokens_per_s=1e8))
    assert aged.index(1) in (5, 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"order": "aged_shortest_first"}, "aging_tokens_per_s = None: give a rate, 0 for none"),
        ({"aging_tokens_per_s": 3.0}, "nobody would read it. Set order='aged_shortest_first'"),
        ({"order": "aged_shortest_first", "aging_tokens_per_s": -1}, r"-1 is out of range: it lies in \[0, 1e\+09\]"),
        ({"order": "aged_shortest_first", "aging_tokens_per_s": "1"}, "is not a number"),
    ],
)
def test_rates_that_are_none(changes, words):
    with pytest.raises(ConfigError, match=words):
        Scenario(**changes)


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
