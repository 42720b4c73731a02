"""Policies side by side from Python."""

from __future__ import annotations

import re

import gymnasium
import numpy as np
import pytest

from llmsched_env import make_scenario
from llmsched_env.baselines import compare, entry, make_policy
from llmsched_env.baselines.registry import fixed_order_planner, planner_of
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import evaluate, mean_estimate

SMALL = make_scenario("LLMSched/GSM8K-v0", num_clients=8, num_requests=40, queue="shared", split="test")
SERVED = make_scenario("LLMSched/ServingOrder-v1", num_clients=8, num_requests=60, split="test")


class Named:
    """A policy of that name."""

    kind, clairvoyant = "rule", False

    def __init__(self, name):
        self.name = name

    def reset(self, start):
        pass

    def act(self, view):
        return 1


def test_names_objects_and_entries_stand_side_by_side():
    found = compare(["lagrangian", make_policy("threshold"), entry("hybrid_lpt", SMALL)], SMALL, 3)
    assert [row.name for row in found.rows] == ["lagrangian", "threshold", "hybrid_lpt"]
    alone = evaluate(make_policy("threshold"), SMALL, 3)
    assert found.row("threshold").evaluation.columns["makespan_s"].tolist() == alone.columns["makespan_s"].tolist()


def test_differences_are_paired_and_above_0_for_who_is_worse():
    found = compare(["lagrangian", "decode_first"], SMALL, 4)
    ours, first = (found.row(name).evaluation.columns["gap_to_bound"] for name in ("decode_first", "lagrangian"))
    assert found.behind("decode_first", "lagrangian") == mean_estimate(ours - first)
    assert found.behind("decode_first", "lagrangian").mean > 0
    served = compare(["prefill_first", "deadline@late_last"], SERVED, 4)
    ours, first = (served.row(name).evaluation.columns["goodput"] for name in ("deadline@late_last", "prefill_first"))
    assert served.behind("deadline@late_last", "prefill_first") == mean_estimate(first - ours)


def test_the_table_says_what_it_is():
    lines = str(compare(["lagrangian", "decode_first"], SMALL, 2)).splitlines()
    assert lines[0].split("|")[1:-1] == [
        " policy       ", " parameters ", " knows   ", " gap to bound % [95 % CI] ", " behind lagrangian, points ",
    ]  # fmt: skip
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["lagrangian", "decode_first"]
    assert "goodput %" in str(compare(["prefill_first"], SERVED, 1))
    scored = compare(["lagrangian_tuned", "tuned_threshold"], SMALL, 2, scores=True)
    assert "score [95 % CI]" in str(scored)
    assert 0.0 in [row.score.mean for row in scored.rows] or any(np.isnan(row.score.mean) for row in scored.rows)


def test_an_id_stands_for_its_test_cases():
    assert compare(["prefill_first"], "LLMSched/GSM8K-v0", 1).scenario == make_scenario(
        "LLMSched/GSM8K-v0", split="test"
    )


@pytest.mark.parametrize(
    ("policies", "scenario", "error", "words"),
    [
        ([], SMALL, ConfigError, "give a list of at least one policy"),
        ("lagrangian", SMALL, ConfigError, "give a list of at least one policy"),
        (["lagrangian", "lagrangian"], SMALL, ConfigError, "more than one policy is called 'lagrangian'"),
        (["lagrangain"], SMALL, UnknownNameError, "lagrangian"),
        (["deadline"], SMALL, ConfigError, "needs SLOs"),
        ([3], SMALL, ConfigError, "3"),
        (["lagrangian"], "LLMSched/GSM8K-v9", UnknownNameError, "LLMSched/GSM8K-v0"),
        (5, SMALL, ConfigError, "policies = 5: give a list of at least one policy"),
        (None, SMALL, ConfigError, "policies = None: give a list"),
        (make_policy("lagrangian"), SMALL, ConfigError, "give a list of at least one policy"),
        ((name for name in ()), SMALL, ConfigError, "give a list of at least one policy"),
        (np.array([]), SMALL, ConfigError, "give a list of at least one policy"),
        (["lagrangian"], None, ConfigError, "None is not a Scenario: make one with"),
        (["lagrangian"], {"num_clients": 8}, ConfigError, r"{'num_clients': 8} is not a Scenario: make one with"),
        (["lagrangian"], gymnasium.spec("LLMSched/GSM8K-v0"), ConfigError, "is not a Scenario: make one with"),
        ([Named(3)], SMALL, ConfigError, "policy name 3: give a text for the tables, without | and line breaks"),
        ([Named("a|b")], SMALL, ConfigError, r"policy name 'a\|b': give a text"),
        ([Named("a\nb")], SMALL, ConfigError, r"policy name 'a\\nb': give a text"),
        ([Named("")], SMALL, ConfigError, "policy name '': give a text"),
    ],
)
def test_what_cannot_be_compared(policies, scenario, error, words):
    with pytest.raises(error, match=words):
        compare(policies, scenario, 1)


