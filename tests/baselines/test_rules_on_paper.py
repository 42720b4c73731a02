"""Each rule just below and just at its boundary. Prefill 100 + 10 a token, decode 50 + 1 a client."""

from __future__ import annotations

import itertools

import pytest
from playing import asked, kinds, start_of, view_of, world
from strategies import Case

from llmsched_env.baselines import iteration
from llmsched_env.baselines.lagrangian import lagrangian, lagrangian_instant, lagrangian_literal, lagrangian_lookahead
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
    stepped = asked(rule, Simulator(case.problem(), record=True))
    ran = Simulator(case.problem(), record=True)
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
        (iteration.lightllm(10), 10),
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
    opened = {"prefills": 1, "clock_ns": 110, "last_prefill_ns": 110, "active": 2}
    assert choice(iteration.static_batching(), consecutive_prefills=1, oldest_release_ns=0, **opened) == PREFILL
    assert choice(iteration.static_batching(), consecutive_prefills=1, oldest_release_ns=1, **opened) == DECODE
    assert choice(iteration.static_batching(), consecutive_prefills=0, oldest_release_ns=0, **opened) == DECODE


def test_static_batching_fixes_its_batch_when_it_opens():
    # Request 0 is read from 0 to 100 + 100. Request 1 came at 100 and waits for its 3 decodes of 51 ns, until 353; its
    # own prefill ends at 353 + 200.
    late = episode(iteration.static_batching(), Case((10, 10), (4, 2), 4, releases_ns=(0, 100)))
    assert kinds(late) == "PDDDPD"
    assert late.served["first_token_ns"].tolist() == [200, 553]
    # A cap of 20 tokens cuts the batch of requests 0, 1 and 2 into prefills of 20 and 10 tokens, which end at 300 and
    # 500. Request 3 came at 150, has no room in the second one (10 + 15 > 20), and there is no third.
    cut = episode(
        iteration.static_batching(), Case((10, 10, 10, 15), (3, 3, 3, 2), 4, releases_ns=(0, 0, 0, 150), token_cap=20)
    )
    assert kinds(cut) == "PPDDPD"
    assert cut.served["first_token_ns"].tolist() == [300, 300, 500, 500 + 2 * 53 + 250]
    # With 10 tokens it has, and the second prefill takes it along.
    along = episode(
        iteration.static_batching(), Case((10, 10, 10, 10), (3, 3, 3, 2), 4, releases_ns=(0, 0, 0, 150), token_cap=20)
    )
    assert kinds(along) == "PPDD"


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


def test_lightllm_looks_for_requests_at_every_tenth_decode():
    rule = iteration.lightllm(10)
    rule.reset(start_of(world()))

    def act(decodes, last_prefill_decode):
        return rule.act(view_of(decodes=decodes, last_prefill_decode=last_prefill_decode))

    # The first prefill was at decode 0. Nobody came before decode 10, so nobody was asked about then.
    assert [act(decodes, 0) for decodes in range(11, 21)] == [DECODE] * 9 + [PREFILL]
    # After that prefill it decodes again.
    assert [act(decodes, 20) for decodes in (20, 21, 29, 30)] == [DECODE, DECODE, DECODE, PREFILL]
    # All were complete at decode 33, and a prefill with nobody active begins the count anew.
    assert [act(decodes, 33) for decodes in (33, 40, 43)] == [DECODE, DECODE, PREFILL]


def test_lightllm_lets_wait_whom_max_wait_takes():
    # Request 0 is read until 200; a decode lasts 51. Request 1 comes at 750, before the end of decode 11 at 761.
    # max_wait takes it then, LightLLM after decode 20, at 200 + 20 * 51 = 1220.
    case = Case((10, 10), (40, 2), 2, releases_ns=(0, 750))
    assert episode(iteration.max_wait(10), case).served["first_token_ns"].tolist() == [200, 961]
    assert episode(iteration.lightllm(10), case).served["first_token_ns"].tolist() == [200, 1420]


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
