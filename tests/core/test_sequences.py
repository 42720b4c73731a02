"""Forks in which the waiting requests stand in another order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.engine.rules import IdleThreshold
from llmsched_env.errors import ConfigError
from llmsched_env.policy import features
from llmsched_env.simulator import Simulator

SMALL = Scenario(num_requests=40, num_clients=6, queue="shared", order="longest_first")


def advanced(scenario, steps, case=0):
    simulator = Simulator(build_problem(scenario, case))
    for step in range(steps):
        simulator.step(int(step % 7 == 0))
    return simulator


def course(simulator):
    """What it shows now, and how it ends under a rule."""
    now = features(simulator.view).tolist()
    simulator = simulator.fork(record=True)
    simulator.run(IdleThreshold(2.0))
    return now, simulator.log.tolist(), simulator.served.tolist(), simulator.charge


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(0, 500), case=st.integers(0, 5), memory=st.booleans(), late=st.booleans())
def test_in_the_order_that_there_is_it_goes_on_as_before(steps, case, memory, late):
    changes = {"kv_budget_tokens": 12_000 if late else 4_000} if memory else {}
    if late:
        changes |= {"load": 0.7, "workload": "azure-synthetic"}
    where = SMALL.replace(**changes)
    simulator = advanced(where, steps, case)
    assert course(simulator.fork(sequence=simulator.waiting)) == course(simulator.fork())


@pytest.mark.parametrize("order", ["longest_first", "shortest_first"])
def test_from_the_start_it_is_the_problem_in_that_order(order):
    other, there = advanced(SMALL.replace(order="fcfs"), 0), advanced(SMALL.replace(order=order), 0)
    assert course(other.fork(sequence=there.waiting)) == course(there)


def test_only_those_that_wait_are_moved_and_the_front_is_read_first():
    simulator = advanced(SMALL, 400)
    waiting = simulator.waiting
    assert 2 < len(waiting) < 40
    turned = simulator.fork(sequence=waiting[::-1])
    assert turned.waiting.tolist() == waiting[::-1].tolist()
    assert simulator.waiting.tolist() == waiting.tolist()
    while not turned.can_prefill:
        turned.step(0)
    took = turned.view.batch_requests
    turned.step(1)
    assert turned.waiting.tolist() == waiting[::-1].tolist()[took:]
    assert (turned.emitted[waiting[::-1][:took]] == 1).all()


@pytest.mark.parametrize(
    ("change", "sequence", "message"),
    [
        ({}, [0], "name each of the 40 requests that wait once"),
        ({}, [0] * 40, "name each of the 40"),
        ({}, np.arange(40) + 1, "name each of the 40"),
        ({}, np.arange(40.0), "name each of the 40"),
        ({"queue": "client", "assignment": "lpt"}, np.arange(40), "set queue='shared'"),
        ({"ttft_s": 1.0, "tpot_s": 0.1, "order": "fcfs"}, np.arange(40), "leave ttft_s and tpot_s out"),
    ],
)
def test_what_is_no_sequence_is_refused(change, sequence, message):
    with pytest.raises(ConfigError, match=message):
        advanced(SMALL.replace(**change), 0).fork(sequence=sequence)
