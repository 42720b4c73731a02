"""Planners against the rules that they start from, and against the best of all action sequences."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
from playing import COST, WORLDS, Drawn, asked, history, start_of, world
from strategies import Case, seeded_case

from baselines import make_policy, planners
from baselines.lagrangian import lagrangian
from baselines.planners import Beam, Rollout
from llmsched_env.cost import CostModel
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import evaluate, play
from llmsched_env.instances import instance
from llmsched_env.simulator import Simulator

SHARED = WORLDS["shared"]


@pytest.fixture(autouse=True)
def plans(tmp_path, monkeypatch):
    """Plans are searched for anew in each test."""
    monkeypatch.setattr(planners, "cache_dir", lambda: tmp_path)
    return tmp_path / "plans"


def tiny_case(seed):
    """At most 7 requests of at most 6 tokens on 2 or 3 clients, one shared queue."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 8))
    return Case(
        tuple(rng.integers(1, 5, n).tolist()),
        tuple(rng.integers(1, 7, n).tolist()),
        int(rng.integers(2, 4)),
        releases_ns=tuple(np.cumsum(rng.integers(0, 200, n) * (seed % 3 == 2)).tolist()),
        order="longest_first" if seed % 2 else "fcfs",
        alpha_prefill_ns=int(rng.choice([20, 100, 300])),
        token_cap=int(rng.choice([6, 1000])),
    )


def best_clock_ns(simulator):
    """The least makespan of all action sequences: every one of them is tried, equal states once."""
    seen: dict[bytes, int] = {}

    def best(episode):
        if episode.done:
            return int(episode.view.clock_ns)
        key = b"".join(array.tobytes() for array in episode.memory.arrays)
        if key not in seen:
            actions = [action for action, can in ((0, episode.can_decode), (1, episode.can_prefill)) if can]
            ends = []
            for action in actions:
                twin = episode.fork()
                twin.step(action)
                ends.append(best(twin))
            seen[key] = min(ends)
        return seen[key]

    return best(simulator), len(seen)


def planned(policy, case):
    """Makespan of ``policy`` on a case written by hand."""
    simulator = Simulator(case.instance())
    policy.reset(start_of(world(num_clients=case.num_clients), simulator=simulator))
    return int(asked(policy, simulator).view.clock_ns)


def ruled(rule, case):
    simulator = Simulator(case.instance())
    simulator.run(rule.compiled(start_of(world(num_clients=case.num_clients))))
    return int(simulator.view.clock_ns)


def test_against_every_action_sequence():
    hits, rollout_hits, states = 0, 0, 0
    seeds = range(24)
    for seed in seeds:
        case = tiny_case(seed)
        optimum, count = best_clock_ns(Simulator(case.instance()))
        states += count
        beam, rollout = planned(Beam(50), case), planned(Rollout(), case)
        assert optimum <= beam
        assert optimum <= rollout <= ruled(lagrangian(), case)
        hits += beam == optimum
        rollout_hits += rollout == optimum
    assert states > 50 * len(seeds), "too few choices to tell planners apart"
    assert hits == len(seeds)
    assert rollout_hits >= len(seeds) // 2


@pytest.mark.parametrize("name", WORLDS)
def test_beam_is_never_worse_than_the_rules_that_it_starts_from(name):
    scenario = WORLDS[name]
    for case in range(3):
        beam = play(Beam(8), scenario, case).view.clock_ns
        for rule in planners._references(start_of(scenario)):
            assert beam <= play(rule, scenario, case).view.clock_ns


@pytest.mark.parametrize("cost", [COST, CostModel("context", 100, 10, 50, 1, gamma_decode_ns=2, prefill_token_cap=60)])
def test_a_wider_beam_is_better_on_average(cost):
    scenario = SHARED.replace(cost=cost)
    narrow, wide = (evaluate(Beam(width), scenario, 20).columns["makespan_s"] for width in (1, 50))
    assert wide.mean() < narrow.mean()


def test_beam_looks_beyond_the_next_arrival():
    # Nothing waits after the first prefill, yet later moments are still to be chosen.
    scenario = world(mean_gap_ns=150, queue="shared", order="fcfs")
    rules = planners._references(start_of(scenario))
    gains = 0
    for case in range(6):
        beam = play(Beam(20), scenario, case).view.clock_ns
        gains += beam < min(play(rule, scenario, case).view.clock_ns for rule in rules)
    assert gains > 0


