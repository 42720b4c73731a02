"""Planners against the rules that they start from, and against the best of all action sequences."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import pickle

import numpy as np
import pytest
from playing import COST, WORLDS, Drawn, asked, history, start_of, world
from strategies import Case, seeded_case

from llmsched_env import make_scenario
from llmsched_env.baselines import make_policy, plan_cache, planners
from llmsched_env.baselines.lagrangian import lagrangian
from llmsched_env.baselines.planners import Beam, Rollout
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel
from llmsched_env.engine.codes import OUTPUT
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import evaluate, play
from llmsched_env.evaluation.rollout import start as evaluation_start
from llmsched_env.simulator import Futures, Simulator
from llmsched_env.snapshot import snapshot
from llmsched_env.workload import Requests

SHARED = WORLDS["shared"]


@dataclasses.dataclass(frozen=True)
class Predicted(Drawn):
    """Drawn cases with predictions that are right, or half of the truth."""

    def requests(self, split, number, *, num_requests=None):
        drawn = super().requests(split, number, num_requests=num_requests)
        half = np.arange(len(drawn)) % 2 == 0
        outputs = 2 * drawn.output_tokens
        return Requests.of(
            drawn.prompt_tokens,
            outputs,
            release_ns=drawn.release_ns,
            predicted_tokens=np.where(half, drawn.output_tokens, outputs),
        )


@pytest.fixture(autouse=True)
def plans(tmp_path, monkeypatch):
    """Plans are searched for anew in each test."""
    monkeypatch.setattr(plan_cache, "cache_dir", lambda: tmp_path)
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
        key = pickle.dumps(snapshot(episode.episode))
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
    simulator = Simulator(case.problem())
    futures = Futures(simulator, known=True)
    policy.reset(start_of(world(num_clients=case.num_clients), simulator=simulator, futures=futures))
    return int(asked(policy, simulator).view.clock_ns)


def stepped(policy, scenario, case, *, seed=0):
    """A recorded episode in which every decision is asked for from Python."""
    simulator = Simulator(build_problem(scenario, case), record=True)
    policy.reset(evaluation_start(policy, scenario, simulator, seed))
    return asked(policy, simulator)


def ruled(rule, case):
    simulator = Simulator(case.problem())
    simulator.run(rule.compiled(start_of(world(num_clients=case.num_clients))))
    return int(simulator.view.clock_ns)


def test_against_every_action_sequence():
    hits, rollout_hits, states = 0, 0, 0
    seeds = range(24)
    for seed in seeds:
        case = tiny_case(seed)
        optimum, count = best_clock_ns(Simulator(case.problem()))
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


@pytest.mark.parametrize(
    "cost",
    [
        COST,
        CostModel("context", 100, 10, 50, 1, gamma_decode_ns=2, prefill_token_cap=60),
        dataclasses.replace(COST, first_decode_ns=90),
    ],
)
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


@dataclasses.dataclass(frozen=True)
class Equal(Drawn):
    """Drawn cases in which every output is of 12 tokens."""

    def requests(self, split, number, *, num_requests=None):
        drawn = super().requests(split, number, num_requests=num_requests)
        return Requests.of(drawn.prompt_tokens, np.full(len(drawn), 12))


BLIND = {
    "shared": SHARED.replace(lengths="hidden", order="fcfs"),
    "client": WORLDS["client"].replace(lengths="hidden"),
    "fixed queues": WORLDS["fixed queues"].replace(lengths="hidden"),
    "shared, arrivals": WORLDS["shared, arrivals"].replace(lengths="hidden"),
    "client, arrivals": WORLDS["client, arrivals"].replace(lengths="hidden"),
    "predicted": SHARED.replace(lengths="predicted", workload=Predicted()),
    "predicted, arrivals": WORLDS["client, arrivals"].replace(lengths="predicted", workload=Predicted(150)),
}


def first_choice(scenario, case):
    """The episode at the first choice after 15 iterations under the base rule, and how to go on with it."""
    simulator = Simulator(build_problem(scenario, case))
    rule = lagrangian()
    rule.reset(start_of(scenario))
    count = 0
    while count < 15 or not (simulator.can_decode and simulator.can_prefill):
        choice = simulator.can_decode and simulator.can_prefill
        simulator.step(rule.act(simulator.view) if choice else int(simulator.can_prefill))
        count += 1
    return simulator


def gains_of(policy, scenario, simulator, known=False, seed=3):
    """What the policy finds at this moment, future by future: more than its action tells."""
    policy.reset(start_of(scenario, futures=Futures(simulator, known=known), seed=seed))
    return [policy._gains(future, policy._actions)[1] for future in policy._futures()]


@pytest.mark.parametrize("name", BLIND)
def test_rollout_is_blind_to_what_is_hidden(name):
    # Two episodes that differ in nothing but what cannot be known: lengths of the unfinished, releases to come.
    scenario, told_apart = BLIND[name], 0
    for case in range(6):
        simulator = first_choice(scenario, case)
        emitted = simulator.emitted
        unfinished = np.flatnonzero(emitted < outputs_of(simulator))
        outputs = outputs_of(simulator)
        waiting = unfinished[emitted[unfinished] == 0]
        outputs[waiting] = outputs[waiting][::-1]
        running = unfinished[emitted[unfinished] > 0]
        outputs[running] = emitted[running] + 1 + case
        # Longer than anything in the population: the size of the ring must not be seen either.
        outputs[waiting[0]] = 200
        other = simulator.fork(outputs=outputs)
        delayed = Simulator(later(other.problem, int(other.episode.line.next_release)))
        delayed.episode.restart(other.episode)
        found = gains_of(Rollout(), scenario, simulator)
        assert gains_of(Rollout(), scenario, other) == found
        assert gains_of(Rollout(), scenario, delayed) == found
        actions = {int(policy_of(scenario, episode).act(episode.view)) for episode in (simulator, other, delayed)}
        assert len(actions) == 1
        known = gains_of(Rollout(), scenario, simulator, known=True)
        told_apart += gains_of(Rollout(), scenario, other, known=True) != known
    assert told_apart >= 3, "the two would not be told apart by a policy that knows, either"


def policy_of(scenario, simulator):
    policy = Rollout()
    policy.reset(start_of(scenario, futures=Futures(simulator, known=False), seed=3))
    return policy


def outputs_of(simulator):
    outputs = np.empty(simulator.problem.num_requests, np.int32)
    outputs[simulator.problem.request_of] = simulator.problem.requests[:, OUTPUT]
    return outputs


def later(case, released):
    """The same problem with the releases to come postponed."""
    release_ns = case.release_ns.copy()
    release_ns[released:] += 12_345 * np.arange(1, len(release_ns) - released + 1)
    return dataclasses.replace(case, release_ns=release_ns)


@pytest.mark.parametrize("name", BLIND)
def test_a_blind_rollout_plays_fair_and_is_repeatable(name):
    scenario = BLIND[name]
    told = evaluation_start(Rollout(), scenario, Simulator(build_problem(scenario, 0)), 0)
    assert told.simulator is None
    assert not told.futures.known
    assert not evaluate(Rollout(), scenario, 1).clairvoyant
    ends = {seed: history(stepped(Rollout(caution=0.0), scenario, 0, seed=seed)) for seed in (1, 2, 3)}
    assert history(stepped(Rollout(caution=0.0), scenario, 0, seed=1)) == ends[1]
    assert len(set(ends.values())) > 1, "it draws nothing"
    assert stepped(Rollout(futures=1), scenario, 1).done


def test_with_known_lengths_a_rollout_knows():
    for name in WORLDS:
        pair = Rollout(futures=1), Rollout()
        told = evaluation_start(pair[0], WORLDS[name], Simulator(build_problem(WORLDS[name], 0)), 0)
        assert told.futures.known
        assert told.simulator is None
        assert evaluate(Rollout(), WORLDS[name], 1).clairvoyant
        first, second = (history(stepped(policy, WORLDS[name], 0, seed=i)) for i, policy in enumerate(pair))
        assert first == second


def test_caution_keeps_to_the_base_rule():
    scenario = BLIND["shared"]
    base = [history(play(lagrangian(), scenario, case, record=True)) for case in range(3)]
    for caution, kept in ((1e9, True), (0.0, False)):
        ends = [history(stepped(Rollout(caution=caution), scenario, case)) for case in range(3)]
        assert (ends == base) == kept


def test_where_all_lengths_are_equal_blind_and_knowing_choose_alike():
    # Every future that can be drawn is the true one.
    better = 0
    for order, cap in itertools.product(("fcfs", "longest_first"), (20, 60, 1000)):
        scenario = world(workload=Equal(), queue="shared", order=order, prefill_token_cap=cap)
        for case in range(3):
            blind = stepped(Rollout(), scenario.replace(lengths="hidden"), case)
            assert history(blind) == history(stepped(Rollout(), scenario, case))
            better += blind.view.clock_ns < play(lagrangian(), scenario, case).view.clock_ns
    assert better >= 3, "rollout did as its base"


def test_drawn_lengths_are_those_of_the_population_that_are_left():
    sample = np.array([1.0, 5.0, 5.0, 9.0])
    emitted = np.array([0, 1, 5, 9, 30])
    lengths = planners._Lengths(sample, np.ones(5), np.full(5, 2**20)).draw(emitted, 4000, np.random.default_rng(0))
    assert lengths.shape == (4000, 5)
    # Of 1, 5, 5, 9 all are left; of 5, 5, 9 all above 1; only 9 above 5; and none above 9, which is outlived.
    assert [sorted(set(column.tolist())) for column in lengths.T] == [[1, 5, 9], [5, 9], [9], [10], [31]]
    assert abs((lengths[:, 0] == 5).mean() - 1 / 2) < 0.04
    assert abs((lengths[:, 1] == 5).mean() - 2 / 3) < 0.04
    # Predictions of 10 and 100, true lengths half of them or twice: what has emitted more than half ends at twice.
    scaled = planners._Lengths(np.array([0.5, 2.0]), np.array([10.0, 100.0, 100.0]), np.full(3, 2**20))
    lengths = scaled.draw(np.array([0, 49, 50]), 100, np.random.default_rng(0))
    assert [sorted(set(column.tolist())) for column in lengths.T] == [[5, 20], [50, 200], [200]]


def test_a_population_is_of_training_cases_that_nobody_is_judged_on():
    asked_for = []

    class Watched(Drawn):
        def pool_size(self, split):
            return 7

        def requests(self, split, number, *, num_requests=None):
            asked_for.append((split, number))
            return super().requests(split, number, num_requests=num_requests)

    sample = planners._population(world(workload=Watched(), lengths="hidden"), None)
    assert asked_for == [("train", 7 + i) for i in range(len(asked_for))]
    assert len(sample) == 40 * len(asked_for) == 40 * planners.MOST_SAMPLED_CASES
    assert (np.diff(sample) >= 0).all()
    ratios = planners._population(BLIND["predicted"], None)
    assert set(np.round(ratios, 9).tolist()) <= {1.0, 2.0}
    assert 1.2 < ratios.mean() < 1.8


@pytest.mark.parametrize("options", [{"futures": 0}, {"caution": -1.0}, {"caution": float("nan")}])
def test_a_rollout_has_futures(options):
    with pytest.raises(ConfigError, match=r"rollout in \d futures with caution .*: give at least 1, and at least 0"):
        Rollout(**options)


def test_a_rollout_without_an_outlook_refuses():
    with pytest.raises(ConfigError, match=r"policy 'rollout' plans ahead: start it with .*futures="):
        Rollout().reset(start_of(SHARED))


def test_plans_are_followed_to_the_letter():
    policy = Beam(5)
    ran = play(policy, SHARED, 0, record=True)
    log = ran.log["prefill"]
    decodes_before = np.cumsum(log == 0)[log == 1]
    plan = policy.compiled(start_of(SHARED, simulator=Simulator(build_problem(SHARED, 0)))).plan
    assert set(decodes_before.tolist()) <= {0, *plan}


def test_plans_have_more_prefills_than_requests_where_requests_come_back():
    """vLLM V0's rule preempts so often that prefills outnumber requests several times over."""
    cache = {"kv_budget_tokens": 1024, "kv_block_tokens": 16, "kv_rule": "vllm_v0"}
    scenario = Scenario(num_clients=8, num_requests=8, queue="shared", **cache)
    for rule in planners._references(start_of(scenario)):
        made = play(rule, scenario, 0)
        planned = play(Beam(1), scenario, 0)
        assert planned.done
        assert planned.view.clock_ns <= made.view.clock_ns
    assert play(make_policy("prefill_first"), scenario, 0).view.prefills > 5 * 8


