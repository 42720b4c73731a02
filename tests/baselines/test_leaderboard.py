"""The leaderboard: entries are written, read, played again and compared, and what is not as it should be is said."""

from __future__ import annotations

import csv
import json
import re
import sys

import pytest
from boards import agents, changed, verified

from llmsched_env.baselines.leaderboard import (
    Benchmark,
    read_entry,
    references,
    scored,
    standings,
    submit,
    write_entry,
)
from llmsched_env.baselines.leaderboard.scoring import differences
from llmsched_env.baselines.registry import entry as contestant
from llmsched_env.evaluation import evaluate, play, runs_estimate, score_estimate


def cells(said, scenario):
    """The row of a scenario."""
    (line,) = (line for line in said.splitlines() if line.startswith(f"| {scenario} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_an_entry_is_verified(tiny, entry, capsys):
    code, said = verified(capsys, tiny, entry)
    assert (code, said.count("\n")) == (0, 1)
    assert said.startswith("mine: verified. 3 of 3 scenarios, 15 episodes, all equal; score ")
    code, said = verified(capsys, tiny, entry, tiny.entries / "planner.json", "--scenarios", "lpt, shared")
    assert code == 0
    assert re.findall(r"(\w+): verified. 2 of 3 scenarios, 11 episodes", said) == ["mine", "planner"]


def test_its_figures_are_those_of_an_episode_and_of_a_comparison(tiny, entry):
    read = read_entry(entry, tiny)
    place = tiny.places["lpt"]
    item = contestant("lagrangian", place.scenario)
    assert read.results["lpt"].figures[0, 0] == play(item.policy, item.scenario, 3).view.clock_ns
    loss = {
        name: evaluate(contestant(name, place.scenario).policy, place.scenario, place.cases).columns["makespan_s"]
        for name in ("lagrangian", "decode_first", "beam")
    }
    follows = scored(read, tiny, references(tiny))
    assert follows.scores["lpt"] == pytest.approx(score_estimate(*loss.values()))
    assert follows.means["lpt"] == pytest.approx(loss["lagrangian"].mean())
    place = tiny.places["order"]
    item = contestant("lagrangian", place.scenario)
    goodput = evaluate(item.policy, item.scenario, place.cases).columns["goodput"]
    counted = place.scenario.slo(100)
    assert 1 - read.results["order"].figures[0] / (counted.last - counted.first) == pytest.approx(goodput)
    assert 0 < goodput.min() <= goodput.max() < 1, "all or nothing: the violations were not tested"


def test_the_references_score_0_and_1(tiny):
    for name, score in (("best_tuned_rule", 0.0), ("planner", 1.0)):
        follows = scored(read_entry(tiny.entries / f"{name}.json", tiny), tiny, references(tiny))
        assert {estimate.mean for estimate in (*follows.scores.values(), follows.score)} == {score}


def test_the_file_is_short_to_read_and_the_same_each_time(tiny, entry, tmp_path):
    lines = entry.read_text(encoding="utf-8").splitlines()
    assert sum(bool(re.fullmatch(r"   \[[\d,]+\]\]},?", line)) for line in lines) == 3, "a run is a line"
    write_entry(read_entry(entry, tiny), tiny, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == entry.read_bytes()
    said = json.loads(entry.read_text(encoding="utf-8"))
    assert (said["name"], said["made_by"], said["clairvoyant"]) == ("mine", "me", False)
    assert said["scenarios"]["order"]["cases"] == [0, 3]


def test_a_figure_that_was_changed_is_found(tiny, entry, capsys):
    before = read_entry(entry, tiny).results["shared"].figures[0]

    def one_less(said):
        said["scenarios"]["shared"]["makespan_ns"][0][4] -= 1

    changed(entry, one_less)
    code, said = verified(capsys, tiny, entry)
    assert code == 1
    assert "mine: NOT verified." in said
    row = cells(said, "shared")
    assert row[:6] == ["shared", "lagrangian", "1 of 6", "4", str(before[4] - 1), str(before[4])]
    assert not any(line.startswith(("| lpt", "| order")) for line in said.splitlines())
    # What is not played is not found.
    assert verified(capsys, tiny, entry, "--scenarios", "lpt")[0] == 0


def test_a_better_figure_moves_the_score_that_is_shown(tiny, entry, capsys):
    def faster(said):
        said["scenarios"]["lpt"]["makespan_ns"][0] = [int(0.9 * x) for x in said["scenarios"]["lpt"]["makespan_ns"][0]]

    changed(entry, faster)
    code, said = verified(capsys, tiny, entry)
    assert code == 1
    assert cells(said.partition("Over all")[0], "lpt")[2:4] == ["5 of 5", "3"]
    stated, found = (float(cell.split()[0]) for cell in cells(said.partition("Over all")[0], "lpt")[-2:])
    assert stated > found
    assert re.search(r"Over all scenarios: score stated \d.*, found \d", said)
    assert "Stated, and not what follows" in said


@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        (["scenarios", "lpt", "mean_makespan_s"], 1.0, "scenarios lpt mean_makespan_s"),
        (["scenarios", "order", "mean_violations"], None, "scenarios order mean_violations"),
        (["scenarios", "lpt", "score", "mean"], 0.99, "scenarios lpt score mean"),
        (["scenarios", "lpt", "score", "ci95"], [0.0, 9.0], "scenarios lpt score ci95 high"),
        (["scenarios", "lpt", "goodness"], 3, "scenarios lpt goodness"),
        (["score", "mean"], 0.99, "score mean"),
        (["score"], None, "score mean"),
        (["scenarios", "order", "score"], "high", "scenarios order score mean"),
    ],
)
def test_a_number_that_was_typed_in_is_found(tiny, entry, capsys, keys, value, what):
    def typed(said):
        *path, last = keys
        for key in path:
            said = said[key]
        said[last] = value

    changed(entry, typed)
    code, said = verified(capsys, tiny, entry, "--scenarios", "shared")
    assert code == 1
    assert "Stated, and not what follows from the figures" in said
    assert f"| {what} " in said
    assert "cases that differ" not in said


def test_who_knows_the_future_has_to_say_so(tiny, tmp_path, capsys):
    path = tmp_path / "planner.json"
    path.write_bytes((tiny.entries / "planner.json").read_bytes())
    changed(path, lambda said: said.update(clairvoyant=False))
    code, said = verified(capsys, tiny, path)
    assert code == 1
    assert "| clairvoyant | False  | True    |" in said


def test_roundings_of_other_machines_are_no_difference():
    assert not [*differences({"mean": 0.12340001, "ci95": [0.1, None]}, {"mean": 0.1235, "ci95": [0.1, None]})]
    assert [*differences({"mean": 0.1237}, {"mean": 0.1235})] == [("mean", 0.1237, 0.1235)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: said.clear(), "not an entry: it has no format number. Make the entry again with"),
        (lambda said: said.update(format=2), "its format is 2, this version reads 1"),
        (lambda said: said.update(benchmark="LLMSched-Bench-v9"), "an entry of 'LLMSched-Bench-v9', not of 'Tiny-v1'"),
        (lambda said: said.update(name="a|b"), "an entry cannot be called 'a|b': give 1 to 60 letters"),
        (lambda said: said.update(clairvoyant="no"), "clairvoyant = 'no' has to be of type bool"),
        (lambda said: said.update(scenarios={}), "it has no scenario: at least one of Tiny-v1 is needed"),
        (lambda said: said["scenarios"].update(lpd={}), "unknown scenario in .*mine.json: 'lpd'. Did you mean 'lpt'?"),
        (lambda said: said["scenarios"].update(lpt=[]), "scenario 'lpt' is [], it has to be an object"),
        (lambda said: said["scenarios"]["lpt"].update(cases=[0, 4]), "'lpt': cases = [0, 4], but its cases are 3 to 7"),
        (lambda said: said["scenarios"]["lpt"].update(policies=[]), "'lpt': policies = [] has to be a list of names"),
        (lambda said: said["scenarios"]["lpt"].update(policies=["a", "b"]), "makespan_ns has to be a list of 2 runs"),
        (lambda said: said["scenarios"]["order"].pop("violations"), "'order': violations has to be a list of 1 runs"),
        (lambda said: said["scenarios"]["lpt"]["makespan_ns"][0].pop(), "has a run of 4 figures, 5 are needed"),
        (lambda said: said["scenarios"]["lpt"]["makespan_ns"].__setitem__(0, 7), "has a run of 0 figures, 5 are"),
        (lambda said: said["scenarios"]["lpt"]["makespan_ns"][0].__setitem__(0, 1.5), "has 1.5: whole numbers from 0"),
        (lambda said: said["scenarios"]["lpt"]["makespan_ns"][0].__setitem__(0, True), "has True: whole numbers"),
        (lambda said: said["scenarios"]["lpt"].update(policies=["lagrangain"]), "unknown policy 'lagrangain'. Did you"),
        (lambda said: said["scenarios"]["lpt"].update(policies=["gone.npz"]), "cannot read .*gone.npz: No such file"),
        (lambda said: said["scenarios"]["lpt"].update(policies=["tgi_tuned"]), "scenario 'lpt': policy 'tgi_tuned'"),
        (lambda said: said["scenarios"]["order"].update(policies=["beam"]), "'order': policy 'beam' minimises"),
        (lambda said: said["scenarios"]["lpt"].update(policies=["hybrid"]), "'hybrid' brings queues of its own"),
        (lambda said: said["scenarios"]["lpt"].update(policies=["lagrangian@fcfs"]), "brings an order of its own, but"),
        (lambda said: said["scenarios"]["lpt"].update(policies=["my:Rule"]), "runs code of its own: read it first"),
    ],
)  # fmt: skip
def test_what_is_no_entry_is_said(tiny, entry, capsys, change, words):
    changed(entry, change)
    code, said = verified(capsys, tiny, entry)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert re.search(words if ".*" in words else re.escape(words), said), said


