"""Replicas behind a router: against plain simulators, on paper, and laws."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from combinations import combined_case
from plain_fleet import PlainFleet
from strategies import Case

from llmsched_env import make_scenario
from llmsched_env.baselines import make_policy
from llmsched_env.engine.rules import Always
from llmsched_env.engine.view import View
from llmsched_env.errors import ConfigError, EpisodeOverError, UnknownNameError
from llmsched_env.evaluation import play
from llmsched_env.metrics import serving_metrics
from llmsched_env.policy import PythonRule
from llmsched_env.replicas import ROUTERS, Fleet, make_router, simulate_replicas
from llmsched_env.replicas.fleet import send_all
from llmsched_env.replicas.routers import LINEAR_FEATURES, Linear, kv_tokens, outstanding
from llmsched_env.simulator import Simulator

SERVING = make_scenario("LLMSched/Serving-v0", split="test", num_requests=400, num_clients=20)
ROUTED = ("round_robin", "least_outstanding", "least_kv", "by hand")


def odd_rule(clock_ns, active, waiting):
    return (clock_ns // 7 + 3 * active + 5 * waiting) % 11


def rules(case, count):
    """The same in the engine."""
    return [PythonRule(lambda v: odd_rule(v.clock_ns, v.active, v.waiting) % case.num_actions) for _ in range(count)]


class ByHand:
    name = "by hand"

    def __init__(self, replicas):
        self.replicas = iter(replicas)

    def reset(self, replicas, seed):
        pass

    def choose(self, views, prompt_tokens, estimate_tokens):
        return next(self.replicas)


def served_case(seed):
    """A combined case on one shared queue with SLOs, over time."""
    case = combined_case(seed)
    if case.queues is not None or (case.kv_cache is not None and case.kv_cache.prefix_caching):
        return None
    if not case.ttft_ns:
        case = replace(case, ttft_ns=300, tpot_ns=60, order="fcfs", choose_length=False)
    if case.releases_ns[-1] == 0:
        releases = [40 * i // 2 for i in range(len(case.prompts))]
        order = "fcfs" if case.order == "sorted_f" else case.order  # which is made for a batch
        case = replace(case, releases_ns=tuple(releases), order=order)
    return case


def times(result):
    columns = ("prefill_start_ns", "first_token_ns", "completion_ns")
    return [tuple(int(row[name]) for name in columns) for row in result.served]


def test_it_equals_plain_simulators_of_their_own():
    seen = Counter()
    for seed in range(600):
        case = served_case(seed)
        if case is None:
            continue
        count, name = 1 + seed % 4, ROUTED[seed // 4 % 4]
        picks = [random.Random(seed + i).randrange(count) for i in range(len(case.prompts))]
        plain = PlainFleet(case, count, odd_rule)
        plain.play(picks if name == "by hand" else name)
        fleet = Fleet(case.problem(), rules(case, count), record=True)
        send_all(fleet, ByHand(picks) if name == "by hand" else make_router(name), seed)
        result = fleet.result()
        assert result.replica_of.tolist() == plain.replica_of, (seed, name)
        assert times(result) == [plain.times_of(i) for i in range(len(case.prompts))], (seed, name)
        assert fleet.violations == plain.violations(case.slo), seed
        assert result.metrics["goodput"] == pytest.approx(1 - fleet.violations / fleet.counted)
        assert fleet.clock_ns == max(replica.clock_ns for replica in plain.replicas)
        busy = [replica.busy_client_ns() for replica in plain.replicas]
        assert result.utilization == pytest.approx(np.array(busy) / fleet.clock_ns / case.num_clients)
        seen["preempted"] += any(replica.preemptions for replica in plain.replicas)
        seen["mixed"] += any(replica.mixed for replica in plain.replicas)
        seen["noise"] += case.noise is not None and count > 1
        seen["inside an iteration"] += any(replica.arrived_inside for replica in plain.replicas)
        seen["idle"] += any(replica.jump_ns for replica in plain.replicas)
        seen["violations"] += 0 < fleet.violations < fleet.counted
        seen["ranked"] += case.choose_order or "est" in case.order
        seen[name] += count > 1 and len(set(plain.replica_of)) > 1
    assert min(seen.values()) > 15, seen


@pytest.mark.parametrize("seed", [seed for seed in range(40) if served_case(seed)])
def test_one_replica_is_the_engine_to_the_nanosecond(seed):
    case = served_case(seed)
    alone = Simulator(case.problem(), record=True)
    (rule,) = rules(case, 1)
    alone.run(rule)
    fleet = Fleet(case.problem(), rules(case, 1), record=True)
    send_all(fleet, make_router("random"), 0)
    result = fleet.result()
    assert (result.served == alone.served).all()
    assert fleet.violations == alone.totals.violations
    slo = case.slo
    expected = serving_metrics(
        alone, ttft_s=slo.ttft_ns / 1e9, tpot_s=slo.tpot_ns / 1e9, first=slo.first, last=slo.last
    )
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "changes",
    [{}, {"noise_sd": 0.3}, {"mixed_tokens": 256}, {"kv_budget_tokens": 8000, "kv_block_tokens": 16}],
)
@pytest.mark.parametrize("name", ["prefill_first", "deadline", "random"])
def test_one_replica_of_a_scenario_is_its_episode(changes, name):
    scenario = SERVING.replace(**changes)
    alone = play(make_policy(name), scenario, 3, seed=5, record=True)
    assert (simulate_replicas(scenario, make_policy(name), "power_of_two", 1, 3, seed=5).served == alone.served).all()


PAPER = Case((10, 20, 10, 5), (2, 3, 1, 2), 1, releases_ns=(0, 0, 210, 310), ttft_ns=300, tpot_ns=60, uncounted=0)
"""A prefill of P tokens lasts 100 + 10 P, a decode of one client 51. One client a replica.