def test_an_environment_is_not_what_is_compared_in():
    env = gymnasium.make("LLMSched/GSM8K-v0", num_clients=8, num_requests=40)
    for given in (env, env.unwrapped):
        with pytest.raises(ConfigError, match=r"is an environment, and compare takes the scenario of one: give env"):
            compare(["lagrangian"], given, 1)
    assert compare(["lagrangian"], env.unwrapped.scenario, 1).rows


@pytest.mark.parametrize(
    "policies", [np.array(["lagrangian", "prefill_first"]), (name for name in ("lagrangian", "prefill_first"))]
)
def test_any_sequence_of_policies_is_taken(policies):
    assert [row.name for row in compare(policies, SMALL, 1).rows] == ["lagrangian", "prefill_first"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workload": "gsm8k-smooth"}, "workload = 'gsm8k-smooth', now 'gsm8k'"),
        ({"split": "train"}, "split = 'train', now 'test'"),
        ({"num_requests": 41}, "num_requests = 41, now 40"),
        ({"num_clients": 9}, "num_clients = 9, now 8"),
        ({"cost": "llama-65b-paper-low"}, "cost: name = 'llama-65b-paper-low', now"),
        ({"noise_sd": 0.5}, "noise_sd = 0.5, now 0.0"),
    ],
)
def test_an_entry_of_other_episodes_is_refused(changes, words):
    other = entry("prefill_first", SMALL.replace(**changes))
    with pytest.raises(ConfigError, match=rf"entry 'prefill_first' is of another scenario \({re.escape(words)}"):
        compare([entry("lagrangian", SMALL), other], SMALL, 1)


def test_an_entry_of_other_arrivals_or_slos_is_refused():
    for changes, words in (({"load": 0.5}, "load = 0.5"), ({"ttft_s": 9.0}, r"ttft_s = 9\.0")):
        with pytest.raises(ConfigError, match=rf"entry 'lagrangian' is of another scenario \({words}, now"):
            compare([entry("lagrangian", SERVED.replace(**changes))], SERVED, 1)
    with pytest.raises(ConfigError, match="is of another scenario"):
        compare(["lagrangian", entry("deadline", SERVED)], SMALL, 1)


def test_entries_keep_what_they_bring():
    names = ["hybrid_lpt", "baseline", "lagrangian"]
    assert len(compare([entry(name, SMALL) for name in names], SMALL, 1).rows) == 3
    names = ["deadline@late_last", "lagrangian", "lookahead"]
    assert len(compare([entry(name, SERVED) for name in names], SERVED, 1).rows) == 3
    mixed = make_scenario("LLMSched/Mixed-v0", num_clients=8, num_requests=20, split="test")
    assert len(compare([entry(name, mixed) for name in ("vllm_v1", "orca")], mixed, 1).rows) == 2


def test_where_plans_ship_the_joint_plan_scores_one_and_the_planner_of_iterations_beside_it():
    found = compare(["tuned_threshold", "beam_1"], "LLMSched/GSM8K-v0", 2, scores=True)
    assert (found.planner, found.fixed_order) == ("joint", "beam")
    beam, rule = found.row("beam_1"), found.row("tuned_threshold")
    assert 0 < beam.score.mean < beam.fixed_order_score.mean < 1.05
    assert rule.score.mean <= 0
    told = found.as_json()
    assert told["score_fixed_order_planner"] == "beam"
    assert told["policies"]["beam_1"]["fixed_order_score"]["mean"] == beam.fixed_order_score.mean


def test_without_shipped_plans_there_is_one_score():
    where = make_scenario("LLMSched/GSM8K-v0", split="test")
    assert planner_of(where, [99]) == "joint"
    assert planner_of(where, [0, 100]) == fixed_order_planner(where) == "beam"
    found = compare(["threshold"], where.replace(num_requests=40, num_clients=4), 1, scores=True)
    assert (found.planner, found.fixed_order) == ("beam", None)
    assert "fixed_order_score" not in found.as_json()["policies"]["threshold"]
