"""The log of decisions: on paper, against an episode played anew for each of them, for every kind of policy."""

from __future__ import annotations

import numpy as np
import pytest
from patient import SMALL, Compiled, Patient

from llmsched_env.baselines import make_policy
from llmsched_env.baselines.rule import Rule
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel
from llmsched_env.errors import ConfigError, InvalidActionError
from llmsched_env.evaluation import final_metrics, play, trace_episode
from llmsched_env.policy import FunctionRule

SERVING = Scenario(
    workload="serving", split="test", num_requests=60, num_clients=6, queue="shared", load=0.9, ttft_s=1.0, tpot_s=0.1
)


def every_third(view, parameters, memory):
    memory[0] += 1
    return int(memory[0] % 3 == 0)


WITH_MEMORY = ("random", "static_batching", "cadence", "tgi")
RULES = ("prefill_first", "threshold", "lagrangian", *WITH_MEMORY)


def policy_of(name):
    if name == "function":
        return Rule("function", FunctionRule, (every_third, (), (0,)))
    return {"patient": Patient, "compiled": Compiled}[name]() if name in ("patient", "compiled") else make_policy(name)


class Once:
    """A rule that is given another answer at one of its choices."""

    name, kind, clairvoyant = "once", "rule", False

    def __init__(self, rule, at, instead):
        self.rule, self.at, self.instead = rule, at, instead

    def reset(self, start):
        self.made = -1
        self.rule.reset(start)

    def act(self, view):
        self.made += 1
        own = self.rule.act(view)
        return self.instead if self.made == self.at else own


def test_one_decision_on_paper(tmp_path):
    # 2 clients, first come first served, prompts of 1, outputs 2, 3, 2; prefill 100 + 10 a token, decode 50 + 1 a
    # client. P of 0 and 1 (0-120), D (120-172): request 0 is done, and client 0 may take request 2: the first choice.
    # Decode-first: D (172-223), P (223-333), D (333-384). Prefill there: P (172-282), then D of both (282-334).
    (tmp_path / "three.csv").write_text("prompt_tokens,output_tokens\n1,2\n1,3\n1,2\n")
    scenario = Scenario(
        workload=str(tmp_path / "three.csv"),
        split="test",
        num_clients=2,
        queue="shared",
        order="fcfs",
        cost=CostModel("paper", 100, 10, 50, 1, 0, 1000),
    )
    trace = trace_episode(make_policy("decode_first"), scenario, 0, against=make_policy("prefill_first"))
    table = {name: column.tolist() for name, column in trace.table().items()}
    assert table == {
        "decision": [0],
        "iteration": [2],
        "time_s": [172e-9],
        "waiting": [1],
        "preempted": [0],
        "active": [1],
        "idle": [1],
        "ready": [1],
        "kv_tokens": [3],  # one prompt token and two of the output
        "action": ["decode"],
        "against_action": ["prefill"],
        "against_makespan_s": [334e-9],
        "makespan_change_s": [-50e-9],
    }
    assert final_metrics(trace.simulator)["makespan_s"] == 384e-9


@pytest.mark.parametrize("name", [*RULES, "function", "patient", "compiled", "rollout", "beam_1"])
def test_the_episode_is_that_of_play(name):
    trace = trace_episode(policy_of(name), SMALL, 1, seed=7, against=make_policy("lagrangian"), most_decisions=2)
    expected = play(policy_of(name), SMALL, 1, seed=7, record=True)
    assert trace.simulator.log.tolist() == expected.log.tolist()
    assert trace.simulator.served.tolist() == expected.served.tolist()
    np.testing.assert_equal(final_metrics(trace.simulator), final_metrics(expected))
    assert len(trace.decisions["action"]) > 5


