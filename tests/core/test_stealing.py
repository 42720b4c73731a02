"""Whom thieves rob, against a plain scan, with more clients than one block of the tournament holds."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import PREFILL, REPEATABLE, Case

from llmsched_env.engine import codes
from llmsched_env.simulator import Simulator

BLOCK = 8


def _takes(simulator: Simulator, case: Case) -> list[tuple[int, int, int]]:
    """(client, whose queue, request) of each start in a prefill now, by a scan of all clients for each."""
    episode, order = simulator.episode, simulator.problem.request_of
    clients = np.array(episode.clients)
    work = clients[:, codes.WORK].copy()
    left = np.maximum(0, clients[:, codes.DUE] - simulator.view.decodes)
    begun = simulator.served["first_token_ns"] > 0
    waiting: dict[int, list[int]] = {client: [] for client in range(case.num_clients)}
    for request in order.tolist():
        if not begun[request] and case.releases_ns[request] <= simulator.view.clock_ns:
            waiting[case.queues[request]].append(request)
    takes = []
    for client in np.flatnonzero(clients[:, codes.RUNNING] < 0).tolist():
        source = client if waiting[client] else int(np.argmax(np.where(work > 0, work + left, -1)))
        if waiting[source]:
            request = waiting[source].pop(0)
            work[source] -= case.estimates[request]
            left[client] = case.estimates[request] - 1
            takes.append((client, source, request))
    return takes


def test_the_victim_is_the_one_that_a_scan_finds() -> None:
    robbed = Counter[int]()

    @REPEATABLE
    @given(
        seed=st.integers(0, 2**32 - 1),
        num_clients=st.sampled_from([1, 7, 8, 9, 17, 40, 130]),
        estimates=st.sampled_from(["known", "noisy", "hidden"]),
        arrivals=st.booleans(),
        eagerness=st.sampled_from([0.1, 0.5, 0.9]),
    )
    def law(seed: int, num_clients: int, estimates: str, arrivals: bool, eagerness: float) -> None:
        rng = np.random.default_rng(seed)
        case = _robbers(rng, num_clients, estimates, arrivals)
        simulator = Simulator(case.problem(), record=True)
        while not simulator.done:
            action = int(rng.random() < eagerness)
            if action == PREFILL and simulator.can_prefill:
                start_ns, takes = simulator.view.clock_ns, _takes(simulator, case)
                simulator.step(action)
                served = simulator.served
                taken = np.flatnonzero((served["prefill_start_ns"] == start_ns) & (served["first_token_ns"] > 0))
                assert {request: client for client, _, request in takes} == {
                    request: served["client"][request] for request in taken.tolist()
                }
                robbed.update(source // BLOCK for client, source, _ in takes if source != client)
            else:
                simulator.step(action)

    law()
    assert sum(count for block, count in robbed.items() if block > 0) > 100


def _robbers(rng: np.random.Generator, num_clients: int, estimates: str, arrivals: bool) -> Case:
    n = 4 * num_clients
    outputs = rng.integers(1, 30, n)
    guesses = {"known": outputs, "noisy": rng.integers(1, 30, n), "hidden": np.full(n, 9)}[estimates]
    return Case(
        (5,) * n,
        tuple(outputs.tolist()),
        num_clients,
        estimates=tuple(guesses.tolist()),
        releases_ns=tuple(np.cumsum(rng.integers(0, 300, n) * arrivals).tolist()),
        # Half the clients begin without a queue of their own.
        queues=tuple(rng.integers(0, (num_clients + 1) // 2, n).tolist()),
        order="longest_first",
        stealing=True,
    )
