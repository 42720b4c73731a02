"""Metrics against arithmetic on paper, and against a slow computation from the log of iterations."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import Case, seeded_case

from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import EPISODE_METRICS, final_metrics, request_metrics
from llmsched_env.simulator import Simulator

DECODE, PREFILL = 0, 1


def wander(simulator, seed, steps=None):
    """Random actions, up to the end or so many iterations."""
    rng = np.random.default_rng(seed)
    while not simulator.done and (steps is None or steps > 0):
        simulator.step(int(rng.integers(0, 2)))
        steps = None if steps is None else steps - 1
    return simulator


def token_times(simulator, case, request):
    """When a request emitted its tokens, read off the log: its first, then one in each decode until it is complete."""
    first = int(simulator.served["first_token_ns"][request])
    decodes = [int(row["end_ns"]) for row in simulator.log if row["prefill"] == DECODE and row["start_ns"] >= first]
    return [first, *decodes[: case.outputs[request] - 1]]


def slow_metrics(simulator, case, request):
    times = token_times(simulator, case, request)
    several = len(times) > 1
    released = case.releases_ns[request]
    (prefilled,) = (int(row["start_ns"]) for row in simulator.log if row["end_ns"] == times[0])
    return {
        "queueing_s": (prefilled - released) / 1e9,
        "ttft_s": (times[0] - released) / 1e9,
        "tpot_s": (times[-1] - times[0]) / (len(times) - 1) / 1e9 if several else np.nan,
        "worst_token_gap_s": max(np.diff(times)) / 1e9 if several else np.nan,
        "latency_s": (times[-1] - released) / 1e9,
    }


# Two clients; prompts of 1 token, outputs of 3, 2, 2. Prefill 100 + 10 a token, decode 50 + 1 a client:
# P of two (0-120), D (120-172, request 1 ends), D (172-223, request 0 ends), P of one (223-333), D (333-384).
CASE = Case((1, 1, 1), (3, 2, 2), 2)


def played():
    simulator = Simulator(CASE.problem(), record=True)
    for action in (PREFILL, DECODE, DECODE, PREFILL, DECODE):
        simulator.step(action)
    assert simulator.done
    return simulator


def test_an_episode_on_paper():
    found = final_metrics(played())
    # Busy: 2 * 120 + 2 * 52 + 51 + 110 + 51 = 556 of 2 * 384 = 768.
    expected = {
        "makespan_s": 384e-9,
        "utilization": 556 / 768,
        "bubble_share": 212 / 768,
        "prefills": 2,
        "decodes": 3,
        "prefill_share": 230 / 384,
        "decode_share": 154 / 384,
        "mean_latency_s": (223 + 172 + 384) / 3 * 1e-9,
        "throughput_tokens_per_s": 7 / 384e-9,
        "completed": 3,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    # At least ceil(3 / 2) = 2 prefills and ceil(4 / 2) = 2 decodes: 2 * 100 + 30 + 2 * 50 + 4 = 334.
    assert found["bound_s"] == pytest.approx(334e-9)
    assert found["gap_to_bound"] == pytest.approx(384 / 334 - 1)
    assert set(found) == {*EPISODE_METRICS, "bound_s"}
    assert all(type(value) in (int, float) for value in found.values())


def test_requests_on_paper():
    found = request_metrics(played())
    assert found["queueing_s"] == pytest.approx(np.array([0, 0, 223]) * 1e-9)
    assert found["ttft_s"] == pytest.approx(np.array([120, 120, 333]) * 1e-9)
    assert found["latency_s"] == pytest.approx(np.array([223, 172, 384]) * 1e-9)
    assert found["tpot_s"] == pytest.approx(np.array([(223 - 120) / 2, 52, 51]) * 1e-9)
    assert found["worst_token_gap_s"] == pytest.approx(np.array([52, 52, 51]) * 1e-9)


def test_time_with_nothing_to_do_is_neither_prefill_nor_decode():
    # Starts at 70; done at 180; nothing until 500; done at 610.
    simulator = Simulator(Case((1, 1), (1, 1), 1, releases_ns=(70, 500)).problem(), record=True)
    simulator.step(PREFILL)
    simulator.step(PREFILL)
    found = final_metrics(simulator)
    assert found["prefill_share"] == pytest.approx(220 / 610)
    assert found["decode_share"] == 0
    assert found["utilization"] == pytest.approx(220 / 610)
    assert found["bubble_share"] == pytest.approx(390 / 610)
    assert request_metrics(simulator)["ttft_s"] == pytest.approx([110e-9, 110e-9])


def test_before_the_first_iteration_nothing_divides_by_zero():
    found = final_metrics(Simulator(CASE.problem()))
    assert np.isnan(found["makespan_s"])
    assert np.isnan(found["gap_to_bound"])
    assert found["elapsed_s"] == found["utilization"] == found["throughput_tokens_per_s"] == 0


@pytest.mark.parametrize("seed", range(12))
def test_requests_against_the_log(seed):
    case = seeded_case(seed)
    assert (max(case.releases_ns) > 0) == (seed % 2 == 1)
    simulator = wander(Simulator(case.problem(), record=True), seed)
    found = request_metrics(simulator)
    slow = [slow_metrics(simulator, case, request) for request in range(len(case.prompts))]
    for name, column in found.items():
        expected = [row[name] for row in slow]
        assert column == pytest.approx(np.array(expected), rel=1e-12, nan_ok=True), name
    assert np.isnan(found["tpot_s"]).sum() == sum(output == 1 for output in case.outputs)
    assert found["latency_s"].mean() == pytest.approx(final_metrics(simulator)["mean_latency_s"])


@pytest.mark.parametrize("seed", range(6))
def test_an_episode_against_the_log(seed):
    case = seeded_case(seed)
    simulator = wander(Simulator(case.problem(), record=True), seed)
    found, log = final_metrics(simulator), simulator.log
    spent = log["end_ns"] - log["start_ns"]
    clock_ns = int(simulator.view.clock_ns)
    assert found["utilization"] == pytest.approx((spent * log["clients"]).sum() / clock_ns / case.num_clients)
    assert found["bubble_share"] == pytest.approx(1 - found["utilization"])
    assert found["prefill_share"] == pytest.approx(spent[log["prefill"] == PREFILL].sum() / clock_ns)
    assert found["decode_share"] == pytest.approx(spent[log["prefill"] == DECODE].sum() / clock_ns)
    assert found["throughput_tokens_per_s"] == pytest.approx(sum(case.outputs) / clock_ns * 1e9)
    assert (found["prefills"], found["decodes"]) == (
        (log["prefill"] == PREFILL).sum(),
        (log["prefill"] == DECODE).sum(),
    )


@pytest.mark.parametrize("seed", range(4))
def test_what_is_not_reached_is_nan(seed):
    case = seeded_case(seed)
    simulator = wander(Simulator(case.problem(), record=True), seed, steps=60)
    served = simulator.served
    complete, started = served["completion_ns"] > 0, served["first_token_ns"] > 0
    assert 0 < complete.sum() < started.sum() < len(case.prompts), "horizon: no request of each kind"
    found = request_metrics(simulator)
    for name in ("queueing_s", "ttft_s"):
        assert (np.isnan(found[name]) == ~started).all()
    assert (np.isnan(found["latency_s"]) == ~complete).all()
    several = complete & (np.array(case.outputs) > 1)
    for name in ("tpot_s", "worst_token_gap_s"):
        assert (np.isnan(found[name]) == ~several).all()
    # Tokens so far: each request that started has had one, each decode gave one to each active client.
    tokens = started.sum() + simulator.log["clients"][simulator.log["prefill"] == DECODE].sum()
    rate = final_metrics(simulator)["throughput_tokens_per_s"]
    assert rate * simulator.view.clock_ns / 1e9 == pytest.approx(tokens)


def test_a_fork_that_records_tells_what_it_saw_begin():
    case = seeded_case(3)
    original = wander(Simulator(case.problem(), record=True), 3, steps=60)
    before = original.served["first_token_ns"] > 0
    twin = original.fork(record=True)
    for episode in (original, twin):
        wander(episode, 4)
    whole, late = request_metrics(original), request_metrics(twin)
    for name in ("queueing_s", "ttft_s", "tpot_s", "worst_token_gap_s"):
        assert np.isnan(late[name][before]).all()
        assert np.array_equal(late[name][~before], whole[name][~before], equal_nan=True)
    assert np.isfinite(late["worst_token_gap_s"][~before]).any()


def test_an_episode_that_was_not_recorded():
    with pytest.raises(ConfigError, match=r"was not recorded: make it with Simulator\(problem, record=True\)"):
        request_metrics(wander(Simulator(CASE.problem()), 0))
