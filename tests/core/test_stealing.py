"""The tournament of the thieves against a plain scan, with more clients than one block of it holds."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmsched_env.core.layout import DUE, QUEUE_WORK
from llmsched_env.core.stealing import victim
from llmsched_env.simulator import Simulator
from tests.strategies import REPEATABLE, Case

BLOCK = 8


def _scanned_victim(simulator: Simulator) -> int:
    clients = simulator.memory.clients.astype(np.int64)
    left = np.maximum(0, clients[:, DUE] - simulator.view.decodes)
    return int(np.argmax(np.where(clients[:, QUEUE_WORK] > 0, clients[:, QUEUE_WORK] + left, -1)))


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
        simulator = Simulator(_robbers(rng, num_clients, estimates, arrivals).instance())
        while not simulator.done:
            if simulator.view.waiting and rng.random() < 0.5:
                found = int(victim(simulator.view, simulator.memory.setup[0]))
                assert found == _scanned_victim(simulator)
                robbed[found // BLOCK] += 1
            simulator.step(int(rng.random() < eagerness))

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
