"""The entries of the leaderboard that are shipped: what they state follows, and the page shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import llmsched_env.baselines.__main__ as comparison
from llmsched_env import cli
from llmsched_env.baselines.leaderboard import LLMSCHED_BENCH, references, scored, standings
from llmsched_env.baselines.leaderboard.scoring import differences
from llmsched_env.baselines.registry import fixed_order_planner
from llmsched_env.baselines.tuned import _key, _stored, best_tuned, tunable

ROOT = Path(__file__).parents[2]


def shipped():
    return {entry.path.stem: entry for entry in standings.shipped_entries(LLMSCHED_BENCH)}


def test_shipped_entries_state_what_follows_from_their_figures():
    ends, entries = references(LLMSCHED_BENCH), shipped()
    assert len(entries) > 20
    for name, entry in entries.items():
        assert entry.name == name
        assert not [*differences(entry.stated, scored(entry, LLMSCHED_BENCH, ends).as_json(LLMSCHED_BENCH))]


def test_in_each_scenario_there_is_something_to_win():
    planner = shipped()["planner"].stated
    assert [*planner["scenarios"]] == [*LLMSCHED_BENCH.places]
    for name, said in planner["scenarios"].items():
        assert said["score"]["mean"] == 1.0, f"{name}: the planner is not surely better than the best tuned rule"


@pytest.mark.parametrize("name", LLMSCHED_BENCH.places)
def test_the_planner_is_far_ahead_of_the_best_tuned_rule(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import leaderboard

    assert leaderboard.headroom(name).enough(LLMSCHED_BENCH.places[name].scenario.serving)


def test_the_references_are_the_best_tuned_rule_and_the_planner():
    entries = shipped()
    for name, place in LLMSCHED_BENCH.places.items():
        scenario = place.scenario
        orders = [scenario] if not scenario.choose_order else [scenario.replace(choose_order=False)]
        missing = [rule for where in orders for rule in tunable(where) if _key(where, rule) not in _stored()]
        assert not missing, f"add {name} to default_scenarios, and run python -m llmsched_env.baselines.tuned"
        assert entries["best_tuned_rule"].results[name].policies == (best_tuned(scenario),)
        assert entries["planner"].results[name].policies == (fixed_order_planner(scenario),)
        assert len(place.cases) >= 20


def test_a_shipped_entry_is_verified(capsys):
    path = LLMSCHED_BENCH.entries / "lagrangian.json"
    cheap = [
        name
        for name, place in LLMSCHED_BENCH.places.items()
        if place.scenario.queue == "shared" and not place.scenario.serving
    ]
    name = cheap[0]
    assert comparison.main(["verify", str(path), "--scenarios", name]) == 0
    assert "lagrangian: verified. 1 of " in capsys.readouterr().out


def test_the_page_is_the_table_of_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import leaderboard

    page = (ROOT / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    assert "| rank " in page, "the page has no table: nothing was tested"
    assert page == leaderboard.page(page), "run benchmarks/leaderboard.py --entries ''"
    path = standings.write_csv(tmp_path / "x.csv", [*shipped().values()], LLMSCHED_BENCH)
    assert path.read_bytes() == (ROOT / "docs" / "leaderboard.csv").read_bytes()
    assert set(leaderboard.ENTRIES) <= set(shipped())


def test_every_way_to_call_it(capsys):
    for said in (lambda: cli.main(["leaderboard"]), lambda: comparison.main(["leaderboard"])):
        assert said() == 0
        out = capsys.readouterr().out
        assert out.startswith("LLMSched-Bench-v1. Score: 0 = the best tuned rule of each scenario, 1 = the planner;")
        assert "| planner †" in out
    for command in ("leaderboard", "submit", "verify"):
        for main, prefix in ((cli.main, "llmsched"), (comparison.main, "python -m baselines")):
            with pytest.raises(SystemExit) as end:
                main([command, "--help"])
            assert end.value.code == 0
            assert capsys.readouterr().out.startswith(f"usage: {prefix} {command} ")
    assert np.all([place.cases.step == 1 for place in LLMSCHED_BENCH.places.values()])
