"""SLOs, orders and goodput: the engine against the plain simulator, laws, and instances done on paper."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from reference import CHOICES, Reference
from strategies import ORDERED_ACTIONS, REPEATABLE, Case, slo_cases
from test_equivalence import assert_same_history, assert_same_state

from llmsched_env.config import DEADLINE_ORDERS, ORDER_CODES, ORDERS
from llmsched_env.engine.features import FEATURES, SLO_FEATURES
from llmsched_env.metrics import final_metrics
from llmsched_env.policy import features
from llmsched_env.simulator import Simulator


def in_space(case, action):
    return action if case.choose_order else min(action, 1)


def assert_same_slo(simulator, reference):
    totals, case = simulator.totals, reference.case
    ttft, tpot = reference.ttft_violations(), reference.tpot_violations()
    assert totals.ttft_violations == len(ttft)
    assert totals.tpot_violations == len(tpot)
    assert totals.violations == len(ttft | tpot)
    started = [i for i in reference.counted() if i in reference.first_token_ns]
    assert totals.counted_started == len(started)
    assert totals.ttft_sum_ns == sum(reference.first_token_ns[i] - case.releases_ns[i] for i in started)
    paces = [
        (reference.completion_ns[i] - reference.first_token_ns[i]) / (case.outputs[i] - 1)
        for i in started
        if i in reference.completion_ns and case.outputs[i] > 1
    ]
    assert totals.counted_decoded == len(paces)
    assert math.isclose(totals.tpot_sum_ns, math.fsum(paces), rel_tol=1e-12)


def test_it_equals_the_reference_after_every_iteration():
    seen = Counter()

    @settings(REPEATABLE, max_examples=150)
    @given(case=slo_cases(), actions=ORDERED_ACTIONS)
    def check(case, actions):
        simulator, reference = Simulator(case.problem(), record=True), Reference(case)
        assert_same_state(simulator, reference)
        for action in itertools.cycle(actions):
            if reference.done:
                break
            late = bool(simulator.view.late) and simulator.view.late < simulator.view.waiting
            simulator.step(in_space(case, action))
            reference.step(in_space(case, action))
            assert_same_state(simulator, reference)
            assert_same_slo(simulator, reference)
            assert simulator.has_choice == (
                reference.ready > 0 and (bool(reference.active) or (case.choose_order and len(reference.waiting) > 1))
            )
            seen["late beside others"] += late
        assert_same_history(simulator, reference)
        violating = reference.ttft_violations() | reference.tpot_violations()
        seen["TTFT"] += bool(reference.ttft_violations())
        seen["TPOT"] += bool(reference.tpot_violations())
        seen["both"] += bool(reference.ttft_violations() & reference.tpot_violations())
        seen["met"] += len(violating) < len(reference.counted())
        seen["overtaken"] += reference.overtaken > 0
        seen["left out"] += case.uncounted > 0
        seen.update(reference.chosen)

    check()
    rare = {name: count for name, count in seen.items() if count < 8}
    assert not rare, f"hardly tested: {rare}"
    assert len(seen) == 7 + len(CHOICES)


def test_orders_are_numbered_as_everybody_says():
    assert tuple(sorted(ORDER_CODES, key=ORDER_CODES.__getitem__)) == CHOICES
    assert sorted(ORDER_CODES.values()) == list(range(len(CHOICES)))
    assert set(ORDER_CODES) == {*ORDERS, *DEADLINE_ORDERS}


@settings(REPEATABLE, max_examples=100)
@given(case=slo_cases(), actions=ORDERED_ACTIONS)
def test_an_order_chosen_each_time_is_the_scenarios_own(case, actions):
    """``choose_order`` with action a throughout gives what the order as the scenario's own gives with action 1."""
    own = Simulator(replace(case, choose_order=False).problem(), record=True)
    chosen = Simulator(replace(case, choose_order=True).problem(), record=True)
    prefill = 1 + ORDER_CODES[case.order]
    for action in itertools.cycle(actions):
        if own.done:
            break
        own.step(min(action, 1))
        # A decode that cannot be is replaced by action 1, which is another order here.
        chosen.step(prefill if action or not chosen.can_decode else 0)
    np.testing.assert_array_equal(own.served, chosen.served)
    np.testing.assert_array_equal(own.log, chosen.log)
    assert own.totals.violations == chosen.totals.violations


@settings(REPEATABLE, max_examples=100)
@given(case=slo_cases(), actions=ORDERED_ACTIONS)
def test_static_orders_do_not_need_slos(case, actions):
    """An order by length is the same whether the queue is laid out by it or asked for it at each prefill."""
    order = case.order.removeprefix("late_last_").replace("late_last", "fcfs")
    order = {"shortest": "shortest_first", "longest": "longest_first"}.get(order, order)
    case = replace(case, order=order, choose_order=False)
    with_slo, plain = (Simulator(one.problem(), record=True) for one in (case, replace(case, ttft_ns=0, tpot_ns=0)))
    for action in itertools.cycle(actions):
        if plain.done:
            break
        for simulator in (with_slo, plain):
            simulator.step(min(action, 1))
        names = ["batch_requests", "batch_tokens", "batch_work", "prefill_ns"]
        for name in [*names, "oldest_release_ns"] if plain.view.waiting else names:
            assert getattr(with_slo.view, name) == getattr(plain.view, name)
    np.testing.assert_array_equal(with_slo.served, plain.served)


