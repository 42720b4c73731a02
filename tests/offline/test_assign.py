"""The assignment step: laws, optimum on tiny instances, the certificate, determinism, bad input."""

from __future__ import annotations

import highspy
import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import least_cmax

from llmsched_env.errors import ConfigError, SolverError, UnknownNameError
from llmsched_env.offline import STAGES, Budget, assign, assignment, cmax_bound, lpt, naive_model, solver
from llmsched_env.offline import polish as polishing
from llmsched_env.offline.assignment import METHODS
from llmsched_env.offline.partition import partition_mip
from llmsched_env.offline.polish import MOST_REQUESTS, polish
from llmsched_env.workload.requests import Requests

SMALL = Budget(resplit_moves=300, resplit_starts=2, polish_mips=2, polish_nodes=20, exact_binaries=0)


def with_decodes(decodes: list[int] | np.ndarray) -> Requests:
    return Requests.of(np.ones(len(decodes), np.int64), np.asarray(decodes) + 1)


def smooth(n: int, seed: int) -> Requests:
    rng = np.random.default_rng(seed)
    return with_decodes(np.maximum(1, rng.gamma(3.2, 107, n).round().astype(np.int64)))


def held_by(client_of: np.ndarray, loads: np.ndarray, clients: int) -> np.ndarray:
    return np.array([int(loads[client_of == j].sum()) for j in range(clients)])


problems = st.tuples(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 8))
tiny = st.tuples(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(1, 4))


