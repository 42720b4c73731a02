"""Evolving, choosing and judging the pretrained agents, at a size that takes seconds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llmsched_env.agents.evolution import EvolutionSettings
from llmsched_env.agents.files import AgentFile
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError

ROOT = Path(__file__).parents[2]
BENCHMARKS, PAGE = ROOT / "benchmarks", ROOT / "docs" / "agents.md"
HOME, OTHER = "gsm8k/shared/llama-65b-paper", "gsm8k-smooth/shared/llama-65b-paper"
PLACES = {
    name: Scenario(num_clients=10, num_requests=50, queue="shared", workload=name.partition("/")[0])
    for name in (HOME, OTHER)
}


@pytest.fixture
def tools(monkeypatch):
    """The modules of benchmarks/, with two small places."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import agent_tables
    import evolving
    import judging

    for module in (evolving, judging, agent_tables):
        monkeypatch.setattr(module, "PLACES", PLACES)
    monkeypatch.setattr(judging, "AGENTS", {"gsm8k": PLACES, "serving": {"Serving/0.9": None}})
    monkeypatch.setattr(judging, "best_tuned", lambda scenario: "threshold")
    return evolving, judging, agent_tables


@pytest.fixture
def study(tools, tmp_path):
    evolving, _, _ = tools
    for name in PLACES:
        for seed in (0, 1):
            evolve(evolving, tmp_path / "study", name, seed)
    return tmp_path / "study"


def evolve(evolving, study, name, seed):
    settings = EvolutionSettings(hidden=2, cases=2, pool=4)
    evolving.evolve(evolving.folder(study, name) / f"{seed}.npz", PLACES[name], settings, seed, 3000)


def test_what_was_bred_comes_back(tools, study):
    evolving, _, _ = tools
    path = study / HOME.replace("/", "_") / "1.npz"
    before = path.read_bytes()
    evolve(evolving, study, HOME, 1)
    assert path.read_bytes() == before, "what is there is not evolved again"
    found = evolving.evolved(evolving.folder(study, HOME))
    assert list(found) == [0, 1]
    path.unlink()
    evolve(evolving, study, HOME, 1)
    again = evolving.evolved(evolving.folder(study, HOME))[1]
    assert (found[1].parameters == again.parameters).all()
    assert (found[0].parameters != again.parameters).any()


def test_the_box_takes_the_best_seed_and_is_whole_or_left(tools, study, tmp_path, capsys):
    evolving, judging, _ = tools
    judging.box(study, 6, tmp_path / "weights")
    assert "serving: left as it is, since nothing is evolved for Serving/0.9" in capsys.readouterr().out
    assert not (tmp_path / "weights" / "serving.npz").exists()
    file = AgentFile.read(tmp_path / "weights" / "gsm8k.npz")
    chosen = json.loads((study / "chosen.json").read_text(encoding="utf-8"))
    assert file.seeds == tuple(chosen[name] for name in PLACES)
    for one, (name, scenario) in zip(file.trained, PLACES.items(), strict=True):
        networks = evolving.evolved(evolving.folder(study, name))
        losses = judging.BatchEvaluation(scenario.replace(split="validation"), range(6)).losses(
            judging.rows(networks), range(6)
        )
        assert (one.network.parameters == networks[int(losses[0].mean(axis=1).argmin())].parameters).all()
    for path in (study / OTHER.replace("/", "_")).iterdir():
        path.unlink()
    before = (tmp_path / "weights" / "gsm8k.npz").read_bytes()
    judging.box(study, 6, tmp_path / "weights")
    assert f"gsm8k: left as it is, since nothing is evolved for {OTHER}" in capsys.readouterr().out
    assert (tmp_path / "weights" / "gsm8k.npz").read_bytes() == before


