"""What each request did when: laws over every mechanism, and the plain simulator's account."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from combinations import combined_actions, combined_case
from reference import Reference
from strategies import DECODE, PREFILL, Case

from llmsched_env.evaluation.phases import PHASES, phases, preemptions
from llmsched_env.policy import PythonRule
from llmsched_env.simulator import Simulator

SEEDS = range(400)
CODES = {name: number for number, name in enumerate(PHASES)}


def stepped(seed):
    """An episode of any mechanisms, and the plain simulator's account of it."""
    case = combined_case(seed)
    simulator, reference = Simulator(case.problem(), record=True), Reference(case)
    actions, step = combined_actions(seed), 0
    while not simulator.done:
        action = case.number(*actions[step % len(actions)])
        simulator.step(action)
        reference.step(action)
        step += 1
    return simulator, reference


@pytest.fixture(scope="module")
def episodes():
    return [stepped(seed) for seed in SEEDS]


def test_phases_of_a_request_fill_its_time(episodes):
    met = Counter()
    for simulator, _ in episodes:
        found, served, release_ns = phases(simulator), simulator.served, simulator.problem.release_ns
        for request in range(len(served)):
            own = found[found["request"] == request]
            assert own["start_ns"][0] == release_ns[request]
            assert own["end_ns"][-1] == served["completion_ns"][request]
            assert (own["start_ns"][1:] == own["end_ns"][:-1]).all()
            assert (own["end_ns"] > own["start_ns"]).all()
            prefill = own[own["phase"] == CODES["prefill"]]
            assert prefill["start_ns"].tolist() == [served["prefill_start_ns"][request]]
            assert prefill["end_ns"].tolist() == [served["first_token_ns"][request]]
            assert ((own["client"] < 0) == np.isin(own["phase"], [CODES["waiting"], CODES["preempted"]])).all()
        met.update(PHASES[phase] for phase in found["phase"])
    assert min(met[name] for name in PHASES) > 20, met


def test_requests_are_where_the_plain_simulator_has_them(episodes):
    met = 0
    for simulator, reference in episodes:
        found = phases(simulator)
        for request, client in reference.client.items():
            assert found["client"][found["request"] == request][-1] == client
            met += 1
        assert int(preemptions(simulator).sum()) == reference.preemptions
        assert np.count_nonzero(found["phase"] == CODES["move"]) == reference.migrations
    assert met > 1000


def test_a_client_has_one_request_at_a_time(episodes):
    for simulator, _ in episodes:
        found = phases(simulator)
        for client in range(simulator.problem.num_clients):
            own = np.sort(found[found["client"] == client], order="start_ns")
            assert (own["start_ns"][1:] >= own["end_ns"][:-1]).all()


def test_phases_hold_the_time_that_requests_spend_in_the_system(episodes):
    for simulator, _ in episodes:
        found = phases(simulator)
        assert int((found["end_ns"] - found["start_ns"]).sum()) == int(simulator.totals.request_ns)


def test_of_an_unfinished_episode_phases_end_now():
    case = Case((1, 1, 1), (3, 1, 2), 1, releases_ns=(0, 50, 1000))
    simulator = Simulator(case.problem(), record=True)
    for action in (PREFILL, DECODE):
        simulator.step(action)
    rows = [(*row[:2], PHASES[row[2]], *row[3:]) for row in phases(simulator).tolist()]
    assert rows == [
        (0, 0, "prefill", 0, 110),
        (0, 0, "decode", 110, 161),
        (1, -1, "waiting", 50, 161),
    ]


@pytest.mark.parametrize("stepped", [False, True])
def test_there_is_room_for_more_events_than_iterations(stepped):
    # 6000 requests of one token, 300 at a time: 20 iterations, 12,000 events.
    simulator = Simulator(Case((1,) * 6000, (1,) * 6000, 300).problem(), record=True)
    while stepped and not simulator.done:
        simulator.step(PREFILL)
    simulator.run(PythonRule(lambda view: PREFILL))
    assert (len(simulator.log), len(simulator.events)) == (20, 12_000)
    found = phases(simulator)
    assert np.count_nonzero(found["phase"] == CODES["prefill"]) == 6000
    assert np.count_nonzero(found["phase"] == CODES["waiting"]) == 5700
    kept = pickle.loads(pickle.dumps(simulator))
    assert kept.events.tolist() == simulator.events.tolist()
    assert len(simulator.fork(record=True).events) == 0


def test_nothing_is_kept_where_nothing_is_recorded():
    simulator = Simulator(Case((1,), (2,), 1).problem())
    simulator.step(PREFILL)
    assert len(simulator.events) == 0
