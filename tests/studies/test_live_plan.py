"""A joint plan while it is carried out, and plans of predicted lengths."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmsched_env.baselines import entry
from llmsched_env.cases import ROUGH, build_problem, estimates
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel, cost_model
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import play
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint import Effort, joint_plan, played
from llmsched_env.simulator import Simulator
from llmsched_env.studies.live_plan import LivePlan
from llmsched_env.studies.planning import carried_out
from llmsched_env.workload import Requests

COST = CostModel(
    "c", alpha_prefill_ns=90, beta_prefill_ns=2, alpha_decode_ns=40, beta_decode_ns=3, prefill_token_cap=20
)
SMALL = Scenario(num_requests=60, num_clients=8, queue="shared", split="test")
QUICK = Effort(tries=2, anneal_moves=200, repair_moves=400)


def planned(scenario):
    """The case as it is believed to be, and its plan."""
    requests = scenario.source.requests(scenario.split, 0, num_requests=scenario.num_requests)
    shown = replace(requests, output_tokens=estimates(scenario, 0, requests))
    case = Case.of(shown, scenario.num_clients, scenario.cost_model)
    return case, joint_plan(shown, scenario.num_clients, scenario.cost_model, effort=QUICK)


def ended(scenario, live):
    """The first case, carried out by a live plan."""
    return carried_out(Simulator(build_problem(scenario, 0)), live)


@pytest.mark.parametrize("moves", [0, 2_000])
@pytest.mark.parametrize("queued", ["fcfs", "longest_first"])
def test_where_lengths_are_known_it_is_the_plan(moves, queued):
    """However the requests were queued before: each prefill says who is read."""
    case, plan = planned(SMALL)
    ran = ended(SMALL.replace(order=queued), LivePlan(case, plan, moves=moves))
    assert ran.done
    if moves == 0:
        assert ran.view.clock_ns == plan.makespan_ns
        assert (ran.view.prefills, ran.view.decodes) == (plan.prefills, plan.decodes)
    else:
        assert ran.view.clock_ns <= plan.makespan_ns


def test_on_paper():
    """Two clients; decodes of 4, 2 and 2. Read 4 and 2 at once, the other after two decodes: six tokens in four.

    The one that was to need two decodes more needs three by now: both clients are held when the plan's prefill is due,
    so it is put off until one is free.
    """
    case = Case.of(Requests.of([5, 5, 5], [5, 3, 3]), 2, COST)
    plan = played(case, [0, 1, 2], [0, 2])
    live = LivePlan(case, plan)
    assert live.due == 0
    assert live.prefill(0, [0, 1, 2], []).tolist() == [0, 1, 2]
    assert live.due == 2
    assert live.prefill(2, [2], [2, 1]).tolist() == [2]
    assert live.due is None
    with pytest.raises(ConfigError, match="a prefill of nobody"):
        live.prefill(4, [], [])


def test_the_same_seed_makes_the_same_plan():
    where = SMALL.replace(lengths="predicted", predictor="noisy:0.9")
    case, plan = planned(where)
    ends = {
        seed: [
            carried_out(Simulator(build_problem(where, 0)), LivePlan(case, plan, seed=seed)).view.clock_ns for _ in "ab"
        ]
        for seed in (0, 5, -1)
    }
    assert all(one == again for one, again in ends.values())
    with pytest.raises(ConfigError, match="seed"):
        LivePlan(case, plan, seed=0.5)


def test_a_plan_of_predicted_lengths_is_that_of_the_predictions(monkeypatch, tmp_path):
    """In the scenario whose order it is: the plan of the lengths that are shown, played with the true ones."""
    monkeypatch.setattr("llmsched_env.offline.joint.store.cache_dir", lambda: tmp_path)
    where = SMALL.replace(lengths="predicted", predictor="noisy:0.9", order="joint")
    requests = where.source.requests("test", 0, num_requests=60)
    shown = replace(requests, output_tokens=estimates(where, 0, requests))
    plan = joint_plan(shown, 8, where.cost_model, effort=ROUGH)
    problem = build_problem(where, 0)
    assert problem.planned == tuple(plan.instants.tolist())
    item = entry("joint", SMALL.replace(lengths="predicted", predictor="noisy:0.9"))
    ran = play(item.policy, item.scenario, 0)
    assert ran.done
    case = Case.of(shown, 8, cost_model("llama-65b-paper"))
    assert (
        ran.view.clock_ns
        == carried_out(Simulator(build_problem(SMALL, 0)), LivePlan(case, plan, moves=0)).view.clock_ns
    )


def test_a_plan_is_counted_in_iterations_so_noise_does_not_move_it():
    quiet, noisy = (play(*_joint(SMALL.replace(**more)), 0) for more in ({}, {"noise_sd": 0.2}))
    assert (quiet.view.prefills, quiet.view.decodes) == (noisy.view.prefills, noisy.view.decodes)
    assert quiet.view.clock_ns != noisy.view.clock_ns


def _joint(scenario):
    item = entry("joint", scenario)
    return item.policy, item.scenario