def test_the_chosen_seed_is_judged_as_a_policy(tools, study, tmp_path, figures):
    _, judging, agent_tables = tools
    judging.box(study, 6, tmp_path / "weights")
    judging.judge(study, 4)  # test cases 4 to 7
    chosen, judged = (json.loads((study / f"{name}.json").read_text(encoding="utf-8")) for name in ("chosen", "judged"))
    for name, said in judged.items():
        # The evaluation that all seeds are judged in and the evaluation of the policy are the same simulation.
        np.testing.assert_allclose(said["runs"][chosen[name]], said["agent"]["loss"], atol=1e-12)
        assert np.shape(said["runs"]) == (2, 4)
        assert [said[x]["name"] for x in ("rule", "planner", "lagrangian")] == ["threshold", "beam", "lagrangian"]
    table = agent_tables.score_table(agent_tables.score_rows(judged))
    assert len(table.splitlines()) == 2 + len(PLACES)
    assert agent_tables.draw(judged, tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    names = [name.replace("llama-65b-", "") for name in judged]
    assert [label.get_text() for label in axes.get_yticklabels()] == names[::-1]


def test_a_picture_on_paper(tools, tmp_path, figures):
    """Losses of 3 in between a rule's 5 and a planner's 1: half of the way, and each seed's own stroke."""
    _, _, agent_tables = tools
    said = {
        "seeds": [0, 1],
        "cases": [2, 3],
        "runs": [[0.02, 0.02], [0.04, 0.04]],
        "agent": lost("agent", [0.03, 0.03]),
        "rule": lost("tuned_threshold", [0.05, 0.05]),
        "planner": lost("beam", [0.01, 0.01]),
        "lagrangian": lost("lagrangian", [0.07, 0.07]),
    }
    agent_tables.draw({HOME: said}, tmp_path / "scores.png")
    marks = {line.get_marker(): line.get_xdata() for line in figures[0].axes[0].lines}
    assert marks["|"] == pytest.approx([0.75, 0.25])
    assert marks["^"] == pytest.approx([0.5])


def lost(name, values, **more):
    return {"name": name, "loss": values, **more}


def test_a_table_on_paper(tools):
    """Means of the runs 1, 2, 3, 4 and 90 %: their middle half is 3 %, so (5 - 3) / (5 - 1) of the way."""
    _, _, agent_tables = tools
    said = {
        "seeds": [0, 1, 2, 3, 4],
        "cases": [2, 3],
        "runs": [[x / 100, x / 100] for x in (1, 2, 3, 4, 90)],
        "agent": lost("agent", [0.02, 0.02]),
        "rule": lost("tuned_threshold", [0.05, 0.05]),
        "planner": lost("beam", [0.01, 0.01]),
        "lagrangian": lost("lagrangian", [0.07, 0.07]),
    }
    (row,) = agent_tables.score_rows({HOME: said})
    assert (row["setup"], row["cases"], row["seeds"]) == ("gsm8k/shared/paper", "2-3", "5")
    percents = [row[f"{who}_percent"] for who in ("rule", "agent", "shipped_seed", "planner")]
    assert (row["rule"], percents) == ("tuned_threshold", ["5.00", "3.00", "2.00", "1.00"])
    assert (row["score"], row["against"], row["difference_points"]) == ("0.50", "lagrangian", "-4.00")
    assert row["rule_worst_token_gap_s"] == row["shipped_seed_longest_wait_s"] == "", "a batch has no latencies"
    assert list(row) == list(agent_tables.stored("agent_scores")[0]), "other columns than those that are stored"
    line = agent_tables.score_table([row]).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["gsm8k/shared/paper", "`tuned_threshold` 5.00", "3.00", "1.00"]
    assert cells[4] == f"**0.50** ({row['score_low']} to {row['score_high']})"
    level = {**said, "planner": lost("beam", [0.01, 0.1])}
    line = agent_tables.score_table(agent_tables.score_rows({HOME: level})).splitlines()[-1]
    assert line.split("|")[5].strip() == "–", "no score where the planner is not surely better"


def test_other_places_on_paper(tools):
    """Rule 3 %, agent 2 % in both cases: a point less, surely. Agent 2 and 4 %: level. Agent 4 and 4 %: worse."""
    _, _, agent_tables = tools
    rule = lost("tuned_threshold", [0.03, 0.03])
    agents = {"alpha_decode": [0.02, 0.02], "beta_decode": [0.02, 0.04], "beta_prefill": [0.04, 0.04]}
    costs = {
        f"cost/gsm8k, MIP queues, {name} -20%": place(lost("agent", values), rule, nearest=lost("gsm8k", [0.05, 0.05]))
        for name, values in agents.items()
    }
    ordered = {"order/gsm8k, hidden": place(rule, rule)}
    rows = agent_tables.elsewhere_rows({**costs, **ordered})
    assert list(rows[0]) == list(agent_tables.stored("agent_elsewhere")[0]), "other columns than those that are stored"
    assert [row["setup"] for row in rows[:3]] == [f"gsm8k, MIP queues, {name} -20%" for name in agents]
    assert [row["agent_is"] for row in rows] == ["better", "level", "worse", "level"]
    assert [row["minus_rule_points"] for row in rows] == ["-1.00", "+0.00", "+1.00", "+0.00"]
    # Two cases a point on each side of level: t(0.975, 1) = 12.71, sd / sqrt(2) = 1.
    assert [row["minus_rule_high"] for row in rows] == ["-1.00", "+12.71", "+1.00", "+0.00"]
    cost, order = agent_tables.elsewhere_table(rows).splitlines()[2:]
    cells = [cell.strip() for cell in cost.strip("|").split("|")]
    assert cells[1:] == ["3", "1", "1", "1", "-1.00 to +1.00", "+12.71", "+2.00"]
    cells = [cell.strip() for cell in order.strip("|").split("|")]
    assert cells[1:] == ["1", "0", "1", "0", "+0.00 to +0.00", "+0.00", "–"]


def place(agent, rule, *, nearest=None):
    return {"decides": "who", "agent": agent, "nearest": nearest, "rule": rule, "lagrangian": rule}


def test_the_page_has_the_tables_of_the_stored_data(tools):
    _, _, agent_tables = tools
    page = PAGE.read_text(encoding="utf-8")
    found = agent_tables.tables(agent_tables.stored("agent_scores"), agent_tables.stored("agent_elsewhere"))
    assert agent_tables.page(page, found) == page, "run python benchmarks/agent_tables.py"
    for table in found.values():
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert 2 < len(lines) <= 14
        assert max(line.count("|") for line in lines) <= 9


def test_the_page_says_what_came_of_it_elsewhere(tools):
    _, _, agent_tables = tools
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    rows = agent_tables.stored("agent_elsewhere")
    there = Counter(row["agent_is"] for row in rows)
    assert there["worse"] == 0
    assert f"better in {there['better']} of {len(rows)} places, level in the other {there['level']}" in page
    highest = max(float(row["minus_rule_high"]) for row in rows if row["change"] not in ("load", "trace"))
    assert f"upper end of an interval is {highest:+.2f} points" in page
    assert len(rows) >= 60


def test_the_page_says_what_is_not_measured(tools):
    _, _, agent_tables = tools
    page = PAGE.read_text(encoding="utf-8")
    written = agent_tables.page(page, agent_tables.tables([], []), (4.0, 8.0))
    assert "A decision takes 4.0 µs (99th percentile 8.0 µs)" in written
    assert written.count("Not measured.") == 4, "tables of another agent were left in place"


def test_a_study_is_written_as_data_and_tables(tools, tmp_path, monkeypatch):
    _, _, agent_tables = tools
    runs = [[0.03, 0.03], [0.03, 0.03]]
    said = {name: lost(name, [at, at]) for name, at in (("rule", 0.05), ("planner", 0.01), ("lagrangian", 0.07))}
    judged = {HOME: {"seeds": [0, 1], "cases": [2, 3], "runs": runs, "agent": lost("agent", [0.03, 0.03]), **said}}
    agent, rule = (lost(who, [0.5], worst_token_gap_s=[1.0], longest_wait_s=[2.0]) for who in ("agent", "rule"))
    elsewhere = {"load/`ServingOrder` at load 0.94": place(agent, rule)}
    for name in ("agents.md", "agent_scores.csv", "agent_elsewhere.csv"):
        (tmp_path / name).write_bytes((PAGE if name == "agents.md" else PAGE.parent / "data" / name).read_bytes())
    for name, folder in (("PAGE", "agents.md"), ("DATA", ""), ("PICTURE", "scores.png")):
        monkeypatch.setattr(agent_tables, name, tmp_path / folder)
    for name, value in (("judged", judged), ("decision_us", [4.0, 8.0])):
        (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    before = agent_tables.stored("agent_elsewhere")
    agent_tables.main([str(tmp_path)])
    assert agent_tables.stored("agent_elsewhere") == before, "what a study has not found stays as it is"
    assert agent_tables.stored("agent_scores") == agent_tables.score_rows(judged)
    (tmp_path / "elsewhere.json").write_text(json.dumps(elsewhere), encoding="utf-8")
    agent_tables.main([str(tmp_path)])
    (row,) = agent_tables.stored("agent_elsewhere")
    assert (row["setup"], row["agent_longest_wait_s"]) == ("ServingOrder at load 0.94", "2.00")
    text = (tmp_path / "agents.md").read_text(encoding="utf-8")
    assert "Test cases 2 to 3, 2 training seeds:" in text
    assert "| ServingOrder at load 0.94 | `rule` 50.00 | 50.00 | +0.00 (" in text
    agent_tables.main([])
    assert (tmp_path / "agents.md").read_text(encoding="utf-8") == text


def test_what_was_bred_otherwise_is_refused(tools, study):
    evolving, _, _ = tools
    path = study / HOME.replace("/", "_") / "0.npz"
    with pytest.raises(ConfigError, match=r"0\.npz was evolved with other settings"):
        evolving.evolve(path, PLACES[HOME], EvolutionSettings(hidden=2, cases=2, pool=4), 0, 6000)
    with pytest.raises(ConfigError, match=r"0\.npz was evolved with other settings"):
        evolving.evolve(path, PLACES[HOME], EvolutionSettings(hidden=3, cases=2, pool=4), 0, 3000)


def test_elsewhere_is_where_no_network_was_trained(tools):
    evolving, judging, _ = tools
    trained = [*evolving.KNOWN.values(), *evolving.SERVING.values()]  # what is shipped
    places = list(judging.elsewhere())
    assert {kind for kind, _, _ in places} >= {"clients", "cost", "load"}
    assert len({text for _, text, _ in places}) == len(places)
    for _, text, scenario in places:
        assert scenario not in trained, text
    sizes = {round(200 * size) for size in evolving.SIZES}
    assert sizes.isdisjoint(judging.CLIENTS)
