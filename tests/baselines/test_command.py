"""``python -m baselines``, in this process, on small cases."""

from __future__ import annotations

import csv
import json
import math
import sys
import textwrap

import pytest

import llmsched_env.baselines.__main__ as command
from llmsched_env.baselines import METHODS, POLICIES
from llmsched_env.baselines.registry import AGENTS, MEMORY_POLICIES, MIXED_POLICIES, SLACK_POLICIES, SLO_POLICIES
from llmsched_env.config import ORDER_CODES
from llmsched_env.errors import ConfigError

SMALL = ["--requests", "60", "--clients", "8", "--cases", "3"]
FEW = ["--policies", "baseline,hybrid,threshold,beam"]

ROW = {
    "kind",
    "clairvoyant",
    "parameters",
    "score",
    "decision_us",
    "makespan_s",
    "utilization",
    "gap_to_bound",
    "prefills",
    "decodes",
}
TOP = {"scenario", "split", "cases", "seed", "bound_s", "policies"}
PLANNERS = {"rollout", "beam", "beam_1", "always_worst"}
ALSO = {"score_reference", "score_planner"}
"""Beyond the agreed keys: what scores count from and to."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder of a user; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def run(*arguments):
    return command.main([*SMALL, *arguments])


def run_json(path, *arguments):
    assert run("--json", str(path), *arguments) == 0
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


def complaint(capsys, *arguments):
    """What an unusable command line is answered with: one line, and exit code 2."""
    try:
        code = command.main([*arguments])
    except SystemExit as end:  # argparse
        code = end.code
    assert code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Traceback" not in said
    assert "error: " in said
    return said


def numbers(value):
    if isinstance(value, dict):
        return [x for item in value.values() for x in numbers(item)]
    if isinstance(value, list):
        return [x for item in value for x in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def test_json_has_the_agreed_shape(tmp_path):
    found = run_json(tmp_path / "deep" / "result.json")
    assert set(found) == TOP | ALSO
    assert (found["scenario"], found["split"], found["cases"], found["seed"]) == ("LLMSched/GSM8K-v0", "test", 3, 0)
    assert set(found["bound_s"]) == {"mean"}
    assert [*found["policies"]] == [*(name for name in METHODS if name != "joint"), *POLICIES, *AGENTS]
    for name, row in found["policies"].items():
        assert set(row) == ROW
        kinds = {**dict.fromkeys(METHODS, "method"), **dict.fromkeys(PLANNERS, "planner"), "agent": "agent"}
        assert row["kind"] == kinds.get(name, "rule")
        for metric in ("makespan_s", "utilization", "gap_to_bound", "score", "prefills", "decodes"):
            assert set(row[metric]) == {"mean", "ci95"}
            low, high = row[metric]["ci95"]
            assert low is high is None or low <= row[metric]["mean"] <= high
        assert set(row["decision_us"]) == {"p50", "p99", "max"}
        assert 0 < row["decision_us"]["p50"] <= row["decision_us"]["p99"] <= row["decision_us"]["max"]
        assert 0 < row["utilization"]["mean"] <= 1
        assert row["makespan_s"]["mean"] >= found["bound_s"]["mean"]
        assert row["gap_to_bound"]["mean"] >= 0
    assert all(math.isfinite(x) for x in numbers(found))
    blind = {name for name, row in found["policies"].items() if not row["clairvoyant"]}
    assert blind == {"baseline", "baseline_lagrangian"}, "the other rows run on queues made and sorted by lengths"
    assert found["policies"][found["score_reference"]]["score"]["mean"] == 0
    assert found["policies"][found["score_planner"]]["score"]["mean"] == 1
    assert [*(tmp_path / "deep").iterdir()] == [tmp_path / "deep" / "result.json"]


def test_one_case_and_one_client_leave_nulls_not_nans(tmp_path):
    found = run_json(tmp_path / "result.json", "--clients", "1", "--requests", "5", "--cases", "1", *FEW)
    row = found["policies"]["threshold"]
    assert row["makespan_s"]["ci95"] == [None, None]
    assert row["score"] == {"mean": None, "ci95": [None, None]}
    assert row["decision_us"] == {"p50": None, "p99": None, "max": None}


def test_tables_are_printed(capsys):
    assert run() == 0
    out = capsys.readouterr().out
    for text in (
        "LLMSched/GSM8K-v0, split test, 3 cases, 8 clients",
        "lower bound",
        "| hybrid ",
        "score",
    ):
        assert text in out
    # What the paper printed is about 200 clients and its own requests.
    assert "201.00 s" not in out
    # Rules and planners best first, planner on top.
    rows = [line.split("|")[1].strip() for line in out.splitlines() if "| rule " in line or "| planner " in line]
    assert sorted(rows) == sorted(POLICIES)
    assert rows[0] in {"beam", "beam_1"}
    assert rows[-1] in {"decode_first", "always_worst", "static_batching"}


def test_options_reach_the_scenario(tmp_path):
    options = ("--split", "validation", "--cases", "4-5", "--seed", "7", "--queue", "shared", "--order", "fcfs")
    options += ("--lengths", "hidden")
    found = run_json(
        tmp_path / "x.json", *options, "--policies", "threshold, random", "--scenario", "LLMSched/GSM8K-Smooth-v0"
    )
    assert (found["scenario"], found["split"]) == ("LLMSched/GSM8K-Smooth-v0", "validation")
    assert (found["cases"], found["seed"], [*found["policies"]]) == (2, 7, ["threshold", "random"])
    assert not found["policies"]["threshold"]["clairvoyant"]
    # The same again: the same numbers, decision times apart.
    again = run_json(
        tmp_path / "x.json",
        *options,
        "--policies",
        "threshold,random,threshold",
        "--scenario",
        "LLMSched/GSM8K-Smooth-v0",
    )
    for result in (found, again):
        for row in result["policies"].values():
            del row["decision_us"]
    assert found == again


def test_the_folder_holds_tables_and_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "draw", lambda comparison, entries, folder: [])
    out = tmp_path / "new" / "results"
    assert run("--out", str(out), *FEW) == 0
    assert {path.name for path in out.iterdir()} == {"comparison.json", "configuration.json", "table.csv", "table.md"}
    assert f"Written to {out}" in capsys.readouterr().out
    configuration = json.loads((out / "configuration.json").read_text(encoding="utf-8"))
    assert configuration["command"].startswith("python -m baselines --requests 60 --clients 8")
    assert configuration["cases"] == [0, 1, 2]
    assert {"numpy", "gymnasium"} <= set(configuration["packages"])
    with (out / "table.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert {row["policy"] for row in rows} == {"baseline", "hybrid", "threshold", "beam"}
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    (makespan,) = (row for row in rows if (row["policy"], row["metric"]) == ("hybrid", "makespan_s"))
    assert float(makespan["mean"]) == found["policies"]["hybrid"]["makespan_s"]["mean"]
    assert "| hybrid " in (out / "table.md").read_text(encoding="utf-8")


def test_workers_share_the_cases_and_keep_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "draw", lambda comparison, entries, folder: [])
    alone = tmp_path / "alone"
    assert run("--out", str(alone), *FEW) == 0
    out = tmp_path / "shared"
    kept = []
    for workers in ("2", "1"):
        assert run("--out", str(out), "--workers", workers, *FEW) == 0
        assert f"Cases, for another run of this command: {out / 'chunks'}" in capsys.readouterr().out
        assert (out / "table.csv").read_bytes() == (alone / "table.csv").read_bytes()
        kept.append({path.name: path.stat().st_mtime_ns for path in (out / "chunks").iterdir()})
    assert len(kept[0]) == 5, "four policies, and the tuned rule that scores count from"
    assert kept[0] == kept[1]
    assert not (alone / "chunks").exists()


def test_the_folder_holds_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    assert run("--out", str(tmp_path), *FEW) == 0
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(pictures) == {"timelines.png", "gap_by_policy.png", "multiplier_effect.png"}
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())


def test_the_timelines_are_of_policies_that_were_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(
        command.pictures, "timelines", lambda path, runs, title: drawn.extend([title, *(name for name, _ in runs)])
    )
    assert run("--out", str(tmp_path), "--policies", "threshold,lagrangian,decode_first") == 0
    assert drawn == ["LLMSched/GSM8K-v0, test case 0", "threshold", "decode_first"]
    assert not (tmp_path / "multiplier_effect.png").exists()
    drawn.clear()
    assert run("--out", str(tmp_path), *FEW) == 0
    assert drawn[1:] == ["baseline", "hybrid"]


OWN = textwrap.dedent(
    '''
    from llmsched_env.baselines.rule import Rule
    from llmsched_env.policy import FunctionRule

    class Patient:
        """Prefill when three clients are ready."""

        name, kind, clairvoyant = "patient", "rule", False

        def reset(self, start):
            assert start.simulator is None

        def act(self, view):
            return int(view.ready >= 3)

    def rule(view, parameters, memory):
        return 1 if view.ready >= parameters[0] else 0

    def compiled():
        return Rule("patient_compiled", FunctionRule, (rule, (3.0,)))

    def named_as_a_baseline():
        policy = Patient()
        policy.name = "beam"
        return policy

    def with_another_kind():
        policy = Patient()
        policy.kind = "method"
        return policy

    def no_policy():
        return 3

    def needs(number):
        return Patient()

    def fails():
        raise RuntimeError("no weights")

    made = Patient()
    '''
)


def test_own_policies(folder):
    (folder / "my_own_policies.py").write_text(OWN)
    names = "threshold,my_own_policies:Patient,my_own_policies:compiled"
    found = run_json(folder / "x.json", "--queue", "shared", "--policies", names)["policies"]
    assert [*found] == ["threshold", "patient", "patient_compiled"]
    asked, ran = found["patient"], found["patient_compiled"]
    for row in (asked, ran):
        del row["decision_us"]
    assert asked == ran
    assert asked["kind"] == "rule"
    assert found["threshold"]["makespan_s"] != asked["makespan_s"]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("my_bad_policies:no_policy", "is not a policy: it lacks name, kind, clairvoyant, reset, act"),
        ("my_bad_policies:Patien", "unknown factory in module 'my_bad_policies': 'Patien'. Did you mean 'Patient'"),
        ("my_bad_policies:made", "made() raised TypeError"),
        ("my_bad_policies:needs", "needs() raised TypeError.*without arguments"),
        ("my_bad_policies:fails", "fails() raised RuntimeError: no weights"),
        ("my_bad_policies:named_as_a_baseline", "calls itself 'beam', a baseline's name"),
        ("my_bad_policies:with_another_kind", "kind of policy .*'method'. Known: agent, planner, rule"),
        ("my_broken_policies:anything", "cannot import 'my_broken_policies' (SyntaxError"),
        ("no_such_module:anything", "cannot import 'no_such_module' (ModuleNotFoundError"),
        (":anything", "cannot import ''"),
        (".relative:anything", "cannot import '.relative'"),
    ],
)
def test_own_policies_that_are_none(folder, capsys, policy, words):
    (folder / "my_bad_policies.py").write_text(OWN)
    (folder / "my_broken_policies.py").write_text("x = (")
    said = complaint(capsys, *SMALL, "--policies", policy)
    first, _, rest = words.partition(".*")
    assert first in said
    assert rest in said


def test_two_own_policies_of_one_name(folder, capsys):
    (folder / "my_first.py").write_text(OWN)
    (folder / "my_second.py").write_text(OWN)
    said = complaint(capsys, *SMALL, "--queue", "shared", "--policies", "my_first:Patient,my_second:Patient")
    assert "more than one policy is called 'patient'" in said


@pytest.mark.parametrize("cases", ["0", "x", "5-2", "-1", "", "3-", "1.5", "99999999999999999999", "0-99999999999999"])
def test_unusable_case_numbers(capsys, cases):
    assert f"--cases {cases!r}: give a count from 1 to " in complaint(capsys, f"--cases={cases}")


def test_case_numbers():
    assert command.parse_cases("3").tolist() == [0, 1, 2]
    assert command.parse_cases("5-7").tolist() == [5, 6, 7]
    assert command.parse_cases("5-5").tolist() == [5]
    with pytest.raises(ConfigError):
        command.parse_cases("7-5")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "LLMSched/GSM8K-v1"], "unknown scenario 'LLMSched/GSM8K-v1'. Did you mean 'LLMSched/GSM8K-v0'"),
        (["--policies", "lagrangain"], "unknown policy 'lagrangain'. Did you mean 'lagrangian'"),
        (["--policies", ","], "names no policy: see --list"),
        (
            ["--policies", "runs/first/model.zip"],
            "'llmsched export MODEL.zip --algo ALGO --scenario ID --out AGENT.npz'",
        ),
        (["--policies", "m.zip@fcfs"], "SB3Policy.load(path, algo)"),
        (["--arguments", "max_iterations=20"], "--arguments max_iterations=20: whole episodes are played here"),
        (["--cost", "llama-65b"], "unknown cost preset 'llama-65b'. Did you mean 'llama-65b-paper"),
        (["--clients", "0"], "--clients 0 is out of range"),
        (["--clients", "many"], "argument --clients: invalid int value: 'many'"),
        (["--requests", "0"], "--requests 0 is out of range"),
        (["--queue", "share"], "unknown queue 'share'. Did you mean 'shared'"),
        (["--order", "lpt"], "unknown order 'lpt'"),
        (["--split", "tests"], "unknown split 'tests'. Did you mean 'test'"),
        (["--seed", "-1"], "--seed -1 is out of range"),
        (["--workers", "0"], "--workers 0 is out of range"),
        (["--workers", "2", "--engine", "lokki"], "unknown engine 'lokki'. Did you mean 'loky'"),
    ],
)
def test_unusable_arguments(capsys, arguments, words):
    assert words in complaint(capsys, *SMALL, *arguments)


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_paths_that_cannot_be_written(tmp_path, capsys, monkeypatch, option):
    monkeypatch.setattr(command, "compare", lambda *_, **__: pytest.fail("the long work came first"))
    file = tmp_path / "file"
    file.write_text("")
    said = complaint(capsys, *SMALL, option, str(file / "below"))
    assert "cannot write" in said
    assert str(file) in said
    if option == "--json":
        assert "it is a folder" in complaint(capsys, *SMALL, option, str(tmp_path))
    assert [*tmp_path.iterdir()] == [file]


def test_an_interrupt_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "compare", interrupted)
    path = tmp_path / "x.json"
    assert run("--json", str(path), "--out", str(tmp_path / "out"), *FEW) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [*tmp_path.glob("**/*")] == [tmp_path / "out"]
    assert run("--out", str(tmp_path / "out"), "--workers", "2", *FEW) == 130
    assert f"kept in {tmp_path / 'out' / 'chunks'}: the same command" in capsys.readouterr().err


def test_list(capsys):
    assert command.main(["--list"]) == 0
    *listed, rules_under_an_order = capsys.readouterr().out.splitlines()
    assert listed == [*METHODS, *POLICIES, *SLO_POLICIES, *MEMORY_POLICIES, *MIXED_POLICIES, *SLACK_POLICIES, *AGENTS]
    assert rules_under_an_order == f"Rules under an order: rule@order, with {', '.join(ORDER_CODES)}."


def test_a_file_of_ones_own(tmp_path, capsys):
    file = tmp_path / "recorded.csv"
    file.write_text("prompt_tokens,output_tokens\n" + "".join(f"{20 + i},{5 + i % 40}\n" for i in range(60)))
    options = ("--cases", "1", "--clients", "6", "--policies", "baseline,hybrid")
    assert command.main(["--workload", str(file), *options]) == 0
    out = capsys.readouterr().out
    assert "Workload recorded." in out
    assert "201.00 s" not in out
    assert command.main(["--workload", "gsm9k", *options]) == 2
    assert "Did you mean 'gsm8k'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "place",
    [
        ("LLMSched/KVMemory-v0", "kv_budget_tokens=2000,num_clients=12", "lagrangian,memory_aware"),
        ("LLMSched/Migration-v0", "move_gb_per_s=12.5", "lagrangian,prefill_first"),
        ("LLMSched/GSM8K-Blind-v0", "mixed_tokens=64", "mixed_first,prefill_first"),
    ],
    ids=["memory", "moves", "mixed"],
)
def test_worlds_with_queues_of_their_own_have_pictures_too(place, tmp_path, capsys):
    """One case has no interval, and the methods' queues are not theirs."""
    scenario, arguments, policies = place
    size = ("--requests", "30", "--clients", "6") if "num_clients" not in arguments else ("--requests", "30")
    options = ["--scenario", scenario, "--cases", "1", "--arguments", arguments, "--policies", policies, *size]
    assert command.main([*options, "--out", str(tmp_path)]) == 0
    assert {"gap_by_policy.png", "timelines.png"} <= {path.name for path in tmp_path.iterdir()}
    assert command.main([*options[:-2], "--arguments", "noise=1"]) == 2
    assert "unknown scenario argument 'noise'" in capsys.readouterr().err
    assert command.main(["--scenario", scenario, "--queue", "shared", "--arguments", "queue=client"]) == 2
