"""The planner for SLOs: never worse than what it improves on, and as good as anything where it sees to the end."""

from __future__ import annotations

import itertools

import pytest
from playing import WORLDS, Drawn, by_act, history

from llmsched_env.baselines.iteration import min_batch, prefill_first
from llmsched_env.baselines.lookahead import BASE_ORDER, Lookahead
from llmsched_env.baselines.mixed import mixed_first
from llmsched_env.baselines.rule import Rule
from llmsched_env.cases import build_problem
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import evaluate, play
from llmsched_env.policy import FunctionRule
from llmsched_env.simulator import Simulator

WITH_SLO = WORLDS["SLO"]
ORDERED = WITH_SLO.replace(choose_order=True)
FAR = 1e6
"""Mean requests: beyond the end of every episode here."""


MIXED = WORLDS["mixed, SLO"]


def test_to_the_end_it_is_never_worse_than_a_base_that_mixes():
    for scenario in (MIXED, MIXED.replace(mixed_cost="overlap")):
        planned = evaluate(Lookahead(mixed_first(), horizon_requests=FAR), scenario, 12).columns
        usual = evaluate(mixed_first(), scenario, 12).columns
        assert (planned["goodput"] >= usual["goodput"]).all()
        assert planned["mixed_iterations"].mean() > 0
    assert planned["goodput"].mean() > usual["goodput"].mean()


@pytest.mark.parametrize("scenario", [WITH_SLO, WORLDS["SLO, late last"]], ids=["fcfs", "late last"])
@pytest.mark.parametrize("base", [prefill_first, min_batch])
def test_to_the_end_it_is_never_worse_than_its_base(scenario, base):
    planned = evaluate(Lookahead(base(), horizon_requests=FAR), scenario, 12).columns["goodput"]
    usual = evaluate(base(), scenario, 12).columns["goodput"]
    assert (planned >= usual).all()
    assert planned.mean() > usual.mean() + 0.02


def test_with_orders_its_base_lets_late_ones_go_last():
    planned = evaluate(Lookahead(min_batch(), horizon_requests=FAR), ORDERED, 12).columns["goodput"]
    usual = evaluate(min_batch(), WITH_SLO.replace(order=BASE_ORDER), 12).columns["goodput"]
    assert (planned >= usual).all()
    assert planned.mean() > usual.mean() + 0.01
    assert len(set(actions_of(Lookahead(min_batch()), 0))) > 2, "it never chose another order"


def actions_of(policy, case):
    from llmsched_env.evaluation.rollout import start

    simulator = Simulator(build_problem(ORDERED, case))
    policy.reset(start(policy, ORDERED, simulator, 0))
    actions = []
    while not simulator.done:
        actions.append(policy.act(simulator.view) if simulator.has_choice else int(simulator.can_prefill))
        simulator.step(actions[-1])
    return actions


def test_compiled_and_asked_it_does_the_same():
    for scenario, case in itertools.product((WITH_SLO, ORDERED), (0, 1)):
        ran = play(Lookahead(), scenario, case, record=True)
        assert history(ran) == history(by_act(Lookahead(), scenario, case))
        assert ran.totals.invalid_actions == 0


@pytest.mark.parametrize("at", [1, 2, 3, 7, 30])
def test_what_its_base_raises_ends_it(at):
    asked = [0]

    def tired(view, parameters, memory):
        asked[0] += 1
        if asked[0] == at:
            raise KeyboardInterrupt
        return int(view.ready > 3)

    with pytest.raises(KeyboardInterrupt):
        play(Lookahead(Rule("tired", FunctionRule, (tired,))), WITH_SLO, 0)
    assert asked[0] < at + 40, "it went on"


def test_tiny_cases_against_every_schedule():
    """Orders are fixed here: the best of all sequences of prefills and decodes, by trying them."""
    drawn = Drawn(200, count=5, longest_output=4)
    scenario = WITH_SLO.replace(workload=drawn, num_clients=2, ttft_s=4e-7, tpot_s=9e-8, uncounted_share=0.0)
    found, optimum, usual = [], [], []
    for case in range(25):
        usual.append(int(play(min_batch(1), scenario, case).totals.violations))
        found.append(int(play(Lookahead(min_batch(1), horizon_requests=FAR), scenario, case).totals.violations))
        optimum.append(least_lost(Simulator(build_problem(scenario, case))))
    assert all(loss >= least for loss, least in zip(found, optimum, strict=True))
    # One step of improvement: some way from the rule to the optimum.
    assert sum(usual) > sum(found) > sum(optimum) > 0


def least_lost(simulator):
    if simulator.done:
        return int(simulator.totals.violations)
    actions = [0, 1] if simulator.has_choice else [int(simulator.can_prefill)]
    ends = []
    for action in actions:
        twin = simulator.fork()
        twin.step(action)
        ends.append(least_lost(twin))
    return min(ends)


def test_bad_input():
    with pytest.raises(ConfigError, match="horizon_requests = 0 is out of range"):
        Lookahead(horizon_requests=0)
    with pytest.raises(ConfigError, match="plans for SLOs"):
        play(Lookahead(), WORLDS["client"], 0)