def test_rollout_is_never_worse_than_its_base():
    # One of the two actions is the base's own, so the better of both finishes no later than the base; by induction the
    # whole episode does not. The truth is in the simulator, so this holds where estimates are wrong, too.
    better = 0
    for seed, base in itertools.product(range(10), (lagrangian(), make_policy("threshold"))):
        case = seeded_case(seed)
        improved, plain = planned(Rollout(base), case), ruled(base, case)
        assert improved <= plain
        better += improved < plain
    assert better >= 5, "rollout was not put to the test"


def test_plans_are_followed_to_the_letter():
    policy = Beam(5)
    ran = play(policy, SHARED, 0, record=True)
    log = ran.log["prefill"]
    decodes_before = np.cumsum(log == 0)[log == 1]
    parameters = policy.compiled(start_of(SHARED, simulator=Simulator(instance(SHARED, 0)))).parameters
    assert set(decodes_before.tolist()) <= set(parameters.tolist())


def test_a_plan_is_kept_and_a_damaged_one_made_again(plans, caplog):
    first = history(play(Beam(3), SHARED, 0, record=True))
    (shelf,) = plans.iterdir()
    written = shelf.stat().st_mtime_ns
    assert history(play(Beam(3), SHARED, 0, record=True)) == first
    assert shelf.stat().st_mtime_ns == written, "planned again"
    for damage in (b"", b"no archive", shelf.read_bytes()[:-30]):
        shelf.write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            assert history(play(Beam(3), SHARED, 0, record=True)) == first
        assert "is damaged: planning again" in caplog.text
        caplog.clear()
    # A plan of another case: whole, but it does not lose what it says.
    play(Beam(3), SHARED, 1)
    (other,) = (path for path in plans.iterdir() if path != shelf)
    shelf.write_bytes(other.read_bytes())
    assert history(play(Beam(3), SHARED, 0, record=True)) == first


def test_plans_of_other_searches_are_other_files(plans):
    for policy, scenario in (
        (Beam(2), SHARED),
        (Beam(3), SHARED),
        (Beam(2, rounds=1), SHARED),
        (Beam(2), SHARED.replace(order="fcfs")),
        (Beam(2), SHARED.replace(cost=CostModel("dear", 101, 10, 50, 1, prefill_token_cap=60))),
        (Beam(2), SHARED.replace(workload=Drawn(count=39))),
    ):
        play(policy, scenario, 0)
    assert len([*plans.iterdir()]) == 6
    play(Beam(2), SHARED.replace(reward="latency"), 0)  # rewards do not change an episode
    assert len([*plans.iterdir()]) == 6


@pytest.mark.parametrize("name", ["rollout", "beam", "beam_1", "always_worst"])
def test_without_the_simulator_they_refuse(name):
    with pytest.raises(ConfigError, match=rf"policy '{name}' plans in the simulator: start it with .*simulator="):
        make_policy(name).reset(start_of(SHARED))


def test_always_worst_is_the_dearer_extreme():
    # Outputs of 1 or 3 on two clients. Decode-first drains each pair: 2 prefills, 4 decodes. Prefill-first at once
    # refills the client whose request is done with its prefill: 3 prefills, 4 decodes at most.
    case = Case((1,) * 4, (1, 3, 1, 3), 2, alpha_prefill_ns=100_000)
    extremes = {name: ruled(make_policy(name), case) for name in ("prefill_first", "decode_first")}
    assert extremes["prefill_first"] > extremes["decode_first"]
    assert planned(make_policy("always_worst"), case) == extremes["prefill_first"]
    # Where a prefill costs nothing but its tokens, waiting is what costs.
    case = Case((1,) * 4, (2, 9, 9, 2), 2, alpha_prefill_ns=0)
    extremes = {name: ruled(make_policy(name), case) for name in ("prefill_first", "decode_first")}
    assert extremes["prefill_first"] < extremes["decode_first"]
    assert planned(make_policy("always_worst"), case) == extremes["decode_first"]


@pytest.mark.parametrize("options", [{"width": 0}, {"width": 1, "rounds": 0}])
def test_a_beam_has_a_width(options):
    with pytest.raises(ConfigError, match="must be at least 1"):
        Beam(**options)
