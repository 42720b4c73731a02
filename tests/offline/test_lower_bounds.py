"""LB1 to LB4 against the exact optimum of small instances, and on paper."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from oracles import least_makespan_ns

from llmsched_env.cost import PRESETS, CostModel
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.offline import assign, lb1_ns, lb2_ns, lb3_ns, lb4_ns, lower_bounds, min_prefills
from llmsched_env.offline.grouping import grouped_loads
from llmsched_env.workload.requests import Requests

UNIT = CostModel("unit", 100, 1, 10, 1, prefill_token_cap=1000)

KINDS = ("plain", "cap", "queues", "levels", "context", "release", "first decode")


def random_case(kind: str, seed: int) -> tuple[Requests, int, CostModel, np.ndarray | None]:
    rng = np.random.default_rng([KINDS.index(kind), seed])
    n = int(rng.integers(1, 5 if kind in {"release", "queues"} else 7))
    clients = int(rng.integers(1, 4))
    prompts, outputs = rng.integers(1, 9, n), rng.integers(1, 8, n)
    cost = CostModel("small", int(rng.integers(0, 40)), 1, int(rng.integers(1, 40)), 1, prefill_token_cap=1000)
    queues = release = None
    if kind in {"cap", "release"}:
        cost = cost.with_cap(int(rng.integers(5, 16)))
    if kind == "queues":
        queues = rng.integers(0, clients, n)
    if kind == "levels":
        cost = dataclasses.replace(cost, prefill_token_cap=16, prefill_levels=((4, 13), (8, 20), (12, 31), (30, 33)))
    if kind == "context":
        cost = dataclasses.replace(cost, gamma_decode_ns=int(rng.integers(1, 4)))
    if kind == "release":
        release = np.sort(rng.integers(0, 120, n))
    if kind == "first decode":
        cost = dataclasses.replace(cost, first_decode_ns=int(rng.integers(1, 20)))
    return Requests.of(prompts, outputs, release_ns=release), clients, cost, queues


@pytest.mark.parametrize("kind", KINDS)
def test_never_above_the_optimum(kind):
    tight = 0
    above_lb1 = 0
    for seed in range(60):
        requests, clients, cost, queues = random_case(kind, seed)
        optimum = least_makespan_ns(requests, clients, cost, None if queues is None else queues.tolist())
        found = lower_bounds(requests, clients, cost, queues=queues)
        assert found.lb1_ns <= found.lb2_ns <= found.lb3_ns <= found.lb4_ns <= optimum, (kind, seed)
        assert found.best_ns == found.lb4_ns
        assert lb1_ns(requests, clients, cost) == found.lb1_ns
        assert lb2_ns(requests, clients, cost, queues=queues) == found.lb2_ns
        assert lb3_ns(requests, clients, cost, queues=queues) == found.lb3_ns
        assert lb4_ns(requests, clients, cost, queues=queues) == found.lb4_ns
        tight += found.lb3_ns == optimum
        above_lb1 += found.lb2_ns > found.lb1_ns
    assert above_lb1 > 5, "LB2 never differed from LB1: nothing but LB1 was tested"
    if kind != "release":
        assert tight > 3, "no bound was ever met: the instances say little"


def test_lb3_binds_somewhere():
    binding = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        requests = Requests.of(np.ones(6, int), rng.integers(1, 12, 6))
        cost = CostModel("dear prefill", 200, 1, 20, 1, prefill_token_cap=1000)
        found = lower_bounds(requests, 3, cost)
        if found.lb3_ns > found.lb2_ns and binding < 20:
            binding += 1
            assert found.lb3_ns <= least_makespan_ns(requests, 3, cost)
    assert binding == 20, "LB3 equals LB2 everywhere: its program was not tested"


def test_on_paper():
    # Four requests of 10 prompt tokens, outputs 3 3 3 7: l = 2 2 2 6, S = 12. Two clients.
    requests = Requests.of([10] * 4, [3, 3, 3, 7])
    constant = 40 * 1 + 12 * 1
    # LB1: ceil(4 / 2) = 2 prefills, ceil(12 / 2) = 6 decodes. Achieved: 6 | 2 2 2 needs 4 prefills or idle clients.
    assert lb1_ns(requests, 2, UNIT) == constant + 2 * 100 + 6 * 10
    # LB2: P||Cmax of 2 2 2 6 on two clients is 6 as well.
    assert lb2_ns(requests, 2, UNIT) == constant + 2 * 100 + 6 * 10
    # LB3: two prefills give three labels, enough for two distinct lengths: nothing is added.
    assert lb3_ns(requests, 2, UNIT) == constant + 2 * 100 + 6 * 10
    # In queues of three and one: at least three prefills.
    assert lb2_ns(requests, 2, UNIT, queues=[0, 0, 0, 1]) == constant + 3 * 100 + 6 * 10
    # In queues 2 2 6 | 2: ten decodes.
    assert lb2_ns(requests, 2, UNIT, queues=[0, 0, 1, 0]) == constant + 3 * 100 + 10 * 10
    # One prefill has one label: all requests hold their clients for as long as the longest. Three clients, l = 1 2 6:
    # D >= ceil(18 / 3) = 6, or a second prefill (three labels, none needed): but then too D >= 6.
    three = Requests.of([10] * 3, [2, 3, 7])
    assert lb3_ns(three, 3, UNIT) == (30 + 9) + 100 + 60


def test_cached_prompts_on_paper():
    # As above with 4 of 10 tokens cached: 24 are computed; a cap of 10 makes it three prefills of whole prompts' rests.
    requests = Requests.of([10] * 4, [3, 3, 3, 7])
    cached = np.full(4, 4)
    assert lb1_ns(requests, 2, UNIT, cached_tokens=cached) == (24 + 12) + 2 * 100 + 6 * 10
    assert lb1_ns(requests, 2, UNIT.with_cap(10), cached_tokens=cached) == (24 + 12) + 3 * 100 + 6 * 10
    assert lb1_ns(requests, 2, UNIT, cached_tokens=np.zeros(4, int)) == lb1_ns(requests, 2, UNIT)
    # Contexts are whole: a lone request of 10 tokens, four outputs, decodes that see 11, 12 and 13.
    context = dataclasses.replace(UNIT, gamma_decode_ns=3)
    expected = (100 + 6) + 3 * (10 + 1) + 3 * (11 + 12 + 13)
    assert lb1_ns(Requests.of([10], [4]), 1, context, cached_tokens=np.full(1, 4)) == expected


def test_tokens_by_recompute_on_paper():
    # S = 12 on two clients. A recompute has 11 tokens at least, and saves 1, or 11 where it saves a decode: never less.
    requests = Requests.of([10] * 4, [3, 3, 3, 7])
    assert lb1_ns(requests, 2, UNIT, most_recomputed=len(requests) - 1) == lb1_ns(requests, 2, UNIT)
    # S = 13: one recompute (11 tokens) makes it 6 decodes of 100 in place of 7; two more would cost 22 and save 102.
    odd, dear = Requests.of([10] * 4, [3, 3, 3, 8]), dataclasses.replace(UNIT, alpha_decode_ns=100)
    plain = (40 + 13) + 2 * 100 + 7 * 100
    assert lb1_ns(odd, 2, dear) == plain
    assert lb1_ns(odd, 2, dear, most_recomputed=len(odd) - 1) == plain + 3 * (11 - 1) - 2 * 100
    every = [plain + m * (11 - 1) - 100 * (7 - -(-(13 - m) // 2)) for m in range(4)]
    assert min(every) == plain + 3 * (11 - 1) - 2 * 100


def test_lb3_on_paper():
    # Lengths 1 2 3 4 5 6 twice over on six clients: S = 42, twelve requests, N_min = 2, three labels for six lengths.
    # Groups (1 2)(3 4)(5 6), two requests each length: F(3) = 4 * 2 + 4 * 4 + 4 * 6 = 48; three prefills: F(6) = 42.
    decodes = np.array([1, 2, 3, 4, 5, 6] * 2, np.int64)
    assert grouped_loads(decodes, first=2) == [48, 42]
    assert grouped_loads(decodes, first=1) == [72, 48, 42]
    requests = Requests.of([1] * 12, decodes + 1)
    # N = 2: D = ceil(48 / 6) = 8, cost 2 * 100 + 80; N = 3: D = 7, cost 3 * 100 + 70. The first is less.
    assert lb3_ns(requests, 6, UNIT) == (12 + 42) + 200 + 80
    # Cheap prefills turn it round: 2 * 5 + 80 against 3 * 5 + 70.
    cheap = dataclasses.replace(UNIT, alpha_prefill_ns=5)
    assert lb3_ns(requests, 6, cheap) == (12 + 42) + 15 + 70


def test_prefills_and_the_cap_on_paper():
    # Prompts 30 | 4 4 4 4 under a cap of 10: the 30 alone, 16 tokens need two more. Five clients: one would do.
    requests = Requests.of([30, 4, 4, 4, 4], [2] * 5)
    assert min_prefills(requests, 5, 10) == 3
    assert min_prefills(requests, 5, 1000) == 1
    assert min_prefills(requests, 1, 1000) == 5
    # Two clients: the 30 alone, and four requests two at a time.
    assert min_prefills(requests, 2, 20) == 3


def test_levels_on_paper():
    # 24 tokens under levels 10 tokens: 7 ns, 20 tokens: 9 ns. Three clients, six requests of 4: two prefills at least,
    # 9 + 7 = 16 (20 + 4 tokens, or 12 + 12 for 18). The line through (10, 7) and (20, 9) is 5 + 0.2 t:
    # 2 * 5 + 0.2 * 24 = 14.8, rounded up to 15.
    cost = CostModel("levels", 0, 0, 1, 0, prefill_token_cap=20, prefill_levels=((10, 7), (20, 9)))
    requests = Requests.of([4] * 6, [1] * 6)
    assert lb1_ns(requests, 3, cost) == 15
    assert least_makespan_ns(requests, 3, cost) == 18


def test_context_on_paper():
    # One request, prompt 10, four outputs: decodes see 11, 12 and 13 tokens. A lone request meets its bound.
    cost = dataclasses.replace(UNIT, gamma_decode_ns=3)
    requests = Requests.of([10], [4])
    expected = (100 + 10) + 3 * (10 + 1) + 3 * (11 + 12 + 13)
    assert lb1_ns(requests, 1, cost) == expected == least_makespan_ns(requests, 1, cost)


def test_rounding_many_distinct_lengths_keeps_the_bound_valid():
    rng = np.random.default_rng(0)
    decodes = rng.integers(0, 200_000, 9000)
    values = grouped_loads(decodes.astype(np.int64), first=3)
    assert values == sorted(values, reverse=True)
    assert values[-1] == decodes.sum()
    # Six groups of equal-sized rank ranges are one of the partitions that the first value is the best of.
    ranked = np.sort(decodes)
    assert values[0] <= sum(part.max() * len(part) for part in np.array_split(ranked, 6))


def test_given_an_assignment():
    requests = Requests.of([10] * 4, [3, 3, 3, 7])
    assignment = assign(requests, 2)
    assert lb2_ns(requests, 2, UNIT, queues=assignment) == lb2_ns(requests, 2, UNIT, queues=assignment.client_of)


def test_bad_input():
    requests = Requests.of([10] * 2, [3, 3])
    with pytest.raises(ConfigError, match="clients = 0 is out of range"):
        lb1_ns(requests, 0, UNIT)
    with pytest.raises(UnknownNameError, match="Did you mean 'llama-65b-paper'"):
        lb1_ns(requests, 2, "llama-65b-papre")
    with pytest.raises(ConfigError, match=r"queues\[1\] = 2 is no client"):
        lb2_ns(requests, 2, UNIT, queues=[0, 2])
    with pytest.raises(ConfigError, match="one client index for each of 2 requests"):
        lb3_ns(requests, 2, UNIT, queues=[0])
    levels = CostModel("levels", 0, 0, 1, 0, prefill_token_cap=8, prefill_levels=((8, 7),))
    with pytest.raises(ConfigError, match="exceeds the largest level"):
        lb1_ns(requests, 2, levels)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_at_the_papers_size(preset):
    rng = np.random.default_rng(3)
    requests = Requests.of(rng.integers(20, 200, 1319), np.minimum(512, rng.gamma(3, 120, 1319).astype(int) + 1))
    found = lower_bounds(requests, 200, preset)
    assert 0 < found.lb1_ns <= found.lb2_ns <= found.lb3_ns <= found.lb4_ns
