"""Entries that are not what they seem, and files that are no JSON of ours: a sentence and exit status 2."""

from __future__ import annotations

import json
import re
import sys

import pytest
from boards import agents, changed, verified

from llmsched_env.agents.files import AgentFile
from llmsched_env.baselines.leaderboard import standings, submit
from llmsched_env.errors import PathError


def refused(capsys, bench, *arguments, words):
    code, said = verified(capsys, bench, *arguments)
    assert (code, said.count("\n")) == (2, 1), said[:500]
    assert said.startswith("error: ")
    assert re.search(words, said), said[:500]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            '"name": "mine"',
            '"name": "other", "name": "mine"',
            "mine.json: it says 'name' twice: which of the two",
        ),
        ('"policies"', '"cases": [0, 1], "policies"', "it says 'cases' twice"),
        ('"format": 1', '"format": true', "its format is True, this version reads 1"),
        ('"format": 1', '"format": 1.0', r"its format is 1\.0, this version reads 1"),
        ('"cases": [0, 5]', '"cases": [false, 5]', r"'shared': cases = \[False, 5\], but its cases are 0 to 5"),
        ('"cases": [3, 7]', '"cases": [3.0, 7.0]', r"'lpt': cases = \[3\.0, 7\.0\], but its cases are 3 to 7"),
        ('"name": "mine"', '"name": "mine  "', "cannot be called 'mine  ': .* and no blank at the end"),
        ('"made_by": "me"', f'"made_by": {"9" * 5000}', "it has a number of too many digits. Make the entry again"),
        ('"made_by": "me"', f'"made_by": {"[" * 100_000}', "its values are nested too deeply. Make the entry again"),
        ('"lagrangian"', '"a\\u0000.npz"', r"policy 'a\\x00\.npz' has characters that no name has"),
        ('"lagrangian"', '"\\ud800.npz"', r"policy '\\ud800\.npz' has characters that no name has"),
    ],
)
def test_json_that_says_something_else(tiny, entry, capsys, old, new, words):
    text = entry.read_text(encoding="utf-8")
    assert old in text, "nothing was changed"
    entry.write_text(text.replace(old, new, 1), encoding="utf-8")
    refused(capsys, tiny, entry, words=words)


def test_a_score_beyond_all_floats_is_not_what_follows(tiny, entry, capsys):
    changed(entry, lambda said: said["score"].update(mean=10**400))
    code, said = verified(capsys, tiny, entry, "--scenarios", "shared")
    assert code == 1
    assert "| score mean | 1000" in said


@pytest.mark.parametrize("name", ["a\0.npz", "\ud800.npz"])
def test_paths_that_no_file_has(name):
    with pytest.raises(PathError, match=r"cannot read '.*\.npz': .* Give the \.npz file of an agent"):
        AgentFile.read(name)


def test_a_policy_counts_once(tiny, entry, tmp_path, monkeypatch, capsys):
    def twice(said):
        one = said["scenarios"]["lpt"]
        one.update(policies=one["policies"] * 2, makespan_ns=one["makespan_ns"] * 2)

    changed(entry, twice)
    refused(capsys, tiny, entry, words="scenario 'lpt': policy 'lagrangian' is given twice, and each is a training run")
    monkeypatch.chdir(tmp_path)
    agents(tmp_path, 1, 2)
    runs = ["seed1/agent.npz", "seed2/agent.npz"]
    command = ["ppo", "--in", "lpt", "--out", "ppo.json"]
    assert submit.main([*command[:3], *runs, "seed2/../seed1/agent.npz", *command[3:]], benchmark=tiny) == 2
    assert "policy 'seed1/agent.npz' is given twice" in capsys.readouterr().err
    assert submit.main([*command[:3], *runs, *command[3:]], benchmark=tiny) == 0
    changed(tmp_path / "ppo.json", lambda said: said["scenarios"]["lpt"].update(policies=[runs[0], f"./{runs[0]}"]))
    refused(capsys, tiny, "ppo.json", words="policy 'seed1/agent.npz' is given twice")


