"""LB4 against exact optima, against schedules that are known to exist, and on paper.

``LLMSCHED_CASES=10000`` takes so many instances.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import least_cmax, least_counted, least_makespan_ns

from llmsched_env.cost import CostModel
from llmsched_env.offline import lb1_ns, lb3_ns, lb4_ns, lower_bounds
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.cmax_bounds import FEW_LOADS, cmax_bound, exact_cmax
from llmsched_env.offline.joint import Effort, joint_plan
from llmsched_env.offline.joint.plan import played
from llmsched_env.offline.kernels.spans import cheapest_groups
from llmsched_env.offline.spans import MAX_WORK, most_prefills, raised_decodes
from llmsched_env.workload.requests import Requests

CASES = int(os.environ.get("LLMSCHED_CASES", "500"))

FREE = CostModel("counts", 15, 0, 10, 0, prefill_token_cap=10**6)


def lengths(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    if kind == "heavy tail":
        return np.minimum(rng.lognormal(3, 1.5, n).astype(int), 5000)
    if kind == "few lengths":
        return rng.choice(rng.integers(0, 60, 4), n)
    return rng.integers(0, 200, n)


def drawn(seed: int) -> tuple[Requests, int, CostModel]:
    rng = np.random.default_rng([19, seed])
    n, clients = int(rng.integers(3, 8)), int(rng.integers(2, 5))
    decodes = lengths(rng, ("uniform", "heavy tail", "few lengths")[seed % 3], n)
    prompts = rng.integers(1, 9, n)
    alpha_prefill, alpha_decode = int(rng.choice([3, 30, 300, 3000])), int(rng.choice([10, 20]))
    cap = int(rng.choice([10, 15, 1000]))  # some prompts, most pairs, or nothing is too long
    cost = CostModel("drawn", alpha_prefill, 0, alpha_decode, 0, prefill_token_cap=cap)
    return Requests.of(prompts, decodes + 1), clients, cost


def optimum_ns(requests: Requests, clients: int, cost: CostModel) -> int:
    needs, prompts = requests.decodes.tolist(), requests.prompt_tokens.tolist()
    return least_counted(needs, prompts, clients, cost.alpha_prefill_ns, cost.alpha_decode_ns, cost.prefill_token_cap)


def test_never_above_the_optimum():
    raised = met = 0
    for seed in range(CASES):
        requests, clients, cost = drawn(seed)
        optimum, found = optimum_ns(requests, clients, cost), lower_bounds(requests, clients, cost)
        assert found.lb1_ns <= found.lb2_ns <= found.lb3_ns <= found.lb4_ns <= optimum, seed
        assert found.best_ns == found.lb4_ns == lb4_ns(requests, clients, cost)
        raised += found.lb4_ns > found.lb3_ns
        met += found.lb3_ns < found.lb4_ns == optimum
    assert raised > CASES // 20, "LB4 was LB3 nearly everywhere: its program was not tested"
    assert met > CASES // 100, "LB4 never met an optimum that LB3 does not: one that is too large might not be seen"


def test_the_oracle_is_the_dynamic_program():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, clients = int(rng.integers(2, 6)), int(rng.integers(1, 4))
        requests = Requests.of(rng.integers(1, 9, n), rng.integers(1, 8, n))
        cap = int(rng.choice([9, 12, 1000]))
        cost = CostModel("small", int(rng.integers(1, 40)), 0, int(rng.integers(1, 40)), 0, prefill_token_cap=cap)
        assert optimum_ns(requests, clients, cost) == least_makespan_ns(requests, clients, cost)


def planted(seed: int) -> tuple[Requests, int, int, int]:
    """Requests that clients run without a pause, with their number of prefills and decodes."""
    rng = np.random.default_rng([20, seed])
    clients, prefills = int(rng.integers(2, 30)), int(rng.integers(2, 12 if seed % 2 else 40))
    ends = np.append(0, np.cumsum(rng.integers(1, 60, prefills)))
    share = rng.choice([0.05, 0.5, 0.8, 1.0])
    needs: list[int] = []
    for client in range(clients):
        at = [k for k in range(1, prefills) if client == 0 or rng.random() < share]
        needs.extend(np.diff(ends[[0, *at, prefills]]).tolist())
    return Requests.of([1] * len(needs), np.array(needs) + 1), clients, prefills, int(ends[-1])


def test_never_above_a_schedule_without_a_pause():
    """Each client is busy from the first decode to the last: there is nothing to raise, at the K of the schedule."""
    few = many = 0
    for seed in range(CASES // 5):
        requests, clients, prefills, decodes = planted(seed)
        for alpha_prefill in (1, 15, 500):
            cost = dataclasses.replace(FREE, alpha_prefill_ns=alpha_prefill)
            assert lb4_ns(requests, clients, cost) <= prefills * alpha_prefill + decodes * 10, seed
        slots, fixed_ns, known = (np.array([value]) for value in (clients * prefills, 0, 0))
        raised = raised_decodes(requests.decodes.astype(np.int64), clients, slots, prefills, fixed_ns, 10, known)
        assert raised.tolist() == [decodes], seed
        many += prefills > 20
        case = Case.of(requests, clients, FREE)
        few += prefills <= case.least_prefills + 2
    assert few > CASES // 40, "prefills were plenty: no group shared a holding time"
    assert many > CASES // 40, "spans were short: the class of the long ones was not tested"


def test_never_above_a_joint_plan():
    """More requests than the exact search can take; half of these plans are within a percent of LB4."""
    for seed in range(CASES // 20):
        rng = np.random.default_rng([22, seed])
        n, clients = int(rng.integers(11, 41)), int(rng.integers(2, 7))
        decodes = lengths(rng, ("uniform", "heavy tail", "few lengths")[seed % 3], n)
        requests = Requests.of(rng.integers(1, 9, n), decodes + 1)
        cost = dataclasses.replace(FREE, alpha_prefill_ns=int(rng.choice([1, 15, 150])), prefill_token_cap=20)
        plan = joint_plan(requests, clients, cost, effort=Effort(tries=1, anneal_moves=400, repair_moves=400))
        assert lb4_ns(requests, clients, cost) <= plan.makespan_ns, seed


def test_exact_cmax():
    """Against every assignment; and on paper: 5 4 3 3 3 on two clients is (5 4)(3 3 3) = 9, as LPT's 10 is not."""
    assert exact_cmax(np.array([3, 5, 0, 3, 4, 3]), 2) == 9
    above = 0
    for seed in range(CASES // 2):
        rng = np.random.default_rng([21, seed])
        loads, clients = rng.integers(0, 200, int(rng.integers(1, 10))), int(rng.integers(2, 5))
        optimum = least_cmax(loads.tolist(), clients)
        assert exact_cmax(loads, clients) == optimum >= cmax_bound(loads, clients), seed
        above += optimum > cmax_bound(loads, clients)
    assert above > CASES // 50, "the bound was the optimum: nothing was packed"
    many = np.arange(1, FEW_LOADS + 2)
    assert exact_cmax(many, 3) == cmax_bound(many, 3)


def test_every_label_once():
    """K = 10: 55 lengths, all differences of eleven instants, one to each label: nothing is shared, nothing raised.

    Two may share a label, and slots are as many as the spans take.
    """
    instants = 20 * np.array([0, 1, 4, 13, 28, 33, 47, 54, 64, 70, 72])  # a Golomb ruler: no difference twice
    first, last = np.triu_indices(11, 1)
    needs, slots = instants[last] - instants[first], int((last - first).sum())
    raised = raised_decodes(needs, 2, np.array([slots]), 10, np.zeros(1, int), 10, np.zeros(1, int))
    assert raised.tolist() == [-(-needs.sum() // 2)]
    # Seven prefills have 28 labels: half of these lengths share.
    raised = raised_decodes(needs, 2, np.array([slots]), 7, np.zeros(1, int), 10, np.zeros(1, int))
    assert raised[0] > needs.sum() // 2 + 10


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 40), clients=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_law_no_schedule_is_shorter(data, n, clients, seed):
    rng = np.random.default_rng(seed)
    decodes = lengths(rng, data.draw(st.sampled_from(["uniform", "heavy tail", "few lengths"])), n)
    prompts = rng.integers(1, 30, n)
    cost = CostModel(
        "drawn", data.draw(st.integers(0, 10**5)), 2, data.draw(st.integers(0, 100)), 3,
        prefill_token_cap=data.draw(st.sampled_from([30, 60, 10**6])),
    )  # fmt: skip
    requests = Requests.of(prompts, decodes + 1)
    found, case = lower_bounds(requests, clients, cost), Case.of(requests, clients, cost)
    assert found.lb1_ns <= found.lb2_ns <= found.lb3_ns <= found.lb4_ns
    for order in (np.argsort(-decodes), np.argsort(decodes), rng.permutation(n)):
        for prefills in {1, -(-n // clients), n}:
            instants = np.sort(rng.integers(0, found.lb1_ns // max(1, cost.alpha_decode_ns) + 2, prefills))
            assert played(case, order, np.append(0, instants)).makespan_ns >= found.lb4_ns


def test_on_paper():
    """1 2 3 4 5 6 on three clients, S = 21. Two prefills have six slots: all spans are 1, three requests to a label.

    Two prefills: (1 2 3)(4 5 6) hold 9 + 18 = 27, D = 9; LB3 has three labels, (1 2)(3 4)(5 6): 24, D = 8.
    Three: nine slots, three to spare. Five labels take 1 + 1 + 1 + 2 + 2 = 7, a sixth 3 more: D = ceil(22 / 3) = 8.
    Four: twelve slots, 4 * 1 + 2 * 2 for six labels: D = 7.
    """
    requests = Requests.of([1] * 6, np.arange(1, 7) + 1)
    assert lb3_ns(requests, 3, FREE) == min(2 * 15 + 8 * 10, 3 * 15 + 7 * 10) == 110
    assert lb4_ns(requests, 3, FREE) == min(2 * 15 + 9 * 10, 3 * 15 + 8 * 10, 4 * 15 + 7 * 10) == 120
    assert optimum_ns(requests, 3, FREE) == 120
    # A prefill is nearly free: four of them. Dear ones: two.
    assert lb4_ns(requests, 3, dataclasses.replace(FREE, alpha_prefill_ns=1)) == 4 + 70
    assert lb4_ns(requests, 3, dataclasses.replace(FREE, alpha_prefill_ns=100)) == 200 + 90


def test_the_cap_takes_slots_on_paper():
    """As above, but two prompts to a prefill: three at least, and slots of 2 + 3 + 3 = 8, two to spare."""
    requests = Requests.of([1] * 6, np.arange(1, 7) + 1)
    case = Case.of(requests, 3, FREE.with_cap(2))
    assert np.minimum(3, case._most_read(3)).tolist() == [2, 3, 3]
    # Three prefills: three labels of span 1 and two of span 2 take 7 slots: D = ceil(22 / 3) = 8, 45 + 80 = 125. Four:
    # 2 + 3 + 3 + 3 = 11 slots, eight for six labels: 60 + 70.
    assert lb4_ns(requests, 3, FREE.with_cap(2)) == 125 <= optimum_ns(requests, 3, FREE.with_cap(2))
    above = Requests.of([9, 1, 1], [2, 2, 2])
    assert Case.of(above, 3, FREE.with_cap(2))._most_read(2).tolist() == [3, 3]


def test_groups_on_paper():
    """2 3 9 9, at most two to a group that costs 4 or 5: (2 3)(9 9) hold 24 and cost 10."""
    cost, counts = cheapest_groups(np.array([2, 3, 9, 9]), np.array([0, 4, 5]), 1)
    assert (cost, counts.tolist()) == (34, [0, 0, 2])
    # Groups of two for 50 each: four of one hold 23, times two, and cost 16.
    cost, counts = cheapest_groups(np.array([2, 3, 9, 9]), np.array([0, 4, 50]), 2)
    assert (cost, counts.tolist()) == (62, [0, 4, 0])


@pytest.mark.parametrize("outputs", [[1] * 6, [1, 1, 1, 1, 1, 2], [2**24] * 6])
def test_ends_of_the_range(outputs):
    requests = Requests.of([1] * 6, outputs)
    for clients in (1, 4, 100, 10**6):
        found = lower_bounds(requests, clients, "llama-65b-paper")
        assert lb1_ns(requests, clients, "llama-65b-paper") <= found.lb3_ns <= found.lb4_ns


def test_large_cases_are_left_to_lb3():
    rng = np.random.default_rng(0)
    requests = Requests.of([1] * 400, rng.integers(1, 400, 400))
    assert lb4_ns(requests, MAX_WORK // 400 + 1, FREE) == lb3_ns(requests, MAX_WORK // 400 + 1, FREE)
    assert lb4_ns(requests, 20, FREE) > lb3_ns(requests, 20, FREE)
    assert most_prefills(20, 400) < 400, "all numbers of prefills are looked at: what is said of more was not tested"


def test_heavy_tails_and_few_requests_are_tighter():
    """n = 20 on 4 clients, the lengths of the issue: higher than LB3 by a tenth of a percent."""
    more = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        requests = Requests.of([70] * 20, np.minimum(rng.gamma(3, 120, 20).astype(int), 1024) + 1)
        more.append(lb4_ns(requests, 4, "llama-65b-paper") / lb3_ns(requests, 4, "llama-65b-paper") - 1)
    assert np.mean(more) > 0.001
