"""Each rule just below and just at its boundary. Prefill 100 + 10 a token, decode 50 + 1 a client."""

from __future__ import annotations

import itertools

import pytest
from playing import asked, kinds, start_of, view_of, world
from strategies import Case

from baselines import iteration
from baselines.lagrangian import lagrangian, lagrangian_instant, lagrangian_literal, lagrangian_lookahead
from llmsched_env.simulator import Simulator

DECODE, PREFILL = 0, 1


def choice(rule, *, mean_output_tokens=10.0, **fields):
    """What ``rule`` does on a view with these fields."""
    rule.reset(start_of(world(), mean_output_tokens=mean_output_tokens))
    return rule.act(view_of(**fields))


def episode(rule, case):
    """The case under ``rule``, recorded, both ways of running alike."""
    start = start_of(world(num_clients=case.num_clients))
    rule.reset(start)
    stepped = asked(rule, Simulator(case.instance(), record=True))
    ran = Simulator(case.instance(), record=True)
    ran.run(rule.compiled(start))
    assert ran.log.tobytes() == stepped.log.tobytes()
    return ran


# Three clients, requests of 2, 20, 20 tokens, and one of 5 that waits: after the first decode client 0 is idle.
WAITING = Case((1, 1, 1, 1), (2, 20, 20, 5), 3)


