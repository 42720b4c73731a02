"""``llmsched trace``, in this process, on small cases."""

from __future__ import annotations

import csv
import json

import pytest
from trace_format import assert_well_formed, by_phase, slices

from llmsched_env import make_scenario
from llmsched_env.baselines.registry import entry
from llmsched_env.cli import COMMANDS, trace
from llmsched_env.cli import main as llmsched
from llmsched_env.evaluation import evaluate
from llmsched_env.evaluation.trace_events import ACCELERATOR

SMALL = ["--clients", "6", "--requests", "40", "--queue", "shared"]


def complaint(capsys, *arguments):
    assert trace.main([*SMALL, *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


def test_all_files_of_a_case_are_of_the_same_episode_as_a_comparison(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ["--trace-out", "t.json", "--requests-out", "sub/r.csv", "--decisions-out", "d.csv"]
    assert "trace" in COMMANDS
    assert llmsched(["trace", *SMALL, "--policy", "lagrangian", "--case", "3", *files, "--against", "threshold"]) == 0
    said = capsys.readouterr().out
    scenario = make_scenario("LLMSched/GSM8K-v0", split="test", num_clients=6, num_requests=40, queue="shared")
    item = entry("lagrangian", scenario)
    makespan_s = evaluate(item.policy, item.scenario, [3]).columns["makespan_s"][0]
    assert f"40 requests in {makespan_s:.3f} s" in said
    read = json.loads((tmp_path / "t.json").read_text())
    assert_well_formed(read)
    assert slices(read, ACCELERATOR)[-1][3] == round(makespan_s * 1e9)
    assert read["otherData"]["command"].startswith("llmsched trace --clients 6")
    with (tmp_path / "sub/r.csv").open() as file:
        requests = [*csv.DictReader(file)]
    assert max(float(row["end_s"]) for row in requests) == makespan_s
    with (tmp_path / "d.csv").open() as file:
        decisions = [*csv.DictReader(file)]
    differ = [row for row in decisions if row["action"] != row["against_action"]]
    assert f"threshold would have decided otherwise at {len(differ)} of them" in said
    assert f"({len(differ)} of them tried)" in said
    marks = by_phase(read["traceEvents"], "i")
    assert [mark["name"] for mark in marks] == [row["against_action"] for row in differ]
    assert [mark["args"]["makespan_change_s"] for mark in marks] == [float(row["makespan_change_s"]) for row in differ]


def test_with_slos_goodput_is_told_too(tmp_path, capsys):
    out = ["--decisions-out", str(tmp_path / "d.csv"), "--load", "0.8", "--most-decisions", "4"]
    serving = ["--scenario", "LLMSched/ServingOrder-v1", "--requests", "80", "--clients", "6"]
    assert trace.main([*serving, "--policy", "threshold@late_last", "--against", "prefill_first@late_last", *out]) == 0
    said = capsys.readouterr().out
    assert "goodput" in said
    assert "percentage points" in said
    header = (tmp_path / "d.csv").read_text().splitlines()[0]
    assert header.endswith("against_goodput,goodput_change")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "threshold"], "nothing to write: give --trace-out"),
        (["--policy", "hybird", "--trace-out", "a.json"], "unknown policy 'hybird'. Did you mean 'hybrid'"),
        (
            ["--policy", "threshold", "--trace-out", "a.txt"],
            "--trace-out a.txt: a trace is JSON. End its name in .json",
        ),
        (["--policy", "threshold", "--requests-out", "a.json"], "--requests-out a.json: a table is CSV or Parquet"),
        (
            ["--policy", "threshold", "--requests-out", "a.csv", "--against", "tgi"],
            "its answers go to --decisions-out",
        ),
        (
            ["--policy", "threshold", "--trace-out", "a.json", "--against", "hybrid"],
            "it needs other queues or iterations",
        ),
        (["--policy", "threshold", "--trace-out", "a.json", "--against", "beam"], "--against beam: it plans a whole"),
        (["--policy", "threshold", "--trace-out", "a.json", "--case", "-1"], "case numbers start at 0"),
        (
            ["--policy", "threshold", "--trace-out", "a.json", "--most-decisions", "-1"],
            "--most-decisions -1 is out of range",
        ),
        (["--policy", "threshold", "--trace-out", "a.json", "--load", "0.5"], "load"),
    ],
)
def test_what_cannot_be_done_is_said_at_the_door(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    said = complaint(capsys, *arguments)
    assert words in said
    assert not list(tmp_path.iterdir())


def test_a_folder_in_place_of_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "a.json").mkdir()
    assert "it is a folder" in complaint(capsys, "--policy", "threshold", "--trace-out", str(tmp_path / "a.json"))