def test_a_plan_is_kept_and_a_damaged_one_made_again(plans, caplog):
    first = history(play(Beam(3), SHARED, 0, record=True))
    (kept,) = plans.iterdir()
    written = kept.stat().st_mtime_ns
    assert history(play(Beam(3), SHARED, 0, record=True)) == first
    assert kept.stat().st_mtime_ns == written, "planned again"
    for damage in (b"", b"no archive", kept.read_bytes()[:-30]):
        kept.write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            assert history(play(Beam(3), SHARED, 0, record=True)) == first
        assert "is damaged: planning again" in caplog.text
        caplog.clear()
    # A plan of another case: whole, but it does not lose what it says.
    play(Beam(3), SHARED, 1)
    (other,) = (path for path in plans.iterdir() if path != kept)
    kept.write_bytes(other.read_bytes())
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


EIGHT = {"num_requests": 60, "num_clients": 8}


@pytest.mark.parametrize(
    ("name", "changes", "width", "prefills", "loss", "digest"),
    [
        ("GSM8K-Smooth", {"queue": "shared"} | EIGHT, 10, 32, 16367650000, "3fd46c511f48"),
        ("KVMemory", {"num_requests": 200, "num_clients": 30}, 20, 41, 1951519317000, "b313bc2ea1d2"),
    ],
)  # fmt: skip
def test_the_plan_that_was_found_is_found_again(name, changes, width, prefills, loss, digest):
    """Recorded with an earlier implementation: what makes the search quicker must not change what it finds."""
    scenario = make_scenario(f"LLMSched/{name}-v0", **changes)
    simulator = Simulator(build_problem(scenario, 0))
    found = Beam(width)._search_all(simulator, start_of(scenario, mean_output_tokens=345.0, simulator=simulator))
    assert (found.last, found.loss) == (prefills, loss)
    assert hashlib.sha256(found.prefills.tobytes()).hexdigest()[:12] == digest


@pytest.mark.parametrize("name", ["beam", "beam_1", "always_worst"])
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
