"""The numbers of rules, as tables show them."""

from __future__ import annotations

import csv
import json

import pytest

import llmsched_env.baselines.__main__ as command
from llmsched_env import make_scenario
from llmsched_env.baselines import comparing
from llmsched_env.baselines.iteration import deadline, eb_threshold, interleave, lightllm, tgi, threshold
from llmsched_env.baselines.lagrangian import lagrangian, lagrangian_literal
from llmsched_env.baselines.registry import BASELINES, default_names, entry
from llmsched_env.baselines.tuned import TUNABLE, tuned_value
from llmsched_env.config import Scenario
from llmsched_env.engine import rules
from llmsched_env.engine.rule import Rule
from llmsched_env.engine.view import fields_of
from llmsched_env.evaluation.parameters import MEANINGS, SYMBOLS, parameters_of, written

BATCH = Scenario(num_requests=30, num_clients=20, queue="shared", split="test")
SERVED = make_scenario("LLMSched/Serving-v0", num_requests=60, num_clients=20, split="test")


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (threshold(3), "k = 3"),
        (lagrangian(0.75), "λ = 0.75"),
        (lagrangian_literal(2.0), "λ = 2"),
        (interleave(2, 8), "prefills = 2, decodes = 8"),
        (lightllm(6), "decodes = 6"),
        (tgi(0.3, 20), "ratio = 0.3, decodes = 20"),
        (BASELINES["prefill_first"](), ""),
        (BASELINES["static_batching"](), ""),
        (BASELINES["beam_1"](), ""),
    ],
)
def test_numbers_that_were_given(policy, text):
    assert written(parameters_of(policy, BATCH)) == text


def test_numbers_that_are_computed():
    assert written(parameters_of(deadline(12, 0.8), SERVED)) == "k = 12, share = 0.8"
    # docs/model.md: 16 idle clients of 200 under the default costs.
    assert parameters_of(eb_threshold(), Scenario(queue="shared", lengths="hidden")) == {"k": 16}


@pytest.mark.parametrize("name", TUNABLE)
def test_tuned_numbers_are_those_of_the_file(name):
    where = Scenario(split="test")
    values = tuned_value(name, where).values
    found = parameters_of(entry(name, where).policy, where)
    assert [*found.values()] == ([2, *values] if name == "interleave_tuned" else [*values])


def test_every_rule_has_its_numbers_shown_or_none():
    """A rule of the engine with a field that is set and not shown would be a number that no table has."""
    kept = {"action", "chosen", "opened", "opened_ns", "seed", "state", "rule", "token_ns"}
    kept_by = {rules.LastSchedulable: {"budget", "mixed", "decodes"}}  # the scenario's, or its memory
    for kind in vars(rules).values():
        if isinstance(kind, type) and issubclass(kind, Rule) and kind.__module__ == rules.__name__:
            symbols = next((SYMBOLS[part] for part in kind.__mro__ if part in SYMBOLS), {})
            assert {*fields_of(kind)} - {*fields_of(Rule)} - kept - kept_by.get(kind, set()) == {*symbols}, kind
            assert {*symbols.values()} <= {*MEANINGS}


def test_a_number_stands_in_tables_and_files(tmp_path, capsys):
    out, policies = tmp_path / "out", "threshold,eb_threshold,beam_1"
    arguments = ["--requests", "60", "--clients", "8", "--cases", "2", "--queue", "shared", "--policies", policies]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "draw", lambda *_: [])
        patch.setattr(comparing, "best_tuned", lambda _: "threshold")
        patch.setattr(comparing, "planner_of", lambda *_: "beam_1")
        patch.setattr(comparing, "fixed_order_planner", lambda _: "beam_1")
        assert command.main([*arguments, "--out", str(out)]) == 0
    printed, page = capsys.readouterr().out, (out / "table.md").read_text(encoding="utf-8")
    for text in (printed, page):
        assert any("| threshold " in line and "| k = 14 " in line for line in text.splitlines())
        assert "- parameters: the numbers that a rule decides by; of a tuned one, chosen on training cases. k: " in text
        assert "- score: 0 is threshold, the best tuned rule; 1 is beam_1." in text
        assert "- gap to bound: " in text
        assert "λ" not in text.partition("- parameters")[2].partition("\n")[0], "a symbol that no row has"
    assert "SLO" not in page
    said = json.loads((out / "comparison.json").read_text(encoding="utf-8"))["policies"]
    assert said["threshold"]["parameters"] == {"k": 14}
    assert said["beam_1"]["parameters"] == {}
    with (out / "table.csv").open(encoding="utf-8") as file:
        rows = {row["policy"]: row["parameters"] for row in csv.DictReader(file)}
    assert rows == {"threshold": "k = 14", "eb_threshold": written(said["eb_threshold"]["parameters"]), "beam_1": ""}


def test_every_default_policy_of_a_scenario_has_them():
    where = make_scenario("LLMSched/ServingOrder-v0", split="test")
    for name in default_names(where):
        if name.endswith("_tuned") or "tuned_" in name:
            item = entry(name, where)
            assert parameters_of(item.policy, item.scenario), name
