"""Stored constants: whose they are, that they can be made again, and that nothing but training cases made them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
from playing import WORLDS

from llmsched_env import make_scenario
from llmsched_env.agents.agent import Agent
from llmsched_env.agents.files import shipped_agent, shipped_digest
from llmsched_env.baselines import make_policy, tuned
from llmsched_env.baselines.tuned import (
    SLO_TUNABLE,
    TUNABLE,
    _tuned_value,
    agent_scenarios,
    best_tuned,
    default_scenarios,
    tunable,
    tune,
    tuned_value,
)
from llmsched_env.config import ORDER_CODES, Scenario
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import evaluate, play, rollout
from llmsched_env.workload import GammaArrivals, NoisyTruth, workload

SHARED = WORLDS["shared"]
WITH_SLO = WORLDS["SLO"]
PAPER_FCFS = Scenario(queue="shared", order="fcfs")


@pytest.fixture
def splits(monkeypatch):
    """Which (split, case) were simulated."""
    seen = set()
    real = rollout.build_problem

    def spy(scenario, case, **more):
        seen.add((scenario.split, int(case)))
        return real(scenario, case, **more)

    monkeypatch.setattr(rollout, "build_problem", spy)
    return seen


@pytest.fixture
def nothing_remembered():
    _tuned_value.cache_clear()
    yield
    _tuned_value.cache_clear()


def stored():
    return json.loads(tuned.STORED.read_text(encoding="utf-8"))


def test_what_is_stored_covers_the_default_scenarios_and_nothing_else():
    keys = [entry["key"] for entry in stored()["entries"]]
    wanted = {tuned._key(scenario, name) for scenario in default_scenarios() for name in tunable(scenario)}
    wanted |= {tuned._key(scenario, tuned.AGENT) for scenario in agent_scenarios()}
    assert len(keys) == len(set(keys))
    assert set(keys) == wanted, "run the command that tuned.json names in made_by"


def test_what_is_stored_says_where_it_comes_from():
    said = stored()
    assert said["made_by"].startswith(f"{tuned.COMMAND} --cases ")
    assert said["tuned_on"].startswith("the first cases of split train")
    numbers = {name: rule.grid(Scenario()) for name, rule in {**TUNABLE, **SLO_TUNABLE}.items()}
    networks = range(len(shipped_agent().trained))
    numbers[f"{tuned.AGENT} {shipped_digest()}"] = [(tuned.RULE,), *((float(number),) for number in networks)]
    for entry in said["entries"]:
        assert tuple(entry["values"]) in numbers[json.loads(entry["key"])["policy"]]
        assert entry["cases"] == tuned.STORED_CASES


def test_the_stored_network_still_reaches_its_makespan():
    (number,), makespan_s, cases = tuned_value(tuned.AGENT, Scenario())
    network = Agent("network", [shipped_agent().trained[int(number)]])
    again = evaluate(network, Scenario(split="train"), cases).estimate("makespan_s").mean
    assert again == pytest.approx(makespan_s, rel=1e-12), "the simulation has changed since: tune again"


@pytest.mark.parametrize("name", TUNABLE)
def test_a_stored_constant_still_reaches_its_makespan(name):
    values, makespan_s, cases = tuned_value(name, PAPER_FCFS)
    again = evaluate(TUNABLE[name].make(*values), PAPER_FCFS.replace(split="train"), cases).estimate("makespan_s").mean
    assert again == pytest.approx(makespan_s, rel=1e-12), "the simulation has changed since: tune again"


@pytest.mark.parametrize("name", [*TUNABLE, *SLO_TUNABLE])
def test_a_stored_constant_still_reaches_its_goodput(name):
    scenario = make_scenario("LLMSched/Serving-v0", load=0.97)
    values, goodput, cases = tuned_value(name, scenario)
    rule = tunable(scenario)[name].make(*values)
    again = evaluate(rule, scenario.replace(split="train"), cases).estimate("goodput").mean
    assert again == pytest.approx(goodput, rel=1e-12), "the simulation has changed since: tune again"


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_tuning_sees_training_cases_only(split, splits, nothing_remembered):
    scenario = SHARED.replace(split=split)
    tune("interleave_tuned", scenario, 3)
    assert splits == {("train", 0), ("train", 1), ("train", 2)}
    best_tuned(scenario)
    make_policy("tuned_threshold").compiled(rollout.start(make_policy("threshold"), scenario, _episode(scenario), 0))
    assert {seen for seen, _ in splits - {(split, 0)}} == {"train"}


def _episode(scenario):
    return play(make_policy("prefill_first"), scenario, 0)


def test_tuning_is_deterministic_and_finds_the_least():
    choice = tune("tuned_threshold", SHARED, 4)
    assert tune("tuned_threshold", SHARED.replace(split="validation"), 4) == choice
    train = SHARED.replace(split="train")
    means = {
        values: evaluate(TUNABLE["tuned_threshold"].make(*values), train, 4).estimate("makespan_s").mean
        for values in TUNABLE["tuned_threshold"].grid(SHARED)
    }
    assert choice.mean == min(means.values()) < max(means.values())
    assert choice.values == min(values for values, mean in means.items() if mean == choice.mean)


def test_workloads_and_predictors_of_one_name_are_told_apart():
    serving = make_scenario("LLMSched/ServingOrder-v0", order="shortest_first", choose_order=False)
    bursty = serving.replace(workload=replace(workload("serving"), arrivals=GammaArrivals(cv=6.0)))
    seeded = serving.replace(predictor=NoisyTruth(0.6, seed=1))
    assert bursty.source.name == serving.source.name
    keys = {tuned._key(scenario, "tgi_tuned") for scenario in (serving, bursty, seeded)}
    assert len(keys) == 3
    same = serving.replace(workload=workload("serving"), predictor=NoisyTruth(0.6))
    assert tuned._key(same, "tgi_tuned") in keys
    assert tuned._key(serving, "tgi_tuned") in {entry["key"] for entry in stored()["entries"]}


def test_with_slos_it_is_goodput_that_is_tuned():
    choice = tune("max_wait_tuned", WITH_SLO.replace(choose_order=True), 4)
    rule = tunable(WITH_SLO)["max_wait_tuned"]
    means = [
        evaluate(rule.make(*values), WITH_SLO.replace(split="train"), 4).estimate("goodput").mean
        for values in rule.grid(WITH_SLO)
    ]
    assert choice.mean == max(means) > min(means)
    assert "deadline_tuned" not in tunable(SHARED)
    with pytest.raises(ConfigError, match="'deadline_tuned' needs SLOs"):
        play(make_policy("deadline_tuned"), SHARED, 0)


def test_the_best_pair_is_the_best_rule_under_the_best_order():
    name = best_tuned(WITH_SLO.replace(choose_order=True))
    rule, _, order = name.partition("@")
    means = {
        (one, under): tuned_value(one, WITH_SLO.replace(order=under)).mean
        for one in tunable(WITH_SLO)
        for under in ORDER_CODES
    }
    assert means[rule, order or "fcfs"] == max(means.values()) > min(means.values())


@pytest.mark.usefixtures("usual_tuning")
def test_a_stored_scenario_is_found_whatever_does_not_matter(caplog, nothing_remembered):
    entry = tuned_value("lagrangian_tuned", PAPER_FCFS)
    with caplog.at_level(logging.INFO):
        for change in ({"split": "test"}, {"reward": "latency"}, {"skip_forced": True}, {"max_iterations": 10**6}):
            assert tuned_value("lagrangian_tuned", PAPER_FCFS.replace(**change)) == entry
        assert not caplog.records
        tuned_value("lagrangian_tuned", SHARED)
    assert "tuning lagrangian_tuned on 16 training cases" in caplog.text


def test_a_tuned_rule_is_the_rule_with_that_number():
    for name in TUNABLE:
        values = tuned_value(name, SHARED).values
        plain = play(TUNABLE[name].make(*values), SHARED, 0, record=True)
        assert play(make_policy(name), SHARED, 0, record=True).log.tobytes() == plain.log.tobytes()


def test_the_reference_is_the_best_on_training_cases():
    best = best_tuned(SHARED)
    spans = {name: tuned_value(name, SHARED).mean for name in TUNABLE}
    assert spans[best] == min(spans.values()) < max(spans.values())


def test_the_command_writes_what_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "default_scenarios", lambda: [SHARED])
    monkeypatch.setattr(tuned, "agent_scenarios", lambda: [SHARED])
    path = tmp_path / "tuned.json"
    assert tuned.main(["--cases", "2", "--out", str(path)]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["made_by"] == "python -m llmsched_env.baselines.tuned --cases 2"
    assert written["tuned_on"] == "the first cases of split train, mean makespan (goodput with SLOs)"
    assert [entry["key"] for entry in written["entries"]] == [
        tuned._key(SHARED, name) for name in (*TUNABLE, tuned.AGENT)
    ]
    assert [*tmp_path.iterdir()] == [path]


def test_the_command_keeps_what_is_there_and_tunes_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "default_scenarios", lambda: [SHARED])
    monkeypatch.setattr(tuned, "agent_scenarios", lambda: [SHARED])
    path = tmp_path / "tuned.json"
    first, *others = TUNABLE
    kept = {"key": tuned._key(SHARED, first), "values": [7.0], "mean": 1.0, "cases": 64}
    path.write_text(json.dumps({"made_by": "before", "tuned_on": "", "entries": [kept]}), encoding="utf-8")
    assert tuned.main(["--missing", "--cases", "2", "--out", str(path)]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["made_by"] == "before; --missing --cases 2"
    assert written["entries"][0] == kept
    assert [entry["cases"] for entry in written["entries"][1:]] == [2] * len([*others, tuned.AGENT])


@pytest.mark.parametrize(
    ("cases", "out", "words"),
    [
        ("0", "tuned.json", "--cases 0 names no case: give a count of at least 1"),
        ("-3", "tuned.json", "--cases -3 names no case"),
        ("1", ".", "it is a folder. Give the path of a file"),
        ("1", "file/below/tuned.json", "cannot write to folder"),
    ],
)
def test_the_command_says_in_one_line_what_it_cannot_do(tmp_path, capsys, monkeypatch, cases, out, words):
    monkeypatch.setattr(tuned, "tune", lambda *_: pytest.fail("the long work came first"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as end:
        tuned.main(["--cases", cases, "--out", str(tmp_path / out)])
    assert end.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert words in said
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


def test_only_tunable_rules_are_tuned():
    with pytest.raises((UnknownNameError, KeyError)):
        tune("prefill_first", SHARED, 1)