@pytest.mark.parametrize(
    ("rule", "decodes_before_refill"),
    [
        (iteration.prefill_first(), 1),
        # Nobody else falls idle before the two long ones end together, after 19 decodes.
        (iteration.decode_first(), 19),
        (iteration.static_batching(), 19),
        # One waits and one is idle: all that waits fits, so no threshold makes it wait.
        (iteration.threshold(3), 1),
        (iteration.max_wait(10), 10),
        (iteration.cadence(8), 7),  # 1 prefill in 8 iterations: 7 decodes between two
        (iteration.interleave(2, 6), 6),
        # floor(2 * 0.3) = 0 requests are enough.
        (iteration.tgi(), 1),
        # C_d = 50 a decode with client 0 idle, C_p = 100 * 2: four such decodes after the first.
        (lagrangian(), 1 + 4),
        (lagrangian(0.5), 1 + 2),
        (lagrangian(0.0), 1),
        # The coming decode counts: 50 * (3 + 1) = 200.
        (lagrangian_lookahead(), 1 + 3),
        # T_d = 50 + 2 = 52 a decode, T_p = 100 + 10 = 110: 52 c >= 110 * 2 from c = 5 (260 >= 220).
        (lagrangian_literal(), 1 + 5),
        # 1 * 52 never reaches 110 * 2: waits until the rest is done.
        (lagrangian_instant(), 19),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else None,
)
def test_when_the_fourth_request_is_taken(rule, decodes_before_refill):
    simulator = episode(rule, WAITING)
    first = "P" + "D" * decodes_before_refill + "P"
    assert kinds(simulator).startswith(first)
    assert simulator.view.prefills == 2


def test_prefill_first_and_decode_first_never_change_their_mind():
    for fields in ({"idle": 1, "active": 7}, {"idle": 7, "active": 1}):
        assert choice(iteration.prefill_first(), **fields) == PREFILL
        assert choice(iteration.decode_first(), **fields) == DECODE


def test_static_batching_fills_then_drains():
    # A cap of 2 tokens: two prefills fill the four clients; the fifth request waits for the last of the four.
    case = Case((1,) * 5, (3, 2, 3, 2, 2), 4, token_cap=2)
    assert kinds(episode(iteration.static_batching(), case)) == "PPDDPD"
    assert choice(iteration.static_batching(), consecutive_prefills=1, active=2) == PREFILL
    assert choice(iteration.static_batching(), consecutive_prefills=0, active=1) == DECODE


def test_threshold():
    # F >= k.
    assert choice(iteration.threshold(3), idle=2, ready=2, waiting=9) == DECODE
    assert choice(iteration.threshold(3), idle=3, ready=3, waiting=9) == PREFILL
    # All that wait fit.
    assert choice(iteration.threshold(3), idle=2, ready=2, waiting=2) == PREFILL
    # k = 1 is prefill-first.
    assert choice(iteration.threshold(1), idle=1, ready=1, waiting=9) == PREFILL


def test_max_wait():
    assert choice(iteration.max_wait(10), decodes=34, last_prefill_decode=25) == DECODE
    assert choice(iteration.max_wait(10), decodes=35, last_prefill_decode=25) == PREFILL


def test_cadence():
    # A prefill, then at least n - 1 = 3 decodes.
    assert choice(iteration.cadence(4), decodes=12, last_prefill_decode=10) == DECODE
    assert choice(iteration.cadence(4), decodes=13, last_prefill_decode=10) == PREFILL
    assert choice(iteration.cadence(1), decodes=10, last_prefill_decode=10) == PREFILL


def test_interleave():
    # At most 2 prefills in a row ...
    assert choice(iteration.interleave(2, 3), consecutive_prefills=1) == PREFILL
    assert choice(iteration.interleave(2, 3), consecutive_prefills=2) == DECODE
    # ... then at least 3 decodes.
    assert choice(iteration.interleave(2, 3), decodes=7, last_prefill_decode=5) == DECODE
    assert choice(iteration.interleave(2, 3), decodes=8, last_prefill_decode=5) == PREFILL


def test_tgi():
    # floor(10 * 0.3) = 3 requests, floor(13 * 0.3) = 3, floor(14 * 0.3) = 4.
    assert choice(iteration.tgi(), active=10, batch_requests=2) == DECODE
    assert choice(iteration.tgi(), active=10, batch_requests=3) == PREFILL
    assert choice(iteration.tgi(), active=13, batch_requests=3) == PREFILL
    assert choice(iteration.tgi(), active=14, batch_requests=3) == DECODE
    # What fits under the cap counts, not what could start.
    assert choice(iteration.tgi(), active=10, ready=9, batch_requests=2) == DECODE
    # After 20 decodes one is enough.
    assert choice(iteration.tgi(), active=10, batch_requests=1, decodes=29, last_prefill_decode=10) == DECODE
    assert choice(iteration.tgi(), active=10, batch_requests=1, decodes=30, last_prefill_decode=10) == PREFILL


def test_delay_factor_with_arrivals():
    # Strictly longer than half of 100.
    waited = {"last_prefill_ns": 100, "oldest_release_ns": 1000}
    assert choice(iteration.delay_factor(0.5), clock_ns=1050, **waited) == DECODE
    assert choice(iteration.delay_factor(0.5), clock_ns=1051, **waited) == PREFILL
    # Request 0 is prefilled from 0 to 110; request 1 arrives at 100. It has waited for 10 at 110, 61 after a decode of
    # 51, 112 > 110 after two: prefilled from 212 to 322.
    case = Case((1, 1), (9, 2), 2, releases_ns=(0, 100))
    simulator = episode(iteration.delay_factor(1.0), case)
    assert kinds(simulator).startswith("PDDP")
    assert simulator.served["first_token_ns"].tolist() == [110, 322]
    # Without arrivals: prefill-first.
    assert kinds(episode(iteration.delay_factor(), WAITING)) == kinds(episode(iteration.prefill_first(), WAITING))


def test_lagrangian():
    # C_p = 100 * 3 = 300; C_d = 50 a client and decode.
    assert choice(lagrangian(), idle_charge=5, active=3, ready=9) == DECODE
    assert choice(lagrangian(), idle_charge=6, active=3, ready=0) == PREFILL
    # lambda = 1/2: 150.
    assert choice(lagrangian(0.5), idle_charge=2, active=3) == DECODE
    assert choice(lagrangian(0.5), idle_charge=3, active=3) == PREFILL


def test_lagrangian_lookahead():
    # The coming decode with 2 ready: 50 * (4 + 2) = 300.
    assert choice(lagrangian_lookahead(), idle_charge=4, ready=1, active=3) == DECODE
    assert choice(lagrangian_lookahead(), idle_charge=4, ready=2, active=3) == PREFILL


def test_lagrangian_literal():
    # T_p = 130, T_d = 53, three active: 53 * 7 = 371 < 390 <= 424 = 53 * 8.
    durations = {"prefill_ns": 130, "decode_ns": 53, "active": 3}
    assert choice(lagrangian_literal(), idle_charge=7, ready=50, **durations) == DECODE
    assert choice(lagrangian_literal(), idle_charge=8, ready=1, **durations) == PREFILL


def test_lagrangian_instant():
    # The same with the clients that are ready now; what was accumulated does not count.
    durations = {"prefill_ns": 130, "decode_ns": 53, "active": 3}
    assert choice(lagrangian_instant(), idle_charge=99, ready=7, **durations) == DECODE
    assert choice(lagrangian_instant(), idle_charge=0, ready=8, **durations) == PREFILL


def test_random_is_a_fair_coin():
    rule = iteration.RandomRule()
    rule.reset(start_of(world(), seed=1))
    tosses = [rule.act(view_of()) for _ in range(4000)]
    # 2000 expected, standard deviation 32.
    assert 1850 < sum(tosses) < 2150
    # Neighbours are independent: 1000 pairs of prefills expected.
    assert 850 < sum(a and b for a, b in itertools.pairwise(tosses)) < 1150
    biased = iteration.RandomRule(0.1)
    biased.reset(start_of(world(), seed=1))
    assert 300 < sum(biased.act(view_of()) for _ in range(4000)) < 500
