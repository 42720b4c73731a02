"""What gaps are to: the best lower bound that holds in each world, against every sequence of decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from strategies import Case

from llmsched_env.baselines.lagrangian import lagrangian
from llmsched_env.cases import bounds_ns, build_problem
from llmsched_env.config import KVCache, Migration, Mixed, Scenario
from llmsched_env.cost import MixedCost
from llmsched_env.evaluation import evaluate
from llmsched_env.offline import lb1_ns, lb2_ns, lb4_ns, lower_bounds
from llmsched_env.simulator import Simulator
from llmsched_env.workload import LognormalWorkload, Requests

Draw = np.random.Generator


def _queued(case: Case, rng: Draw) -> Case:
    return replace(case, queues=tuple(rng.integers(0, case.num_clients, len(case.prompts)).tolist()))


def _released(case: Case, rng: Draw) -> Case:
    return replace(case, releases_ns=(0, *np.sort(rng.integers(0, 300, len(case.prompts) - 1)).tolist()))


def _moving(share: int, steal: str, token_ns: int) -> Callable[[Case, Draw], Case]:
    def changed(case: Case, rng: Draw) -> Case:
        moves = Migration(share, steal, token_ns)
        return replace(_queued(case, rng), stealing=True, migration=moves)

    return changed


def _cached(swap_token_ns: int) -> Callable[[Case, Draw], Case]:
    def changed(case: Case, rng: Draw) -> Case:
        longest = max(prompt + output for prompt, output in zip(case.prompts, case.outputs, strict=True))
        return replace(case, kv_cache=KVCache(longest + int(rng.integers(0, 5)), swap_token_ns=swap_token_ns))

    return changed


def _mixed(overlaps: bool, counts_active: bool, whole: bool) -> Callable[[Case, Draw], Case]:
    def changed(case: Case, rng: Draw) -> Case:
        cost = MixedCost(True) if overlaps else MixedCost(False, int(rng.integers(1, 200)), 5, 2, 1)
        return replace(case, mixed=Mixed(int(rng.integers(2, 8)), counts_active, whole, cost))

    return changed


WORLDS: dict[str, Callable[[Case, Draw], Case]] = {
    "one queue": lambda case, rng: case,
    "one queue, arrivals": _released,
    "client queues": _queued,
    "client queues, stealing": lambda case, rng: replace(_queued(case, rng), stealing=True),
    "levels": lambda case, rng: replace(case, token_cap=8, levels=((4, 60), (8, 100))),
    "context": lambda case, rng: replace(case, gamma_decode_ns=3),
    "first decode": lambda case, rng: replace(case, first_decode_ns=int(rng.choice([5, 90]))),
    "cached prompts": _moving(500_000, "waiting", 0),
    "running requests, copied": _moving(0, "running", 2),
    "cached prompts and cheaper requests, copied": _moving(500_000, "cheaper", 2),
    "running requests, computed again": _moving(500_000, "running", 0),
    "KV budget, swapped": _cached(1),
    "KV budget, computed again": _cached(0),
    "mixed, sum": _mixed(False, False, False),
    "mixed, token budget": _mixed(False, True, False),
    "mixed, whole prompts": _mixed(False, False, True),
    "mixed, overlap": _mixed(True, False, False),
}


def drawn(world: str, seed: int) -> Case:
    rng = np.random.default_rng([list(WORLDS).index(world), seed])
    few = world.startswith("mixed")  # three actions, and prompts in parts: many more sequences
    n, clients = int(rng.integers(2, 4 if few else 5)), int(rng.integers(1, 4))
    prompts, outputs = rng.integers(1, 5 if few else 8, n).tolist(), rng.integers(1, 5 if few else 6, n).tolist()
    case = Case(
        tuple(prompts), tuple(outputs), clients, order="longest_first",
        alpha_prefill_ns=int(rng.integers(0, 150)), alpha_decode_ns=int(rng.choice([1, 50, 400])),
        token_cap=int(rng.choice([8, 1000])),
    )  # fmt: skip
    return WORLDS[world](case, rng)


def least_ns(simulator: Simulator) -> int:
    """The makespan of the best sequence of decisions, all of them tried."""
    while not simulator.done and not simulator.has_choice:
        simulator.step(int(simulator.can_prefill))
    if simulator.done:
        return int(simulator.view.clock_ns)
    found = []
    for action in range(simulator.problem.num_actions):
        twin = simulator.fork()
        twin.step(action)
        found.append(least_ns(twin))
    return min(found)


@pytest.mark.parametrize("world", WORLDS)
def test_no_sequence_of_decisions_beats_it(world):
    met = better = 0
    for seed in range(40):
        made = drawn(world, seed).problem()
        least = least_ns(Simulator(made))
        assert 0 < made.lb1_ns <= made.bound_ns <= least, seed
        met += made.bound_ns == least
        better += made.bound_ns > made.lb1_ns
    if not world.startswith(("levels", "mixed")):  # whose bounds take the cheapest prefill, or kind of iteration
        assert met > 0, "it was never met: the instances say little"
    if "again" not in world:
        assert better > 3, "it never differed from LB1: nothing else was tested"


def of(case: Case) -> tuple[int, int]:
    return bounds_ns(case.requests, case.num_clients, case.cost, case.migration, case.mixed, case.kv_cache)


def test_on_paper():
    """One request of 9 decodes and two of 1 on three clients: S = 11, ceil(11 / 3) = 4, and the longest needs 9."""
    case = Case((1, 1, 1), (10, 2, 2), 3)
    once, tokens, decoding = 100, 3 * 10, 11 * 1
    assert of(case) == (once + tokens + decoding + 4 * 50, once + tokens + decoding + 9 * 50)
    assert of(replace(case, queues=(0, 0, 0), stealing=True, migration=Migration(0, "running", 2))) == of(case)
    assert of(replace(case, kv_cache=KVCache(30, swap_token_ns=1))) == of(case)
    # Two of 6 and one of 4 decodes on two clients, S = 16: a request that stays makes it 10, one that moves need not.
    case = Case((1, 1, 1), (7, 7, 5), 2)
    twice, decoding = 2 * 100, 16 * 1
    assert of(case) == (twice + tokens + decoding + 8 * 50, twice + tokens + decoding + 10 * 50)
    moved = replace(case, queues=(0, 0, 1), stealing=True, migration=Migration(0, "running", 2))
    assert of(moved) == (of(case)[0],) * 2
    # A mixed iteration of 20 + 5 a prompt token + 2 a client: 20 for the first, 20 for each of 8 or 10 others.
    mixed = replace(case, mixed=Mixed(4, False, False, MixedCost(False, 20, 5, 2)))
    assert of(mixed) == (20 + 3 * 5 + 8 * 20 + 16, 20 + 3 * 5 + 10 * 20 + 16)


def test_what_its_name_says():
    requests = Requests.of([3] * 6, [2, 3, 4, 5, 6, 30])
    found = lower_bounds(requests, 4, "llama-65b-paper")
    cost = Scenario().cost_model
    assert bounds_ns(requests, 4, cost) == (found.lb1_ns, found.best_ns)
    assert lb2_ns(requests, 4, cost, changes_clients=True) == found.lb2_ns > found.lb1_ns
    cached = np.full(6, 2)
    assert lb1_ns(requests, 4, cost, cached_tokens=cached) < lb1_ns(requests, 4, cost)
    less = cost.beta_prefill_ns * 12
    assert lb2_ns(requests, 4, cost, cached_tokens=cached) == found.lb2_ns - less
    assert lb4_ns(requests, 4, cost, cached_tokens=cached) == found.lb4_ns - less


@pytest.mark.parametrize(
    ("scenario", "far", "near"),
    [
        (Scenario(workload=LognormalWorkload(output_sd_tokens=600.0), queue="shared", split="test"), 0.3, 0.003),
        (Scenario(workload="gsm8k-smooth", num_requests=300, queue="shared", split="test"), 0.15, 0.003),
    ],
)
def test_gaps_are_to_the_best_bound(scenario, far, near):
    """LB1 spreads all decodes over all clients: with one long request, or few of them, its gap says nothing."""
    columns = evaluate(lagrangian(), scenario, 3).columns
    makespans, lb1, gaps = columns["makespan_s"], columns["lb1_s"], columns["gap_to_bound"]
    assert (makespans / lb1 - 1 > far).all()
    assert (gaps < near).all()
    np.testing.assert_allclose(gaps, makespans / columns["bound_s"] - 1, rtol=1e-12)
    made = [build_problem(scenario, case) for case in range(3)]
    assert columns["bound_s"].tolist() == [one.bound_ns / 1e9 for one in made]
    assert lb1.tolist() == [one.lb1_ns / 1e9 for one in made]


def test_rewards_stay_those_of_lb1():
    case = Case((1, 1, 1), (10, 2, 2), 3)
    made = case.problem()
    assert made.bound_ns > made.lb1_ns
    assert made.data.reward_scale == made.lb1_ns * 3
    assert case.problem(reward="makespan").data.reward_scale == made.lb1_ns
    better = made.with_bound(made.bound_ns + 1)
    assert better.bound_ns == made.bound_ns + 1
    assert better.digest() == made.digest(), "plans are kept by what an episode is, not by what is known of it"
