"""Rollout where lengths and waits are actions: it is never worse than the rule that finishes its trials."""

from __future__ import annotations

import numpy as np
import pytest

from llmsched_env import make_scenario
from llmsched_env.agents import load_agent
from llmsched_env.baselines import entry
from llmsched_env.baselines.planners import FOLLOW, Rollout
from llmsched_env.baselines.registry import default_names
from llmsched_env.baselines.rule import Rule
from llmsched_env.cases import build_problem
from llmsched_env.engine.patience import Patience
from llmsched_env.engine.view import View
from llmsched_env.evaluation import evaluate
from llmsched_env.evaluation.rollout import start
from llmsched_env.simulator import Simulator

SMALL = make_scenario("LLMSched/GSM8KOrder-v0", num_requests=150, num_clients=20, split="validation")
SMOOTH = SMALL.replace(workload="gsm8k-smooth")


@pytest.mark.parametrize("scenario", [SMALL, SMOOTH])
def test_it_is_never_worse_than_its_base(scenario):
    """To follow the base is among what is tried, so each choice ends as well as the one before at least."""
    base = Rule("patience", Patience, (100.0, 8.0))
    found = evaluate(Rollout(base), scenario, 5).columns["makespan_s"]
    alone = evaluate(base, scenario, 5).columns["makespan_s"]
    assert (found <= alone).all()
    assert (found < alone).sum() >= 4


@pytest.mark.parametrize("workload", ["gsm8k", "gsm8k-smooth"])
def test_it_begins_from_the_better_of_network_and_rule(workload):
    where = make_scenario("LLMSched/GSM8KOrder-v0", workload=workload, split="validation")
    found = evaluate(Rollout(), where, 3).columns["makespan_s"]
    # A wait on GSM8K: 2,048 tokens are 30.55 prompts of 67.03, and a client is worth 8 of its shares of 23.24 ms.
    patience = Rule("patience", Patience, (8 * 23.24 / 17.87 * 200 / 30.5547, 30.5547))
    for base in (patience, load_agent("gsm8k_order")):
        assert (found <= evaluate(base, where, 3).columns["makespan_s"]).all()


def test_a_wait_pays_on_paper():
    """Ten idle, five more in four decodes: waiting costs 10 * 4 + 5 * 4 / 2 = 50 decodes of a client."""
    view = View(num_clients=200, waiting=100, idle=10, due_4=5)
    assert Patience(10.1, 100.0).decide(view) == 0
    assert Patience(9.9, 100.0).decide(view) == 1
    assert Patience(10.1, 10.0).decide(view) == 1, "a full batch waits for nobody"
    assert Patience(10.1, 100.0).decide(View(num_clients=200, waiting=10, idle=10, due_4=5)) == 1, "nobody is left"


def after(simulator, action):
    """What runs where, after an action in a copy."""
    trial = simulator.fork()
    trial.step(action)
    return trial.emitted.tobytes(), np.asarray(trial.episode.clients).tobytes()


def test_actions_that_differ_are_tried_once():
    policy = entry("rollout", SMALL).policy
    simulator = Simulator(build_problem(SMALL, 0))
    policy.reset(start(policy, SMALL, simulator, 0))
    assert policy._tried(simulator.view) == [FOLLOW, *range(1, 18)], "all are idle: no wait, and 16 windows"
    fewer = 0
    while not simulator.done:
        if simulator.has_choice:
            tried = policy._tried(simulator.view)
            windows = [action for action in tried if 1 <= action <= 17]
            outcomes = [after(simulator, action) for action in windows]
            assert len({*outcomes}) == len(windows), "two of them begin alike"
            assert {*outcomes} == {after(simulator, action) for action in range(1, 18)}, "one is missing"
            assert all(simulator.problem.data.idle_until[one] > simulator.view.idle for one in tried if one > 17)
            fewer += len(windows) < 17
        simulator.step(1 if simulator.view.idle > 1 else simulator.forced_action)
    assert fewer > 5


def test_rules_play_where_only_they_prefill():
    """They are rows on the same queue without lengths as actions; rollout alone uses them."""
    for name in default_names(SMALL):
        item = entry(name, SMALL)
        assert item.scenario.choose_length == (name in ("rollout", "agent")), name
    one = evaluate(entry("lagrangian", SMALL).policy, SMALL, 2).columns["makespan_s"]
    other = evaluate(entry("lagrangian", SMALL).policy, SMALL.replace(choose_length=False), 2).columns["makespan_s"]
    assert np.array_equal(one, other), "action 1 is the same prefill"