@settings(REPEATABLE, max_examples=100)
@given(case=slo_cases(), actions=ORDERED_ACTIONS)
def test_goodput_is_what_the_record_says(case, actions):
    simulator = Simulator(case.problem(reward="goodput"), record=True)
    assert math.isnan(final_metrics(simulator)["goodput"])
    for action in itertools.cycle(actions):
        if simulator.done:
            break
        before = simulator.charge
        simulator.step(in_space(case, action))
        assert simulator.charge >= before
    served, counted = simulator.served, range(case.uncounted, len(case.prompts) - case.uncounted)
    met = [
        i
        for i in counted
        if served[i]["first_token_ns"] - case.releases_ns[i] <= case.ttft_ns
        and served[i]["completion_ns"] - served[i]["first_token_ns"] <= case.tpot_ns * (case.outputs[i] - 1)
    ]
    found = final_metrics(simulator)
    assert found["goodput"] == pytest.approx(len(met) / len(counted))
    assert found["goodput"] == pytest.approx(1 - simulator.charge / len(counted))
    ttft = [served[i]["first_token_ns"] - case.releases_ns[i] for i in counted]
    assert found["ttft_s"] == pytest.approx(np.mean(ttft) / 1e9)


@settings(REPEATABLE, max_examples=100)
@given(case=slo_cases(), actions=ORDERED_ACTIONS)
def test_features_lie_in_the_box(case, actions):
    simulator = Simulator(case.problem())
    for action in itertools.cycle(actions):
        row = features(simulator.view)
        assert len(row) == len(FEATURES) + len(SLO_FEATURES)
        assert np.isfinite(row).all()
        assert row.min() >= 0
        assert row.max() <= 1
        if simulator.done:
            break
        simulator.step(in_space(case, action))


def test_a_fork_counts_violations_of_its_own():
    case = Case(
        (3,) * 8, (5,) * 8, 2, releases_ns=tuple(range(0, 800, 100)), ttft_ns=400, tpot_ns=90, choose_order=True
    )
    simulator = Simulator(case.problem())
    for action in (1, 0, 3, 0):
        simulator.step(action)
    twin, before = simulator.fork(), int(simulator.totals.violations)
    while not twin.done:
        twin.step(5)
    assert simulator.totals.violations == before
    while not simulator.done:
        simulator.step(5)
    assert simulator.totals.violations == twin.totals.violations > before


class TestOnPaper:
    """alpha_p 100, beta_p 10 a token, alpha_d 50, beta_d 1 a client, in ns; one client."""

    CASE = Case((10, 10, 10), (3, 3, 3), 1, releases_ns=(0, 50, 60), ttft_ns=500, tpot_ns=51)

    def served(self, case, actions):
        simulator = Simulator(case.problem(), record=True)
        for action in actions:
            simulator.step(action)
        assert simulator.done
        return simulator

    def test_first_come_first_served(self):
        # Prefills last 200, a request then decodes twice, 51 each: one is done every 302 ns. First tokens at 200, 502
        # and 804, so after 200, 452 and 744: the third is too late. Each decode meets the TPOT limit exactly.
        simulator = self.served(self.CASE, [1, 0, 0] * 3)
        assert (simulator.totals.violations, simulator.totals.ttft_violations, simulator.totals.tpot_violations) == (
            1,
            1,
            0,
        )
        assert final_metrics(simulator)["goodput"] == pytest.approx(2 / 3)
        assert final_metrics(simulator)["ttft_s"] == pytest.approx((200 + 452 + 744) / 3 / 1e9)
        assert final_metrics(simulator)["tpot_s"] == pytest.approx(51e-9)

    def test_late_from_the_moment_on_that_nothing_helps(self):
        # A prefill lasts at least 100: the third, released at 60, is late where the clock exceeds 460. That is at 502,
        # with its predecessor's first token, and not at 302.
        simulator = Simulator(self.CASE.problem())
        late = []
        for action in [1, 0, 0] * 3:
            simulator.step(action)
            late.append((int(simulator.view.clock_ns), int(simulator.view.late), int(simulator.totals.violations)))
        assert late == [
            (200, 0, 0), (251, 0, 0), (302, 0, 0),
            (502, 1, 1), (553, 1, 1), (604, 1, 1),
            (804, 0, 1), (855, 0, 1), (906, 0, 1),
        ]  # fmt: skip

    def test_late_ones_go_last(self):
        # The fourth, released at 500, overtakes the third, which is late at 604: 604 + 200 - 500 = 304 is in time.
        case = replace(self.CASE, prompts=(10,) * 4, outputs=(3,) * 4, estimates=(), releases_ns=(0, 50, 60, 500))
        simulator = self.served(replace(case, order="late_last"), [1, 0, 0] * 4)
        assert simulator.served["first_token_ns"].tolist() == [200, 502, 1106, 804]
        assert simulator.totals.violations == 1
        assert self.served(case, [1, 0, 0] * 4).totals.violations == 2

    def test_a_stall_breaks_the_pace(self):
        # Two clients: the second prefill stalls the first request by 200 within its two decodes.
        case = replace(self.CASE, num_clients=2, ttft_ns=2000, tpot_ns=60)
        simulator = self.served(case, [1, 0, 1, 0, 1, 0, 0])
        assert simulator.totals.tpot_violations >= 1
        assert simulator.totals.violations == simulator.totals.tpot_violations
