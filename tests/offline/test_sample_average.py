"""The sample average MIP: against all assignments, against P||Cmax, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from oracles import least_cmax

from llmsched_env.errors import ConfigError, SolverError
from llmsched_env.offline import sample_average, tail_mean
from llmsched_env.offline.solver import Outcome


def largest(client_of, scenarios, clients):
    return np.stack([scenarios[:, np.array(client_of) == j].sum(axis=1) for j in range(clients)]).max(axis=0)


def test_the_mean_of_a_tail_on_paper():
    values = [4, 1, 9, 10, 7, 2, 3, 5, 6, 8]
    assert tail_mean(values) == 5.5
    assert tail_mean(values, 0.1) == 10
    assert tail_mean(values, 0.25) == pytest.approx((10 + 9 + 0.5 * 8) / 2.5)
    assert tail_mean(values, 0.01) == 10
    assert tail_mean(range(30), 0.1) == 28
    assert tail_mean([3]) == 3


@pytest.mark.parametrize(("clients", "tail"), [(2, 1.0), (2, 0.5), (3, 1.0), (3, 0.3)])
@pytest.mark.parametrize("seed", range(3))
def test_against_all_assignments(seed, clients, tail):
    scenarios = np.random.default_rng(seed).integers(0, 40, (5, 6))
    best = min(
        tail_mean(largest(client_of, scenarios, clients), tail)
        for client_of in itertools.product(range(clients), repeat=6)
    )
    found = sample_average(scenarios, clients, tail=tail, gap_decodes=1e-3)
    assert found.proved
    assert found.objective_decodes == pytest.approx(best, abs=2e-3)
    assert found.objective_decodes == tail_mean(largest(found.client_of, scenarios, clients), tail)
    assert found.client_of.dtype == np.int32
    assert not found.client_of.flags.writeable


def test_a_single_scenario_is_the_deterministic_problem():
    loads = [13, 11, 9, 8, 8, 6, 3]
    found = sample_average(np.array([loads]), 3)
    assert found.objective_decodes == least_cmax(loads, 3)


def test_more_clients_than_requests():
    found = sample_average(np.array([[5, 3], [2, 9]]), 4)
    assert found.objective_decodes == 7
    assert len(set(found.client_of.tolist())) == 2


def test_the_worst_case_and_the_mean_may_differ():
    # Requests 0 and 1 are never long together, but in one scenario of three; 2 and 3 always need 6.
    scenarios = np.array([[12, 0, 6, 6], [0, 12, 6, 6], [9, 9, 6, 6]])
    mean, worst = sample_average(scenarios, 2), sample_average(scenarios, 2, tail=1 / 3)
    # Together: 12, 12, 18. Apart, each with a 6: 18, 18, 15.
    assert mean.objective_decodes == 14
    assert worst.objective_decodes == 18
    assert mean.client_of[0] == mean.client_of[1]


@pytest.mark.parametrize(
    ("scenarios", "arguments", "words"),
    [
        ([[1.5, 2]], {}, "dtype float64"),
        ([1, 2], {}, r"shape \(2,\)"),
        ([[1, -2]], {}, "a load of -2"),
        ([[1, 2]], {"tail": 0.0}, "tail = 0.0 is out of range"),
        ([[1, 2]], {"tail": 1.5}, "tail = 1.5 is out of range"),
        ([[1, 2]], {"clients": 0}, "clients = 0 is out of range"),
    ],
)
def test_bad_input(scenarios, arguments, words):
    with pytest.raises(ConfigError, match=words):
        sample_average(scenarios, **{"clients": 2, **arguments})


def test_no_values():
    with pytest.raises(ConfigError, match="values is empty"):
        tail_mean([])


def test_a_solver_that_ends_with_nothing(monkeypatch):
    nothing = Outcome(has_values=False, proved=False, infeasible=False)
    monkeypatch.setitem(sample_average.__globals__, "solve", lambda *arguments, **named: nothing)
    with pytest.raises(SolverError, match=r"1 scenarios, 2 requests and 2 clients .* \(node_limit = 7\)"):
        sample_average([[1, 2]], 2, node_limit=7)
