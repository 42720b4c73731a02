"""What must hold in every episode, whatever the case and the actions."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from episodes import Stepped
from hypothesis import given, settings
from strategies import ACTIONS, DECODE, PREFILL, REPEATABLE, cases

from llmsched_env.config import REWARDS
from llmsched_env.engine import codes
from llmsched_env.offline import lb1_ns
from llmsched_env.simulator import Simulator


def run(simulator, actions):
    for action in itertools.cycle(actions):
        if simulator.done:
            return simulator
        simulator.step(action)


@settings(REPEATABLE, max_examples=150)
@given(case=cases(), actions=ACTIONS)
def test_requests_are_conserved_and_the_clock_moves_on(case, actions):
    simulator = Simulator(case.problem(), record=True)
    n, before_ns = len(case.prompts), -1
    for action in itertools.cycle(actions):
        view = simulator.view
        released = sum(release <= view.clock_ns for release in case.releases_ns)
        assert view.completed + view.active + view.waiting == released
        assert view.active + view.idle == case.num_clients
        assert 0 <= view.ready <= view.idle
        assert view.clock_ns > before_ns, "an iteration without duration"
        assert simulator.done or simulator.can_decode or simulator.can_prefill
        if simulator.done:
            break
        before_ns = int(view.clock_ns)
        simulator.step(action)
    served, log = simulator.served, simulator.log
    assert simulator.view.completed == n
    assert sorted(simulator.problem.request_of.tolist()) == list(range(n))
    # Causality of each request, and no two on a client at a time.
    assert (served["prefill_start_ns"] >= np.array(case.releases_ns)).all()
    assert (served["first_token_ns"] > served["prefill_start_ns"]).all()
    assert ((served["completion_ns"] > served["first_token_ns"]) == (np.array(case.outputs) > 1)).all()
    for client in range(case.num_clients):
        mine = np.sort(served[served["client"] == client], order="prefill_start_ns")
        assert (mine["prefill_start_ns"][1:] >= mine["completion_ns"][:-1]).all()
    # Iterations follow one another; between them only time with nothing to do.
    assert (log["end_ns"] > log["start_ns"]).all()
    gaps = log["start_ns"][1:] - log["end_ns"][:-1]
    assert (gaps >= 0).all()
    assert gaps.sum() + log["start_ns"][0] == simulator.totals.jump_ns
    assert log["end_ns"][-1] == simulator.view.clock_ns
    assert log["clients"][log["prefill"] == PREFILL].sum() == n
    assert log["clients"][log["prefill"] == DECODE].sum() == sum(case.outputs) - n


@settings(REPEATABLE, max_examples=100)
@given(case=cases(affine=True, arrivals=False), actions=ACTIONS)
def test_makespan_is_prefills_and_decodes_and_a_constant(case, actions):
    simulator = run(Simulator(case.problem()), actions)
    view, totals = simulator.view, simulator.totals
    needed = sum(case.outputs) - len(case.outputs)
    assert view.clock_ns == (
        case.alpha_prefill_ns * view.prefills
        + case.alpha_decode_ns * view.decodes
        + case.beta_prefill_ns * sum(case.prompts)
        + case.beta_decode_ns * needed
    )
    assert case.num_clients * view.decodes == needed + totals.idle_client_decodes


@settings(REPEATABLE, max_examples=150)
@given(case=cases(), actions=ACTIONS)
def test_makespan_is_no_less_than_the_bound(case, actions):
    simulator = run(Simulator(case.problem()), actions)
    assert simulator.view.clock_ns >= lb1_ns(case.requests, case.num_clients, case.cost)


def test_littles_law():
    seen = Counter()

    @settings(REPEATABLE, max_examples=120)
    @given(case=cases(), actions=ACTIONS)
    def check(case, actions):
        simulator = run(Simulator(case.problem(), record=True), actions)
        latency_ns = simulator.served["completion_ns"] - np.array(case.releases_ns)
        assert simulator.totals.request_ns == latency_ns.sum()
        # The same from the other side: requests in the system, summed over every interval between events.
        times = sorted({0, *case.releases_ns, *simulator.served["completion_ns"].tolist()})
        area = 0
        for start, end in itertools.pairwise(times):
            present = sum(
                release <= start < done
                for release, done in zip(case.releases_ns, simulator.served["completion_ns"].tolist(), strict=True)
            )
            area += present * (end - start)
        assert area == simulator.totals.request_ns
        seen["arrivals" if case.releases_ns[-1] else "none"] += 1

    check()
    assert min(seen["arrivals"], seen["none"]) > 5, seen


def metric_of(reward, case, simulator):
    """What the rewards of an episode add up to, times their scale: from the recorded history, not from its totals."""
    clock_ns, log = int(simulator.view.clock_ns), simulator.log
    busy = int(((log["end_ns"] - log["start_ns"]) * log["clients"]).sum())
    if reward == "makespan" or (reward == "excess" and not case.cost.is_affine):
        return clock_ns * (case.num_clients if reward == "excess" else 1)
    if reward == "idle":
        return case.num_clients * clock_ns - busy
    if reward == "latency":
        released = np.array(case.releases_ns) <= clock_ns
        ends = np.where(simulator.served["completion_ns"] > 0, simulator.served["completion_ns"], clock_ns)
        return int((ends - np.array(case.releases_ns))[released].sum())
    emitted = int(log["clients"][log["prefill"] == DECODE].sum())
    if reward == "differential":
        # Least cost of a token where a cycle of d decodes is charged alpha_p + alpha_d d^2 / (2 m) for each client.
        mean = simulator.view.mean_output_tokens
        cycle = math.sqrt(2 * case.alpha_prefill_ns * mean / max(1, case.alpha_decode_ns)) or 1.0
        price = case.alpha_prefill_ns / cycle + case.alpha_decode_ns * cycle / (2 * mean)
        price *= min(case.alpha_prefill_ns, case.alpha_decode_ns) > 0
        if not case.cost.is_affine:
            price += case.cost.decode_ns(case.num_clients, 0)
        ahead = case.alpha_decode_ns * slack_of(case, simulator)
        paid = metric_of("excess", case, simulator) + ahead - simulator.charge
        assert abs(paid - price * emitted) <= emitted + 2 * case.alpha_decode_ns, "a whole number of ns a token"
        assert abs(ahead) <= case.alpha_decode_ns or not simulator.done
        return simulator.charge
    # excess: the makespan without what no policy can change.
    prefilled = simulator.served["first_token_ns"] > 0
    tokens = int(np.array(case.prompts)[prefilled].sum())
    constant = case.num_clients * (case.beta_prefill_ns * tokens + case.beta_decode_ns * emitted)
    return case.num_clients * clock_ns - constant - case.alpha_decode_ns * emitted


def slack_of(case, simulator):
    """Client-decodes that will be idle: J times a smooth maximum of what clients have to do, less the sum of it."""
    served, estimates = simulator.served, np.array(case.estimates)
    running = (served["first_token_ns"] > 0) & (served["completion_ns"] == 0)
    waiting = (served["first_token_ns"] == 0) & (np.array(case.releases_ns) <= simulator.view.clock_ns)
    loads = np.zeros(case.num_clients)
    left = np.maximum(estimates - simulator.emitted, 0)
    np.add.at(loads, served["client"][running], left[running])
    if case.queues is not None:
        np.add.at(loads, np.array(case.queues)[waiting], estimates[waiting])
    else:  # water into a vessel whose floor the loads are
        floor, water = np.sort(loads), estimates[waiting].sum()
        levels = (water + np.cumsum(floor)) / np.arange(1, len(floor) + 1)
        wet = int(np.flatnonzero(levels > floor - 1e-9)[-1])
        loads = np.maximum(loads, levels[wet])
    width = simulator.view.mean_output_tokens / 32
    smooth = loads.max() + width * np.log(np.mean(np.exp((loads - loads.max()) / width)))
    return len(loads) * smooth - loads.sum()


def scale_of(reward, case):
    if reward == "differential" and case.alpha_prefill_ns:
        return case.num_clients * case.alpha_prefill_ns
    bound = lb1_ns(case.requests, case.num_clients, case.cost)
    return bound * {"makespan": 1, "latency": len(case.prompts)}.get(reward, case.num_clients)


@pytest.mark.parametrize("reward", [reward for reward in REWARDS if reward != "goodput"])
def test_rewards_telescope_to_their_metric(reward):
    seen = Counter()

    @settings(REPEATABLE, max_examples=150)
    @given(case=cases(), actions=ACTIONS)
    def check(case, actions):
        late = actions[0] == 0
        if late:
            case = replace(case, releases_ns=tuple(release + 12_345 for release in case.releases_ns))
        skip, horizon = len(actions) % 2 == 0, 5 * (len(actions) % 3)
        problem = case.problem(reward=reward, skip_forced=skip, max_iterations=horizon)
        simulator = Simulator(problem, record=True)
        stepped = Stepped(simulator)
        scale, paid, turnover, exact = scale_of(reward, case), 0.0, 0.0, 0
        for action in itertools.cycle(actions):
            if stepped.over:
                break
            if skip:
                assert stepped.flags & 3 == 3, "stopped where there was no choice"
            before = 0 if simulator.view.prefills == 0 and not exact else exact
            stepped.step(action)
            amount = stepped.reward
            exact = simulator.charge
            assert amount == -(exact - before) / scale
            assert amount <= 0 or reward == "differential"
            paid += amount
            turnover += abs(amount)
        # In whole nanoseconds exactly; in floats up to the rounding of each reward.
        assert simulator.charge == metric_of(reward, case, simulator)
        steps_paid = simulator.totals.charged == simulator.charge
        assert steps_paid or skip, "only an episode without a choice ends inside reset"
        if steps_paid:
            assert abs(paid * scale + simulator.charge) <= 1e-12 * turnover * scale
        assert bool(stepped.flags & codes.TERMINATED) == simulator.done
        assert bool(stepped.flags & codes.TRUNCATED) == (not simulator.done)
        seen["truncated" if stepped.flags & codes.TRUNCATED else "terminated"] += 1
        seen["skipped" if skip else "stepwise"] += 1
        seen["late"] += late
        seen["affine" if case.cost.is_affine else "not affine"] += 1

    check()
    assert len(seen) == 7
    assert min(seen.values()) > 10, f"hardly tested: {seen}"