def test_files_and_options_that_are_none(tiny, entry, tmp_path, capsys):
    for arguments, words in (
        (["gone.json"], "cannot read gone.json: No such file or directory. Give the .json file of an entry."),
        ([entry, "--scenarios", "lpd"], "unknown scenario of Tiny-v1 'lpd'. Did you mean 'lpt'?"),
        ([entry, "--scenarios", ","], "--scenarios ',' names none: take some of shared, lpt, order"),
        ([entry, "--workers", "0"], "--workers 0 is out of range"),
    ):
        code, said = verified(capsys, tiny, *arguments)
        assert (code, words in said) == (2, True), said
    entry.write_text('{\n "format": 1,\n oops}', encoding="utf-8")
    code, said = verified(capsys, tiny, entry)
    assert (code, "mine.json, line 3: not JSON" in said) == (2, True)


def test_several_runs_of_agents(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agents(tmp_path / "runs", 1, 2, 3)
    runs = [f"runs/seed{seed}/agent.npz" for seed in (1, 2, 3)]
    command = ["ppo", "min_batch", "--in", "lpt", *runs, "--out", "out/ppo.json"]
    assert submit.main(command, benchmark=tiny) == 0
    assert "| ppo " in capsys.readouterr().out
    path = tmp_path / "out" / "ppo.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    assert said["scenarios"]["lpt"]["policies"] == [f"../{run}" for run in runs]
    assert said["scenarios"]["shared"]["policies"] == ["min_batch"]
    read = read_entry(path, tiny)
    figures = read.results["lpt"].figures
    assert figures.shape == (3, 5)
    assert len({tuple(run) for run in figures.tolist()}) == 3, "networks that play alike"
    assert said["scenarios"]["lpt"]["mean_makespan_s"] == pytest.approx(runs_estimate(figures).mean / 1e9, abs=1e-4)
    # From another folder; and one of the files is another agent.
    monkeypatch.chdir(tmp_path / "runs")
    code, out = verified(capsys, tiny, path)
    assert code == 0
    assert "3 of 3 scenarios, 25 episodes" in out
    agents(tmp_path, 4)
    (tmp_path / "seed4" / "agent.npz").replace(tmp_path / "runs" / "seed2" / "agent.npz")
    code, out = verified(capsys, tiny, path)
    assert code == 1
    assert cells(out.partition("Over all")[0], "lpt")[1] == "../runs/seed2/agent.npz"


def test_an_entry_that_lacks_a_scenario_has_no_overall_score(tiny, tmp_path, capsys):
    path = tmp_path / "part.json"
    assert submit.main(["part", "eb_threshold", "--scenarios", "lpt", "--out", str(path)], benchmark=tiny) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["score"] is None
    assert "1 of 3 scenarios, 5 episodes, all equal; no overall score." in verified(capsys, tiny, path)[1]
    code, said = verified(capsys, tiny, path, "--scenarios", "order")
    assert (code, "has none of these scenarios: order" in said) == (2, True)


def test_the_table(tiny, entry, tmp_path, capsys):
    part = tmp_path / "part.json"
    assert (
        submit.main(["part", "tgi", "--in", "lpt", "tgi", "--scenarios", "lpt", "--out", str(part)], benchmark=tiny)
        == 0
    )
    changed(entry, lambda said: said["score"].update(mean=7.0))  # what is shown follows from the figures
    capsys.readouterr()
    assert standings.main([str(entry), str(part), "--out", str(tmp_path / "out")], benchmark=tiny) == 0
    said = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if "| " in line]
    rows, scenarios = lines[2:6], lines[6:]
    assert [row[1] for row in rows] == ["planner †", "mine", "best_tuned_rule", "part"]
    assert [row[0] for row in rows] == ["–", "1", "2", "–"]
    assert (rows[0][2], rows[3][2]) == ("1.00 [1.00, 1.00]", "–")
    assert scenarios[0] == ["scenario", "mine", "part"]
    assert [row[0] for row in scenarios[2:]] == [*tiny.places]
    assert [row[2] == "–" for row in scenarios[2:]] == [name != "lpt" for name in tiny.places]
    both = [read_entry(one, tiny) for one in (entry, part)]
    columns = standings.by_scenario(both, tiny, given=both[1:], most=1).splitlines()[0]
    assert "part" in columns
    assert "mine" not in columns
    assert 0 < float(rows[1][2].split()[0]) < 1
    with (tmp_path / "out" / "leaderboard.csv").open(encoding="utf-8") as file:
        lines = {line["entry"]: line for line in csv.DictReader(file)}
    assert lines["mine"]["rank"] == "1"
    assert float(lines["planner"]["lpt/score_low"]) == 1.0
    assert lines["part"]["order/mean_violations"] == ""
    assert (tmp_path / "out" / "leaderboard.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_each_score_with_its_interval(tiny, entry, tmp_path, figures):
    entries = [*standings.shipped_entries(tiny), read_entry(entry, tiny)]
    standings.draw(tmp_path / "x.png", entries, tiny)
    (figure,) = figures
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["planner †", "mine", "best_tuned_rule"]
    assert re.match(r"mine is first on Tiny-v1 with score 0\.\d\d ", axes.get_title(loc="left"))


def test_what_submit_refuses(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    for words, said in (
        (["-x"], "arguments are required: NAME"),
        (["a|b", "tgi"], "an entry cannot be called 'a|b'"),
        (["mine"], "no policy: give one for all scenarios, or --in SCENARIO POLICY for some."),
        (["mine", "--in", "lpd", "tgi"], "unknown scenario of Tiny-v1 'lpd'"),
        (["mine", "--in", "lpt"], "--in lpt: give its policies once, one or more."),
        (["mine", "--in", "lpt", "tgi", "--in", "lpt", "tgi"], "--in lpt: give its policies once"),
        (["mine", "--in", "lpt", "tgi", "--scenarios", "lpt"], "--scenarios chooses where one policy is played"),
        (["mine", "beam"], "scenario 'order': policy 'beam' minimises the makespan of a batch"),
        (["mine", "tgi", "--out", "mine.txt"], "cannot write mine.txt: give the path of a .json file in --out."),
        (["mine", "tgi", "--out", "folder.json"], "cannot write folder.json: give the path of a .json file"),
    ):
        try:
            code = submit.main(words, benchmark=tiny)
        except SystemExit as end:
            code = end.code
        assert code == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def test_code_of_ones_own_is_run_where_it_is_allowed(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "ten_idle_rule.py").write_text(
        "class TenIdle:\n    name, kind, clairvoyant = 'ten_idle', 'rule', False\n"
        "    def reset(self, start): pass\n"
        "    def act(self, view): return int(view.idle >= 3)\n"
    )
    command = ["mine", "ten_idle_rule:TenIdle", "--scenarios", "shared"]
    assert submit.main(command, benchmark=tiny) == 2
    assert "runs code of its own: read it first, then allow it with --own-code" in capsys.readouterr().err
    assert "ten_idle_rule" not in sys.modules
    assert submit.main([*command, "--own-code"], benchmark=tiny) == 0
    assert verified(capsys, tiny, "mine.json")[0] == 2
    assert verified(capsys, tiny, "mine.json", "--own-code")[0] == 0
    del sys.modules["ten_idle_rule"]


def test_references_have_to_be_whole(tiny, tmp_path, capsys):
    other = Benchmark(tiny.name, tiny.places, tmp_path)
    path = tmp_path / "mine.json"
    assert submit.main(["mine", "tgi", "--out", str(path)], benchmark=other) == 2
    assert "cannot read" in capsys.readouterr().err
    for name in ("planner", "best_tuned_rule"):
        (tmp_path / f"{name}.json").write_bytes((tiny.entries / f"{name}.json").read_bytes())
    changed(tmp_path / "planner.json", lambda said: said["scenarios"].pop("lpt"))
    assert submit.main(["mine", "tgi", "--out", str(path)], benchmark=other) == 2
    assert "a reference needs one run in every scenario, 'lpt' too" in capsys.readouterr().err
