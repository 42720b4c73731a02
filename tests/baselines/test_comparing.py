"""Policies side by side from Python."""

from __future__ import annotations

import numpy as np
import pytest

from llmsched_env import make_scenario
from llmsched_env.baselines import compare, entry, make_policy
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import evaluate, mean_estimate

SMALL = make_scenario("LLMSched/GSM8K-v0", num_clients=8, num_requests=40, queue="shared", split="test")
SERVED = make_scenario("LLMSched/ServingOrder-v1", num_clients=8, num_requests=60, split="test")


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
        " policy       ", " knows   ", " gap to bound % [95 % CI] ", " behind lagrangian, points ",
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
    ],
)
def test_what_cannot_be_compared(policies, scenario, error, words):
    with pytest.raises(error, match=words):
        compare(policies, scenario, 1)
