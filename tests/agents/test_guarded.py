"""The shipped agents with a guard: what decides is what did best on training cases, a network or a tuned rule."""

from __future__ import annotations

import pytest
from networks import SCENARIOS, random_network

import llmsched_env.agents.files
from llmsched_env.agents.agent import Agent, Origin, Trained
from llmsched_env.agents.files import AgentFile
from llmsched_env.agents.network import Network, dense
from llmsched_env.baselines import entry, tuned
from llmsched_env.baselines.guarded import Guarded
from llmsched_env.baselines.tuned import best_tuned
from llmsched_env.config import Scenario
from llmsched_env.evaluation import evaluate, play
from llmsched_env.evaluation.rollout import begin

SMALL = Scenario(num_requests=60, num_clients=8, assignment="lpt")
NEVER = Network(("ready",), (dense([[0.0]], [-1.0]),), head="prefill")
"""Decodes wherever it can."""


def _late(scenario):
    """Numbers of a rule that are all bad."""
    return [(400.0,)]


def often(bias):
    """A prefill from so large a share of ready clients on."""
    return Network(("ready",), (dense([[1.0]], [-bias]),), head="prefill")


@pytest.fixture
def box(tmp_path, monkeypatch):
    """Makes the networks that are shipped."""

    def ship(scenario, *networks):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        monkeypatch.setattr(llmsched_env.agents.files, "WEIGHTS", folder)
        trained = tuple(Trained(network, Origin.of(scenario)) for network in networks)
        AgentFile(trained, "x").write(folder / "box.npz")
        return Guarded()

    return ship


def history(policy, scenario, case=0):
    return play(policy, scenario, case, record=True).log.tolist()


def test_the_network_decides_that_did_best_on_training_cases(box, monkeypatch):
    monkeypatch.setattr(tuned, "TUNABLE", {"max_wait_tuned": tuned.TUNABLE["max_wait_tuned"]._replace(grid=_late)})
    monkeypatch.setattr(tuned, "QUICK_CASES", 6)
    networks = [NEVER, often(0.13), often(0.5)]
    guarded = box(SMALL, *networks)
    train, cases = SMALL.replace(split="train"), tuned.QUICK_CASES
    alone = [Agent("x", [Trained(network, Origin.of(SMALL))]) for network in networks]
    losses = [evaluate(one, train, cases).estimate("makespan_s").mean for one in alone]
    assert losses[1] < min(losses[0], losses[2])
    assert guarded.origin_for(SMALL) == Origin.of(SMALL)
    assert guarded.describe(SMALL) == "network trained on gsm8k, lpt queues, alpha_p / alpha_d 1.30"
    assert history(guarded, SMALL) == history(alone[1], SMALL)


def test_one_that_may_be_better_by_chance_does_not(box, monkeypatch):
    """The same world, but two training cases are too few to tell."""
    monkeypatch.setattr(tuned, "TUNABLE", {"max_wait_tuned": tuned.TUNABLE["max_wait_tuned"]._replace(grid=_late)})
    monkeypatch.setattr(tuned, "QUICK_CASES", 2)
    where = SMALL.replace(num_requests=59)
    assert box(where, often(0.13)).describe(where).startswith("max_wait_tuned: no network was surely better")


@pytest.mark.parametrize("lengths", ["known", "hidden"])
def test_without_a_good_network_it_is_the_tuned_rule(box, lengths):
    order = {"queue": "shared", "order": "fcfs"} if lengths == "hidden" else {}
    where = SMALL.replace(lengths=lengths, **order)
    guarded = box(SMALL, NEVER)
    assert guarded.fits(where) == (lengths == "known")
    assert guarded.origin_for(where) is None
    assert best_tuned(where) in guarded.describe(where)
    assert history(guarded, where) == history(entry(best_tuned(where), where).policy, where)


@pytest.mark.parametrize("load", [0.9, 0.2])  # where few come, nobody is active now and then
def test_where_orders_are_actions_it_is_the_rule_by_its_order(box, monkeypatch, load):
    where = SCENARIOS["orders"].replace(load=load)
    if load < 0.5:
        monkeypatch.setattr("llmsched_env.baselines.guarded.best_rule", lambda _: ("max_wait_tuned", by_length))
        by_length = where.replace(order="late_last_shortest", choose_order=False)
        item = entry("max_wait_tuned@late_last_shortest", where)
    else:
        item = entry(best_tuned(where), where)
    guarded = box(where, random_network(0, actions=7))
    assert "@" in item.name
    assert guarded.origin_for(where) is None
    ran, expected = play(guarded, where, 0, record=True), play(item.policy, item.scenario, 0, record=True)
    assert (ran.totals.violations, ran.view.clock_ns) == (expected.totals.violations, expected.view.clock_ns)
    assert len(ran.log) == len(expected.log)


def test_asked_it_decides_as_it_does_in_the_loop(box):
    import gymnasium

    guarded = box(SMALL, NEVER)
    env = gymnasium.make("llmsched_env:LLMSched/GSM8K-v0", num_requests=60, num_clients=8, assignment="lpt")
    env.reset(options={"case": 0})
    begin(guarded, env)
    over = False
    while not over:
        _, _, over, _, info = env.step(guarded.act(env.unwrapped.simulator.view))
    scenario = env.unwrapped.scenario
    assert info["makespan_s"] == evaluate(guarded, scenario, [0]).columns["makespan_s"][0]


def test_asked_too_early_it_says_so():
    with pytest.raises(RuntimeError, match="asked before reset"):
        Guarded().act(None)