Request 0 (P = 10, N = 2) runs on replica 0: prefill to 200, decode to 251. Request 1 (20, 3) on replica 1: prefill to
300, decodes to 351 and 402. Request 2 (10, 1) comes at 210, inside the decode 200-251 of replica 0 and the prefill
0-300 of replica 1.
"""


@pytest.mark.parametrize(
    ("router", "replica_of", "first_token_ns", "completion_ns"),
    [
        # 2 waits for 251 and has its token at 451; 3 waits at replica 1 until 402, and 402 + 150 = 552.
        ("round_robin", [0, 1, 0, 1], [200, 300, 451, 552], [251, 402, 451, 603]),
        # At 210 one request is outstanding at each, so the first; at 310 request 2 is at replica 0, 1 at replica 1: one
        # each again, since request 0 was complete at 251. It waits until 451, and 451 + 150 = 601.
        ("least_outstanding", [0, 1, 0, 0], [200, 300, 451, 601], [251, 402, 451, 652]),
        # At 210 replica 0 holds 10 + 1 tokens, replica 1 a prompt of 20 that is not read: 2 goes to 0. At 310 replica 0
        # reads the prompt of 2, 10 tokens; replica 1 holds 20 + 1 tokens, in the decode from 300 on: 3 goes to 0.
        ("least_kv", [0, 1, 0, 0], [200, 300, 451, 601], [251, 402, 451, 652]),
    ],
)
def test_on_paper(router, replica_of, first_token_ns, completion_ns):
    fleet = Fleet(PAPER.problem(), [Always(1), Always(1)], record=True)
    send_all(fleet, make_router(router), 0)
    result = fleet.result()
    assert result.replica_of.tolist() == replica_of
    assert result.served["first_token_ns"].tolist() == first_token_ns
    assert result.served["completion_ns"].tolist() == completion_ns
    # TTFT: 200, 300, 241 and 242 or 291, all within 300; TPOT: 51 in each, within 60.
    assert (fleet.violations, result.metrics["goodput"]) == (0, 1.0)
    assert result.metrics["ttft_s"] == pytest.approx(np.mean(np.array(first_token_ns) - (0, 0, 210, 310)) / 1e9)
    assert result.metrics["makespan_s"] == completion_ns[-1] / 1e9
    assert result.shares.tolist() == [replica_of.count(0) / 4, replica_of.count(1) / 4]


def test_what_ends_inside_an_iteration_has_not_ended_for_the_router():
    fleet = Fleet(PAPER.problem(), [Always(1), Always(1)])
    for replica in (0, 1):
        assert fleet.clock_ns == 0
        fleet.send(replica)
    # At 210: replica 0 runs a decode, in which request 0 ends at 251; replica 1 reads a prompt until 300.
    (one, two), left_ns = fleet.views, fleet.left_ns
    assert (one.active, one.waiting, one.context_tokens) == (1, 0, 11)
    assert (two.active, two.waiting, two.waiting_tokens) == (0, 1, 20)
    assert left_ns == [41, 90]
    fleet.send(1)
    # At 310: replica 0 has nothing to do, and replica 1 decodes until 351.
    assert (one.active, one.waiting, two.active, two.waiting, fleet.left_ns) == (0, 0, 1, 1, [0, 41])


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("replicas", [2, 5])
def test_each_request_is_served_once_and_alike_with_the_same_seed(router, replicas):
    first, again = (simulate_replicas(SERVING, make_policy("deadline"), router, replicas, 1, seed=3) for _ in range(2))
    assert (first.replica_of == again.replica_of).all()
    assert (first.served == again.served).all()
    assert first.metrics == again.metrics
    assert set(first.replica_of) == set(range(replicas))
    assert (first.served["completion_ns"] > 0).all()
    assert first.shares.sum() == pytest.approx(1)
    assert (first.served["prefill_start_ns"] >= first.release_ns).all()
    # No two requests are on one client of one replica at a time.
    for replica in range(replicas):
        mine = first.served[first.replica_of == replica]
        for client in range(SERVING.num_clients):
            own = np.sort(mine[mine["client"] == client], order="prefill_start_ns")
            assert (own["prefill_start_ns"][1:] >= own["completion_ns"][:-1]).all()
    if router in ("random", "power_of_two"):
        other = simulate_replicas(SERVING, make_policy("deadline"), router, replicas, 1, seed=4)
        assert (first.replica_of != other.replica_of).any()
    if router == "round_robin":
        assert (first.replica_of == np.arange(400) % replicas).all()


def test_routers_on_views_by_hand():
    """Outstanding: 1 + 2 + 1 + 0, 3 + 0, 0 + 2 + 0 + 1 (one prompt is partly read) and 3. Tokens: without a budget
    those of active requests, with one those allocated; and prompts that wait, whole or in part."""
    views = [
        View(waiting=1, active=2, preempted=1, context_tokens=50, waiting_tokens=10),
        View(waiting=3, waiting_tokens=61),
        View(active=2, context_tokens=40, reading_tokens=15),
        View(active=3, context_tokens=20, kv_budget_tokens=100, kv_used=48, waiting_tokens=4),
    ]
    assert [outstanding(view) for view in views] == [4, 3, 3, 3]
    assert [kv_tokens(view) for view in views] == [60, 61, 55, 52]
    for name, expected in (("least_outstanding", 1), ("least_kv", 3)):
        router = make_router(name)
        router.reset(4, 0)
        assert router.choose(views, 5, 5) == expected
        assert router.choose(views[::-1], 5, 5) == 0
    router, drawn = make_router("power_of_two"), Counter()
    router.reset(4, 7)
    draws = np.random.default_rng(7)
    for _ in range(2000):
        one, other = int(draws.integers(4)), int(draws.integers(3))
        other = [i for i in range(4) if i != one][other]
        chosen = router.choose(views, 5, 5)
        # The first has the most; the others have as many, and then it is the first that was drawn.
        assert chosen == (other if one == 0 else one)
        drawn[chosen] += 1
    assert drawn[0] == 0
    assert all(600 < drawn[i] < 740 for i in (1, 2, 3)), drawn


def test_the_linear_router_on_paper():
    """4 active + 0.5 x 2 waiting + 2 x 30 tokens, 10 a request: 11. The other: 7 + 3 x 1 late + 0.25 x 3 due: 10.75."""
    weights = (1, 0.5, 2, 0, 0, 3, 0.25, 0)
    one = View(active=4, waiting=2, context_tokens=30, mean_output_tokens=10, remaining=9, due_64=4)
    for due, chosen in ((3, 1), (4, 0)):  # the first of two that are equal
        other = View(active=7, late=1, due_16=due, mean_output_tokens=10)
        assert Linear(weights).choose([one, other], 5, 5) == chosen
    with pytest.raises(ConfigError, match="2 weights: give 8, of active, waiting, context_tokens"):
        Linear([1, 2])


def test_the_linear_router_with_weights_of_one_is_least_outstanding():
    counting = Linear([float(name in ("active", "waiting")) for name in LINEAR_FEATURES])
    runs = [
        simulate_replicas(SERVING, make_policy("deadline"), router, 4, 1) for router in (counting, "least_outstanding")
    ]
    assert (runs[0].replica_of == runs[1].replica_of).all()
    trained = simulate_replicas(SERVING, make_policy("deadline"), "linear", 4, 1)
    assert (trained.replica_of != runs[0].replica_of).any()


def test_the_seed_draws_evenly():
    counts = simulate_replicas(SERVING, make_policy("prefill_first"), "random", 4, 0, seed=1).shares * 400
    assert ((counts > 70) & (counts < 130)).all(), counts


def test_replicas_serve_a_case_at_as_many_times_its_rate():
    single = simulate_replicas(SERVING, make_policy("deadline"), "round_robin", 1, 2)
    several = simulate_replicas(SERVING, make_policy("deadline"), "round_robin", 4, 2)
    assert (several.release_ns == single.release_ns // 4).all()


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding", "least_kv"])
def test_another_idle_replica_makes_nothing_later(router):
    """Where each request finds an idle replica, it is served as if it were alone, and no replica more helps."""
    lengths = (6, 9, 4, 11, 7, 5)
    case = Case(lengths, (3,) * 6, 2, releases_ns=tuple(100 * i for i in range(6)), ttft_ns=10**6, tpot_ns=10**6)
    found = {}
    for replicas in (1, 2, 3, 6, 8):
        fleet = Fleet(case.problem(), [Always(1) for _ in range(replicas)], record=True)
        send_all(fleet, make_router(router), 0)
        found[replicas] = fleet.result()
    alone_ns = [100 * i + 100 + 10 * prompt + 2 * 51 for i, prompt in enumerate(lengths)]
    assert found[6].served["completion_ns"].tolist() == alone_ns
    assert found[8].served["completion_ns"].tolist() == alone_ns
    means = [found[replicas].metrics["latency_s"] for replicas in (1, 2, 3, 6, 8)]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]


def test_a_policy_of_python_is_copied_for_each_replica():
    class Counting:
        name, kind, clairvoyant = "counting", "rule", False
        resets = 0

        def reset(self, start):
            type(self).resets += 1
            self.calls = 0

        def act(self, view):
            self.calls += 1
            return self.calls % 2

    policy = Counting()
    result = simulate_replicas(SERVING, policy, "round_robin", 3, 0)
    assert (Counting.resets, hasattr(policy, "calls")) == (3, False)
    assert (result.served["completion_ns"] > 0).all()


def test_what_a_policy_raises_is_raised():
    class Failing:
        name, kind, clairvoyant = "failing", "rule", False

        def reset(self, start):
            pass

        def act(self, view):
            raise ZeroDivisionError("in a policy")

    with pytest.raises(ZeroDivisionError, match="in a policy"):
        simulate_replicas(SERVING, Failing(), "round_robin", 2, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenario": make_scenario("LLMSched/GSM8K-v0")}, "replicas of a scenario without SLOs: Give ttft_s and tpot"),
        ({"scenario": SERVING.replace(queue="client")}, "with queue = 'client': Set queue='shared'"),
        (
            {"scenario": SERVING.replace(kv_budget_tokens=10**6, kv_rule="vllm_v1", kv_prefix_caching=True)},
            "with prefix caching: Leave kv_prefix_caching out",
        ),
        ({"scenario": SERVING.replace(max_iterations=5)}, "with max_iterations = 5: Leave it out"),
        ({"replicas": 0}, "replicas = 0 is out of range"),
        ({"replicas": 2.5}, r"replicas = 2\.5 is not a whole number"),
        ({"policy": make_policy("rollout")}, "policy 'rollout' looks at the future of an episode"),
        ({"policy": 7}, "policy"),
        ({"router": 7}, "router = 7 is no router: it lacks name, reset, choose. Give one of random, round_robin"),
        ({"router": ByHand([9])}, "request 0 was sent to replica 9: they are numbered from 0 to 1"),
        ({"seed": -1}, "seed = -1 is out of range"),
    ],
)
def test_bad_input(changes, words):
    arguments = {"scenario": SERVING, "policy": make_policy("deadline"), "router": "random", "replicas": 2, "case": 0}
    with pytest.raises(ConfigError, match=words):
        simulate_replicas(**{**arguments, **changes})


def test_an_unknown_router_is_told_what_it_may_have_meant():
    with pytest.raises(UnknownNameError, match=r"unknown router 'roundrobin'.*Did you mean 'round_robin'"):
        make_router("roundrobin")


def test_a_fleet_ends_once():
    fleet = Fleet(PAPER.problem(), [Always(1)], record=True)
    with pytest.raises(EpisodeOverError, match="request 0 was not sent yet: send all 4 first"):
        fleet.result()
    send_all(fleet, make_router("round_robin"), 0)
    with pytest.raises(EpisodeOverError, match="every request was sent"):
        fleet.send(0)
