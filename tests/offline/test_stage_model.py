"""The paper's stage model against the dynamic program, and on paper."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from oracles import least_makespan_ns

from llmsched_env.cost import CostModel
from llmsched_env.errors import ConfigError, SolverError
from llmsched_env.offline import lower_bounds, stage_model
from llmsched_env.offline.solver import Outcome
from llmsched_env.workload.requests import Requests

# The package re-exports the function under the module's name.
module = sys.modules["llmsched_env.offline.stage_model"]


def replay(plan, requests, clients, cost, queues=None):
    """Makespan of a plan by its own rules: every request once, clients and caps respected, decodes enough."""
    assert sorted(i for stage in plan.stages for i in stage.prefilled) == list(range(len(requests)))
    left: dict[int, int] = {}
    clock = 0
    for stage in plan.stages:
        tokens = int(requests.prompt_tokens[list(stage.prefilled)].sum())
        assert tokens <= cost.prefill_token_cap or len(stage.prefilled) == 1
        for i in stage.prefilled:
            left[i] = int(requests.decodes[i])
        assert len(left) <= clients
        if queues is not None:
            assert len({queues[i] for i in left}) == len(left)
        clock += cost.prefill_ns(tokens)
        left = {i: need for i, need in left.items() if need}
        for _ in range(stage.decodes):
            clock += cost.decode_ns(len(left))
            left = {i: need - 1 for i, need in left.items() if need > 1}
    assert not left
    return clock


@pytest.mark.parametrize("kind", ["plain", "cap", "queues"])
def test_equals_the_dynamic_program(kind):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        n, clients = int(rng.integers(2, 6)), int(rng.integers(1, 4))
        requests = Requests.of(rng.integers(1, 9, n), rng.integers(1, 7, n))
        cap = int(rng.integers(5, 12)) if kind == "cap" else 1000
        cost = CostModel("small", int(rng.integers(1, 40)), 1, int(rng.integers(1, 40)), 1, prefill_token_cap=cap)
        queues = rng.integers(0, clients, n).tolist() if kind == "queues" else None
        plan = stage_model(requests, clients, cost, queues=queues)
        assert plan.proved
        assert plan.makespan_ns == least_makespan_ns(requests, clients, cost, queues)
        assert replay(plan, requests, clients, cost, queues) == plan.makespan_ns
        assert plan.makespan_ns >= lower_bounds(requests, clients, cost, queues=queues).best_ns
        assert (plan.prefills, plan.decodes) == (len(plan.stages), sum(stage.decodes for stage in plan.stages))


def test_on_paper():
    # Two clients, decodes needed 4 | 1 1 1 (prompts of 1, so constants are 4 * 1 and 7 * 1). Refilling after each
    # short one: K = 3, D = 4. Waiting costs decodes: K = 2 starts two of the shorts with or after the long one's end.
    requests = Requests.of([1] * 4, [5, 2, 2, 2])
    cheap_prefill = CostModel("cheap prefill", 5, 1, 10, 1)
    # K = 3, D = 4: 15 + 40 = 55; K = 2, D = 5: prefill {4, 1}, 4 decodes, prefill {1, 1}, 1 decode: 10 + 50 = 60.
    plan = stage_model(requests, 2, cheap_prefill)
    assert (plan.prefills, plan.decodes, plan.makespan_ns) == (3, 4, 11 + 55)
    dear_prefill = CostModel("dear prefill", 50, 1, 10, 1)
    # 150 + 40 against 100 + 50.
    plan = stage_model(requests, 2, dear_prefill)
    assert (plan.prefills, plan.decodes, plan.makespan_ns) == (2, 5, 11 + 150)
    # All shorts in one queue: three prefills whatever they cost.
    assert stage_model(requests, 2, dear_prefill, queues=[0, 1, 1, 1]).prefills == 3


def test_prompt_above_the_cap_is_alone():
    requests = Requests.of([30, 2, 2], [3, 3, 3])
    plan = stage_model(requests, 3, CostModel("cap", 5, 1, 10, 1, prefill_token_cap=10))
    assert sorted(stage.prefilled for stage in plan.stages) == [(0,), (1, 2)]


def test_what_it_does_not_model():
    requests = Requests.of([1, 1], [2, 2], release_ns=[0, 5])
    with pytest.raises(ConfigError, match="no release times"):
        stage_model(requests, 2, "llama-65b-paper")
    levels = CostModel("levels", 0, 0, 1, 0, prefill_token_cap=8, prefill_levels=((8, 7),))
    with pytest.raises(ConfigError, match="'levels' has prefill levels"):
        stage_model(Requests.of([1], [1]), 1, levels)
    first = CostModel("first", 1, 1, 1, 1, first_decode_ns=8)
    with pytest.raises(ConfigError, match="first_decode_ns = 8: the stage model takes decodes to last the same"):
        stage_model(Requests.of([1], [1]), 1, first)


def test_ends_without_a_schedule(monkeypatch):
    monkeypatch.setattr(
        module, "solve", lambda *args, **kwargs: Outcome(has_values=False, proved=False, infeasible=False)
    )
    with pytest.raises(SolverError, match=r"2 requests, 1 clients. ended without a schedule .node_limit = 1.: raise"):
        stage_model(Requests.of([1, 1], [2, 2]), 1, "llama-65b-paper", node_limit=1)