@settings(deadline=None, max_examples=60)
@given(problems, st.sampled_from(METHODS), st.integers(0, 3))
def test_every_request_has_one_client_and_the_certificate_can_be_recomputed(problem, method, seed):
    decodes, clients = problem
    requests = with_decodes(decodes)
    found = assign(requests, clients, method, seed=seed, budget=SMALL)
    assert found.client_of.shape == (len(decodes),)
    assert found.client_of.dtype == np.int32
    assert not found.client_of.flags.writeable
    held = held_by(found.client_of, np.array(decodes), clients)
    assert held.sum() == sum(decodes)
    assert found.makespan_decodes == held.max()
    average = -(-sum(decodes) // clients)
    assert max(average, *decodes) <= found.bound_decodes <= found.makespan_decodes
    assert found.proved == (found.gap == 0.0) == (found.stage != "open")
    assert found.stage in STAGES
    assert sorted(np.concatenate(found.queues()).tolist()) == list(range(len(decodes)))
    assert len(found.queues()) == clients
    assert found == assign(requests, clients, method, seed=seed, budget=SMALL)


@settings(deadline=None, max_examples=200)
@given(tiny)
def test_bound_is_never_above_the_optimum(problem):
    decodes, clients = problem
    assert cmax_bound(np.array(decodes, np.int64), clients) <= least_cmax(decodes, clients)


def test_waste_bound_is_never_above_the_optimum_where_it_binds():
    rng = np.random.default_rng(5)
    lifted = 0
    for _ in range(300):
        longest = int(rng.integers(8, 14))
        decodes = [longest] * int(rng.integers(2, 6)) + rng.integers(2, longest, int(rng.integers(1, 5))).tolist()
        clients = int(rng.integers(2, 5))
        bound = cmax_bound(np.array(decodes, np.int64), clients)
        assert bound <= least_cmax(decodes, clients)
        lifted += bound > max(-(-sum(decodes) // clients), longest)
    assert lifted > 50, "the average and the largest load were the whole bound: nothing was tested"


@settings(deadline=None, max_examples=25)
@given(tiny)
def test_mip_reaches_the_optimum_and_proves_it_on_few_requests(problem):
    decodes, clients = problem
    found = assign(with_decodes(decodes), clients)
    assert found.makespan_decodes == least_cmax(decodes, clients)
    assert found.proved


@settings(deadline=None, max_examples=15)
@given(st.tuples(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 3)))
def test_naive_model_is_exact(problem):
    decodes, clients = problem
    found = naive_model(with_decodes(decodes), clients)
    assert found.makespan_decodes == found.bound_decodes == least_cmax(decodes, clients)
    assert found.method == "naive"


def test_bounds_on_paper():
    def bound(loads: list[int], clients: int) -> int:
        return cmax_bound(np.array(loads, np.int64), clients)

    assert bound([4, 4, 4, 4], 4) == 4
    assert bound([10, 1, 1], 3) == 10  # the largest load; the average is 4
    assert bound([5, 5, 5, 4], 3) == 9  # four loads on three clients: two share, 5 + 4 are the least
    assert bound([3, 3, 3], 2) == 6  # average 4.5, and sums of threes: 3, 6, 9
    # Two clients, sum 44, average 22, sums from there 24 = 10 + 7 + 7. One client holds two tens and wastes its room
    # of 4, and 2 * 24 - 44 = 4 may be wasted: 24, which 10 7 7 | 10 10 meets.
    assert bound([10, 10, 10, 7, 7], 2) == 24
    # Three clients, sum 71, average 24. Within 24 two clients hold two tens and waste 4 each, but 3 * 24 - 71 = 1 may
    # be wasted. The next sum is 27 = 10 + 10 + 7, which 10 10 7 | 10 10 7 | 10 7 meets.
    assert bound([10, 10, 10, 10, 10, 7, 7, 7], 3) == 27


def test_lpt_on_paper():
    # Graham's worst case for two clients: LPT puts 3 3 | 2 2, then the last 2 on top of either: 7, where 6 is optimal.
    loads = np.array([3, 3, 2, 2, 2], np.int64)
    assert lpt(loads, 2).tolist() == [0, 1, 0, 1, 0]
    assert held_by(lpt(loads, 2), loads, 2).tolist() == [7, 5]
    found = assign(with_decodes(loads), 2)
    assert (found.makespan_decodes, found.bound_decodes, found.stage) == (6, 6, "resplit")
    assert assign(with_decodes(loads), 2, "lpt").stage == "open"
    assert assign(with_decodes(loads), 2, "lpt").gap == pytest.approx(7 / 6 - 1)
    assert assign(with_decodes(loads), 2, "round_robin").client_of.tolist() == [0, 1, 0, 1, 0]


def test_paper_size_is_proved():
    smooth_case = assign(smooth(1319, 1), 200)
    assert (smooth_case.proved, smooth_case.stage) == (True, "resplit")
    rng = np.random.default_rng(2)
    capped = with_decodes(np.where(rng.random(1319) < 0.56, 511, rng.lognormal(4.7, 0.45, 1319).astype(np.int64)))
    assert assign(capped, 200).gap <= 0.001


def test_few_clients_with_many_requests_each():
    assert assign(smooth(1319, 4), 10).proved
    assert assign(smooth(40, 4), 1).makespan_decodes == int(smooth(40, 4).decodes.sum())


@pytest.mark.parametrize("name", solver.SOLVERS)
def test_polish_closes_what_lpt_leaves_open(name):
    # LPT has 7 | 5 (above). The first model holds all requests, so that whatever solves it finds 6 | 6.
    found = assign(with_decodes([3, 3, 2, 2, 2]), 2, solver=name, budget=Budget(resplit_moves=0, polish_mips=60))
    assert (found.stage, found.proved, found.makespan_decodes) == ("polish", True, 6)
    # On many clients solvers differ in which of the best splits they take, and so in what is left at the end.
    larger = smooth(60, 2)
    found = assign(larger, 8, solver=name, budget=Budget(resplit_moves=0, polish_mips=60))
    assert found.bound_decodes <= found.makespan_decodes < assign(larger, 8, "lpt").makespan_decodes


def test_polish_keeps_what_does_not_fit_a_model_where_it_is():
    loads = smooth(5 * MOST_REQUESTS, 6).decodes.astype(np.int64)
    start = (np.arange(len(loads)) % 3).astype(np.int32)
    after = polish(start, loads, 3, cmax_bound(loads, 3), mips=6, node_limit=50)
    assert held_by(after, loads, 3).max() < held_by(start, loads, 3).max()
    assert held_by(after, loads, 3).sum() == loads.sum()
    longest = np.argsort(-loads, kind="stable")[:20]
    assert (after[longest] == start[longest]).all()


def test_polish_knows_who_is_where(monkeypatch):
    # The requests of each client are kept from model to model, as they would be found by looking through all.
    loads = smooth(90, 3).decodes.astype(np.int64)
    kept = 0
    rebalance = polishing._rebalance

    def checked(client_of, loads, held, chosen, members, **options):
        nonlocal kept
        assert (members == np.flatnonzero(np.isin(client_of, chosen))).all()
        assert (held == held_by(client_of, loads, 9)).all()
        changed = rebalance(client_of, loads, held, chosen, members, **options)
        kept += changed
        return changed

    monkeypatch.setattr(polishing, "_rebalance", checked)
    # All on one client: each of the others takes half of what the fullest holds, whichever half a solver prefers.
    polish(np.zeros(len(loads), np.int32), loads, 9, cmax_bound(loads, 9), mips=30, node_limit=50)
    assert kept > 3, "hardly any model changed anything: nothing was tested"


def test_exact_stage_lifts_the_bound():
    # Three clients, sum 27: within 9 nothing could be wasted, but no load fills up the 8. 9 | 8 2 | 5 3 has 10.
    requests = with_decodes([9, 8, 5, 3, 2])
    assert cmax_bound(requests.decodes.astype(np.int64), 3) == 9
    found = assign(requests, 3)
    assert (found.makespan_decodes, found.bound_decodes, found.stage) == (10, 10, "exact")
    left_open = assign(requests, 3, budget=SMALL)
    assert (left_open.makespan_decodes, left_open.bound_decodes, left_open.stage) == (10, 9, "open")


def test_loads_may_be_estimates():
    requests = with_decodes([9, 9, 1, 1])
    found = assign(requests, 2, loads=[1, 1, 9, 9])
    assert found.makespan_decodes == 10
    assert found.client_of[2] != found.client_of[3]


def test_progress_shows_on_stderr(capsys):
    assign(smooth(60, 2), 8, progress=True)
    captured = capsys.readouterr()
    assert "assign 60 to 8" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("clients", "words"),
    [(0, "clients = 0 is out of range"), (-3, "at least 1"), (2.5, "not a whole number"), (True, "out of range")],
)
def test_bad_clients(clients, words):
    with pytest.raises(ConfigError, match=words):
        assign(with_decodes([1, 2]), clients)


def test_seeds():
    requests = smooth(60, 2)
    assert assign(requests, 8, seed=-1).proved
    assert assign(requests, 8, seed=2**70).proved
    assert not np.array_equal(assign(requests, 8, seed=1).client_of, assign(requests, 8, seed=2).client_of)
    with pytest.raises(ConfigError, match=r"seed = 0\.5 is not a whole number"):
        assign(requests, 8, seed=0.5)


def test_bad_method_and_solver():
    with pytest.raises(ConfigError, match="a joint plan also says when to prefill"):
        assign(with_decodes([1, 2]), 2, "joint")
    with pytest.raises(UnknownNameError, match="Did you mean 'lpt'"):
        assign(with_decodes([1, 2]), 2, "ltp")
    with pytest.raises(UnknownNameError, match=r"unknown solver 'hihgs'.*Did you mean 'highs'"):
        naive_model(with_decodes([1, 2]), 2, solver="hihgs")


@pytest.mark.parametrize(
    ("loads", "words"),
    [
        ([1], "one load for each of the 2 requests"),
        ([1.5, 2.0], "round them first"),
        ([1, -1], r"loads\[1\] = -1 is out of range"),
    ],
)
def test_bad_loads(loads, words):
    with pytest.raises(ConfigError, match=words):
        assign(with_decodes([1, 2]), 2, loads=loads)


def test_cbc_takes_over_where_highs_is_missing(monkeypatch):
    monkeypatch.setattr(solver, "_highs_available", lambda: False)
    assert solver.default_solver() == "cbc"
    assert naive_model(with_decodes([3, 3, 2, 2, 2]), 2).makespan_decodes == 6
    monkeypatch.setattr(solver, "_cbc_path", lambda: None)
    with pytest.raises(SolverError, match="no MIP solver found: install highspy"):
        solver.default_solver()
    with pytest.raises(SolverError, match="'highs' was asked for, but highspy is not installed"):
        naive_model(with_decodes([3, 3, 2]), 2, solver="highs")


def test_callers_own_highs_is_not_disturbed():
    # HiGHS refuses a second thread count in a process: each side must find the scheduler as if it were alone.
    def on_two_threads() -> highspy.HighsModelStatus:
        highs = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", 2), ("parallel", "on")):
            highs.setOptionValue(option, value)
        highs.addVariable(0, 1, 1.0)
        highs.minimize()
        return highs.getModelStatus()

    assert on_two_threads() == highspy.HighsModelStatus.kOptimal
    assert naive_model(with_decodes([3, 3, 2, 2, 2]), 2).proved
    assert on_two_threads() == highspy.HighsModelStatus.kOptimal


@pytest.mark.parametrize("name", solver.SOLVERS)
def test_node_limit_is_not_mistaken_for_a_proof(name):
    """Whatever a solver comes to in one node: what is called proved is the optimum."""
    rng = np.random.default_rng(1)
    for loads in (rng.integers(5, 90, 9) for _ in range(12)):
        found = partition_mip(loads, 3, 0, solver=name, node_limit=1)
        if found is not None:
            client_of, proved = found
            assert not proved or held_by(client_of, loads, 3).max() == least_cmax(loads.tolist(), 3)


def test_an_incumbent_is_no_proof(monkeypatch):
    """HiGHS at its node limit: PuLP does not know the status, and raises after it has stored the values."""

    def stopped(program):
        raise KeyError("kSolutionLimit")

    problem = pulp.LpProblem("stopped", pulp.LpMinimize)
    monkeypatch.setattr(problem, "solve", stopped)
    assert solver.solve(problem) == solver.Outcome(has_values=True, proved=False, infeasible=False)
    # CBC: 'Optimal' by its status for any incumbent, told apart by the status of the solution.
    for sol_status, proved in ((pulp.LpSolutionOptimal, True), (pulp.LpSolutionIntegerFeasible, False)):
        monkeypatch.setattr(problem, "solve", lambda program: pulp.LpStatusOptimal)
        problem.sol_status = sol_status
        assert solver.solve(problem) == solver.Outcome(has_values=True, proved=proved, infeasible=False)


def test_naive_model_without_a_solution(monkeypatch):
    monkeypatch.setattr(assignment, "partition_mip", lambda *args, **kwargs: None)
    with pytest.raises(SolverError, match=r"ended without a solution .node_limit = 1.: raise node_limit"):
        naive_model(with_decodes([1, 2]), 2, node_limit=1)
