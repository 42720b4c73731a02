"""Episodes that can be checked on paper, and random ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import pytest

from llmsched_env.cost import CostModel
from llmsched_env.problem import Problem
from llmsched_env.simulator import Simulator
from llmsched_env.viewer import frame as _frame  # noqa: F401  # load before a test hides libraries
from llmsched_env.workload import Requests

COST = CostModel("paper", 10, 1, 4, 1, prefill_token_cap=10)


def simulator(requests: Requests, num_clients: int, cost: CostModel = COST, *, record: bool = True) -> Simulator:
    problem = Problem.build(
        requests,
        requests.output_tokens,
        cost,
        num_clients,
        client_of=None,
        order="fcfs",
        stealing=False,
        bound_ns=60,
    )
    return Simulator(problem, record=record)


@pytest.fixture
def by_hand() -> Simulator:
    """Two clients, five iterations, 76 ns, recorded.

    ======== ======= ======================== ======== ========
    from, to         iteration                client 0 client 1
    ======== ======= ======================== ======== ========
    0        20      prefill of 10 tokens     prefill  idle
    20       50      prefill of 20 tokens     stalled  prefill
    50       56      decode of 2 clients      decode   decode
    56       71      prefill of 5 tokens      stalled  prefill
    71       76      decode of 1 client       decode   idle
    ======== ======= ======================== ======== ========
    """
    episode = simulator(Requests.of([10, 20, 5], [3, 2, 1]), 2)
    for action in (1, 1, 0, 1, 0):
        episode.step(action)
    assert episode.done
    assert int(episode.view.clock_ns) == 76
    return episode


@pytest.fixture
def random_episode() -> Callable[..., Simulator]:
    """Make an episode with arrivals, far enough apart that the clock jumps; not stepped yet."""

    def make(num_clients: int, num_requests: int = 60, seed: int = 0) -> Simulator:
        rng = np.random.default_rng(seed)
        requests = Requests.of(
            rng.integers(1, 12, num_requests),
            rng.integers(1, 20, num_requests),
            release_ns=np.sort(rng.integers(0, 100 * num_requests, num_requests)),
        )
        return simulator(requests, num_clients)

    return make


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make imports of a library fail."""
    real = importlib.import_module

    def hide_library(library: str) -> None:
        def import_module(name: str, package: str | None = None) -> object:
            if name.split(".", maxsplit=1)[0] == library:
                raise ModuleNotFoundError(f"No module named {library!r}")
            return real(name, package)

        monkeypatch.setattr(importlib, "import_module", import_module)

    return hide_library
