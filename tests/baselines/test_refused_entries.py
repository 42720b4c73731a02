"""Entries that are not what they seem, and files that are no JSON of ours: a sentence and exit status 2."""

from __future__ import annotations

import re

import pytest
from boards import agents, changed, verified

from llmsched_env.agents.files import AgentFile
from llmsched_env.baselines.leaderboard import submit
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
