"""The exact program for one queue: against brute force in the simulator, other exact models, and on paper."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from oracles import least_makespan_ns

from llmsched_env.cost import CostModel
from llmsched_env.engine import codes
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.offline import QueueOptimum, lower_bounds, stage_model
from llmsched_env.problem import Problem
from llmsched_env.simulator import Simulator
from llmsched_env.workload.requests import Requests


def drawn(seed: int, *, most: int) -> tuple[Requests, int, CostModel]:
    rng = np.random.default_rng([7, seed])
    n, clients = int(rng.integers(2, most + 1)), int(rng.integers(1, 4))
    requests = Requests.of(rng.integers(1, 9, n), rng.integers(1, 7, n))
    cap = int(rng.integers(5, 40))
    alphas = int(rng.integers(0, 60)), int(rng.integers(1, 40))
    return requests, clients, CostModel("small", alphas[0], 3, alphas[1], 2, prefill_token_cap=cap)


def episode(requests: Requests, clients: int, cost: CostModel) -> Simulator:
    lengths = requests.output_tokens
    return Simulator(
        Problem.build(requests, lengths, cost, clients, client_of=None, order="fcfs", stealing=False, bound_ns=1)
    )


def state(simulator: Simulator) -> tuple[int, tuple[int, ...]]:
    emitted = simulator.emitted
    left = simulator.problem.requests[:, codes.OUTPUT] - emitted
    return int((emitted > 0).sum()), tuple(sorted(left[(emitted > 0) & (left > 0)].tolist()))


def test_every_state_against_every_sequence_of_actions():
    choices = 0
    for seed in range(25):
        requests, clients, cost = drawn(seed, most=5)
        optimum = QueueOptimum(requests, clients, cost)

        def least_end(simulator: Simulator, optimum: QueueOptimum = optimum) -> int:
            """Brute force over actions, decode by decode; checks the program's two values at each choice."""
            nonlocal choices
            if simulator.done:
                return int(simulator.view.clock_ns)
            ends = {}
            for action, feasible in ((0, simulator.can_decode), (1, simulator.can_prefill)):
                if feasible:
                    twin = simulator.fork()
                    twin.step(action)
                    ends[action] = least_end(twin)
            if len(ends) == 2:
                choices += 1
                now = state(simulator)
                assert optimum.decode_ns(*now) - optimum.prefill_ns(*now) == ends[0] - ends[1]
            return min(ends.values())

        assert optimum.makespan_ns == least_end(episode(requests, clients, cost))
    assert choices > 100, "hardly a choice: nothing was tested"


def test_the_best_order_is_what_the_models_with_a_free_order_find():
    for seed in range(6):
        requests, clients, cost = drawn(seed, most=4)
        n = len(requests)
        best = min(
            QueueOptimum(
                Requests.of(requests.prompt_tokens[[*order]], requests.output_tokens[[*order]]), clients, cost
            ).makespan_ns
            for order in itertools.permutations(range(n))
        )
        assert best == least_makespan_ns(requests, clients, cost)
        assert best == stage_model(requests, clients, cost).makespan_ns


def test_no_bound_exceeds_it():
    for seed in range(40):
        requests, clients, cost = drawn(seed, most=14)
        assert QueueOptimum(requests, clients, cost).makespan_ns >= lower_bounds(requests, clients, cost).best_ns


def test_on_paper():
    # Two clients, decodes needed 2, 1 | 2; constants 3 * 1 + 5 * 1. After one decode the second client is idle.
    optimum = QueueOptimum(Requests.of([1, 1, 1], [3, 2, 3]), 2, CostModel("paper", 7, 1, 10, 1))
    # A prefill now: K = 2, D = 3. A decode first: the first request ends, K = 2, D = 4. From here on, and in all:
    assert optimum.prefill_ns(2, (1,)) == 7 + 2 * 10
    assert optimum.decode_ns(2, (1,)) == 10 + 7 + 2 * 10
    assert optimum.makespan_ns == 8 + 2 * 7 + 3 * 10


@pytest.mark.parametrize(("alpha_prefill", "difference"), [(9, -1), (10, 0), (11, 1)])
def test_when_to_wait_on_paper(alpha_prefill, difference):
    # Two clients, decodes needed 3, 1 | 1, 1. After one decode the second client is idle, and the first needs two more.
    optimum = QueueOptimum(Requests.of([1] * 4, [4, 2, 2, 2]), 2, CostModel("paper", alpha_prefill, 1, 10, 1))
    # One each time: two more prefills and two more decodes. Both when the first ends: one prefill and three decodes.
    assert optimum.prefill_ns(2, (2,)) == 2 * alpha_prefill + 2 * 10
    assert optimum.decode_ns(2, (2,)) == alpha_prefill + 3 * 10
    assert optimum.prefill_ns(2, (2,)) - optimum.decode_ns(2, (2,)) == difference


@pytest.mark.parametrize(
    ("requests", "cost", "message"),
    [
        (
            Requests.of([1], [2]),
            CostModel("levels", 0, 0, 1, 0, prefill_token_cap=8, prefill_levels=((8, 7),)),
            "'levels' has prefill levels",
        ),
        (
            Requests.of([1], [2]),
            CostModel("first", 1, 1, 1, 1, first_decode_ns=8),
            "'first' has first_decode_ns = 8: QueueOptimum takes decodes to last the same .* Set it to 0",
        ),
        (Requests.of([1, 1], [2, 2], release_ns=[0, 5]), "llama-65b-paper", "no release times"),
        (Requests.of([1] * 33, [2] * 33), "llama-65b-paper", "33 requests are too many for QueueOptimum: give 32"),
    ],
)
def test_what_it_does_not_take(requests, cost, message):
    with pytest.raises(ConfigError, match=message):
        QueueOptimum(requests, 2, cost)


def test_other_bad_input():
    with pytest.raises(ConfigError, match="clients = 0 is out of range"):
        QueueOptimum(Requests.of([1], [2]), 0, "llama-65b-paper")
    with pytest.raises(UnknownNameError, match="cost preset"):
        QueueOptimum(Requests.of([1], [2]), 1, "llama")