@pytest.mark.parametrize("scenario", [SMALL, SERVING], ids=["batch", "serving"])
@pytest.mark.parametrize("name", [*RULES, "function"])
def test_a_cost_is_that_of_an_episode_with_one_other_answer(name, scenario):
    other = "decode_first" if name in ("prefill_first", "tgi") else "prefill_first"
    trace = trace_episode(policy_of(name), scenario, 2, seed=3, against=make_policy(other), most_decisions=15)
    decisions, own = trace.decisions, final_metrics(trace.simulator)
    differ = np.flatnonzero(decisions["action"] != decisions["against_action"])
    assert len(differ) > 3, "nearly the same policy"
    tried = differ[~np.isnan(decisions["against_makespan_s"][differ])]
    assert len(tried) == min(15, len(differ))
    for at in tried.tolist():
        once = Once(policy_of(name), at, int(decisions["against_action"][at]))
        found = final_metrics(play(once, scenario, 2, seed=3))
        assert decisions["against_makespan_s"][at] == found["makespan_s"]
        assert decisions["makespan_change_s"][at] == pytest.approx(found["makespan_s"] - own["makespan_s"], abs=1e-12)
        if scenario.serving:
            assert decisions["against_goodput"][at] == found["goodput"]
    alike = np.delete(np.arange(len(decisions["action"])), differ)
    assert (decisions["makespan_change_s"][alike] == 0).all()
    assert (decisions["against_makespan_s"][alike] == own["makespan_s"]).all()


@pytest.mark.parametrize("name", ["rollout", "beam_1", "patient"])
def test_one_that_begins_anew_is_judged_by_its_own_action_tried_so_too(name):
    class Nobody(Patient):
        """Says the opposite of a prefill."""

        def act(self, view):
            return 0

    trace = trace_episode(policy_of(name), SMALL, 0, against=Nobody(), most_decisions=5)
    decisions = trace.decisions
    found = decisions["makespan_change_s"][decisions["action"] != decisions["against_action"]]
    assert np.count_nonzero(~np.isnan(found)) == min(5, len(found))
    if name == "patient":  # which keeps nothing, so that anew is the same
        changed = decisions["against_makespan_s"] - final_metrics(trace.simulator)["makespan_s"]
        np.testing.assert_allclose(changed, decisions["makespan_change_s"], atol=1e-9)


def test_against_itself_nothing_differs():
    for name in ("random", "patient"):
        policy = policy_of(name)
        trace = trace_episode(policy, SMALL, 0, against=policy)
        assert (trace.decisions["action"] == trace.decisions["against_action"]).all()
        assert (trace.decisions["makespan_change_s"] == 0).all()


def test_few_are_spread_evenly_over_those_that_differ():
    rule, other = make_policy("lagrangian"), make_policy("prefill_first")
    whole, few, none = (
        trace_episode(rule, SMALL, 0, against=other, most_decisions=most).decisions for most in (10**6, 3, 0)
    )
    differ = np.flatnonzero(whole["action"] != whole["against_action"])
    assert len(differ) > 8
    tried = [at for at in differ.tolist() if not np.isnan(few["makespan_change_s"][at])]
    assert tried == [differ[0], differ[round((len(differ) - 1) / 2)], differ[-1]]
    assert (few["makespan_change_s"][tried] == whole["makespan_change_s"][tried]).all()
    assert np.isnan(none["makespan_change_s"][differ]).all()
    assert not np.isnan(whole["makespan_change_s"]).any()


def test_progress_is_told_to_the_end():
    told = []
    trace_episode(Patient(), SMALL, 0, against=make_policy("prefill_first"), progress=lambda *what: told.append(what))
    forks = [(done, total) for what, done, total in told if what == "fork"]
    assert forks == [(i + 1, len(forks)) for i in range(len(forks))]
    assert len(forks) > 3
    assert {total for what, _, total in told if what == "play"} == {30}


def test_bad_input():
    with pytest.raises(ConfigError, match=r"against = 'beam_1': it plans a whole episode .* Give a rule"):
        trace_episode(Patient(), SMALL, 0, against=make_policy("beam_1"))
    with pytest.raises(ConfigError, match=r"most_decisions = -1 is out of range"):
        trace_episode(Patient(), SMALL, 0, most_decisions=-1)
    with pytest.raises(ConfigError, match="is not a Scenario"):
        trace_episode(Patient(), "LLMSched/GSM8K-v0", 0)
    wrong = Patient()
    wrong.act = lambda view: 7
    with pytest.raises(InvalidActionError, match=r"policy 'patient': action 7 is not in Discrete\(2\)"):
        trace_episode(make_policy("lagrangian"), SMALL, 0, against=wrong)
    with pytest.raises(ConfigError, match="a TracedSimulator is stepped"):
        trace_episode(Patient(), SMALL, 0).simulator.run(FunctionRule(every_third, (), (0,)))