def test_the_future_is_looked_for_in_every_scenario(tiny, entry, tmp_path, capsys):
    changed(entry, lambda said: said["scenarios"]["order"].update(policies=["lookahead"]))
    code, said = verified(capsys, tiny, entry, "--scenarios", "lpt")
    assert code == 1
    assert "| clairvoyant | False  | True    |" in said
    # Agents are not, and their files are not opened where they do not play.
    changed(entry, lambda said: said["scenarios"]["order"].update(policies=["gone.npz"]))
    assert verified(capsys, tiny, entry, "--scenarios", "lpt")[0] == 0


def test_a_planner_has_no_rank_whatever_its_entry_says(tiny, tmp_path, capsys):
    path = tmp_path / "cheat.json"
    path.write_bytes((tiny.entries / "planner.json").read_bytes())
    changed(path, lambda said: said.update(clairvoyant=False, name="cheat"))
    assert standings.main([str(path)], benchmark=tiny) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["–", "cheat †", "1.00 [1.00, 1.00]"] in rows
    assert ["1", "best_tuned_rule", "0.00 [0.00, 0.00]"] in rows


RULES = """
class Rule:
    name, kind, clairvoyant = "own", "rule", False
    def reset(self, start): self.asked = 0
    def act(self, view):
        self.asked += 1
        return self.fails() if self.asked > 3 else 1

class Exits(Rule):
    def fails(self): raise SystemExit(0)

class Raises(Rule):
    def fails(self): raise RuntimeError("boom:\\nin the middle")

class Stops(Rule):
    def fails(self): raise KeyboardInterrupt

def leaves(): raise SystemExit(0)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of rules that fail."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "failing_rules.py").write_text(RULES, encoding="utf-8")
    yield "failing_rules"
    sys.modules.pop("failing_rules", None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Exits", r"policy 'own' raised SystemExit: 0 \(failing_rules\.py, line 10\)\. It has to finish every case\."),
        ("Raises", r"policy 'own' raised RuntimeError: boom: in the middle \(failing_rules\.py, line 13\)\. It has"),
        ("leaves", r"policy 'failing_rules:leaves' raised SystemExit: 0 \(failing_rules\.py, line 18\)"),
    ],
)
def test_code_that_fails_is_said(tiny, entry, own, capsys, name, words):
    changed(entry, lambda said: said["scenarios"]["lpt"].update(policies=[f"{own}:{name}"]))
    refused(capsys, tiny, entry, "--own-code", words=words)
    assert submit.main(["mine", f"{own}:{name}", "--in", "lpt", "tgi", "--own-code"], benchmark=tiny) == 2


def test_an_exit_in_a_worker_is_said(tiny, entry, own, capsys):
    changed(entry, lambda said: said["scenarios"]["lpt"].update(policies=[f"{own}:Exits"]))
    refused(
        capsys,
        tiny,
        entry,
        "--own-code",
        "--workers",
        "2",
        "--scenarios",
        "lpt",
        words=r"policy 'own' raised SystemExit: 0\. It has to finish every case\.",
    )


def test_an_interruption_is_none_of_its_failures(tiny, entry, own, capsys):
    changed(entry, lambda said: said["scenarios"]["lpt"].update(policies=[f"{own}:Stops"]))
    assert verified(capsys, tiny, entry, "--own-code")[0] == 130


def test_the_table_does_not_run_own_code(tiny, entry, own, capsys):
    changed(entry, lambda said: said["scenarios"]["lpt"].update(policies=[f"{own}:leaves"]))
    assert standings.main([str(entry)], benchmark=tiny) == 0
    assert "Not checked for the future, since code of their own is not run here: mine." in capsys.readouterr().out
    assert own not in sys.modules
    refused(capsys, tiny, entry, "--scenarios", "shared", words="runs code of its own: read it first")


def test_a_link_is_replaced_and_its_agents_are_found(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agents(tmp_path, 1)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    target = tmp_path / "deep" / "er" / "target.json"
    target.write_text("{}")
    (tmp_path / "link.json").symlink_to(target)
    assert submit.main(["ppo", "--in", "lpt", "seed1/agent.npz", "--out", "link.json"], benchmark=tiny) == 0
    said = json.loads((tmp_path / "link.json").read_text(encoding="utf-8"))
    assert said["scenarios"]["lpt"]["policies"] == ["seed1/agent.npz"]
    assert verified(capsys, tiny, "link.json")[0] == 0
    assert target.read_text() == "{}"
