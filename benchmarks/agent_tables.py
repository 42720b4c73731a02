"""Tables, data and the picture of docs/agents.md, from what benchmarks/judging.py found.

    python benchmarks/agent_tables.py DIR  # writes docs/data/agent_*.csv, the tables and the picture
    python benchmarks/agent_tables.py      # writes the tables again, from those files

All that was found is in the CSV files. The page has the rows that say most.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evolving import PLACES
from judging import SERVED, kept
from result_tables import ROOT

from llmsched_env.evaluation import Estimate, mean_estimate, runs_estimate, score_estimate
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, new_figure, plain, save
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced

PAGE = ROOT / "docs" / "agents.md"
DATA = ROOT / "docs" / "data"
PICTURE = ROOT / "docs" / "images" / "agent_scores.png"

AIM = 0.6
"""The score that the project set itself for known lengths."""

FOUND = ("judged", "elsewhere", "decision_us")
"""What a study may have found; tables of what it has not stay as they are."""

CHANGES = {
    "clients": "number of clients (50 to 1,000)",
    "requests": "300 requests",
    "cost": "one cost parameter, by a fifth; α_p × 10",
    "machine": "five other models and machines",
    "order": "first come, first served",
    "lengths": "bimodal, lognormal, heavy tails",
    "predicted": "predicted lengths",
    "load": "SLOs, other loads",
    "trace": "SLOs, recorded traces",
}
"""What is changed, by how judging.py calls it."""

Rows = list[dict[str, str]]
"""Lines of a CSV file: text by column."""


def _percent(values: Any, digits: int = 2) -> str:
    return f"{100 * float(np.mean(values)):.{digits}f}"


def _estimate(name: str, found: Estimate) -> dict[str, str]:
    """Mean and interval of a difference, in points."""
    values = {"points": found.mean, "low": found.low, "high": found.high}
    return {f"{name}_{end}": f"{100 * value:+.2f}" for end, value in values.items()}


def _score(said: dict[str, Any]) -> Estimate:
    return score_estimate(said["runs"], said["rule"]["loss"], said["planner"]["loss"])


def _tails(agent: str, said: dict[str, Any]) -> dict[str, str]:
    """Worst token gap and longest wait under the rule and the agent; empty for a batch."""
    return {
        f"{who}_{metric}": f"{np.mean(said[of][metric]):.2f}" if metric in said[of] else ""
        for metric in SERVED
        for who, of in (("rule", "rule"), (agent, "agent"))
    }


def score_rows(judged: dict[str, Any]) -> Rows:
    """One line a place. Several seeds are summed up by `runs_estimate` everywhere: differences are those of columns."""
    rows = []
    for name, said in judged.items():
        serving = PLACES[name].serving
        assert len(said["rule"]["loss"]) == len(said["planner"]["loss"]) == np.shape(said["runs"])[1]
        runs, score = np.array(said["runs"]), _score(said)
        against = "rule" if serving else "lagrangian"
        scores = {"score": score.mean, "score_low": score.low, "score_high": score.high}
        rows.append(
            {
                "setup": name.replace("llama-65b-paper", "paper"),
                "percent_of": "violations" if serving else "gap",
                "cases": "-".join(map(str, said["cases"])),
                "seeds": str(len(said["seeds"])),
                "rule": said["rule"]["name"],
                "rule_percent": _percent(said["rule"]["loss"]),
                "agent_percent": _percent(runs_estimate(runs).mean),
                "shipped_seed_percent": _percent(said["agent"]["loss"]),
                "planner_percent": _percent(said["planner"]["loss"]),
                **{end: "" if np.isnan(score.mean) else f"{value:.2f}" for end, value in scores.items()},
                "against": against,
                **_estimate("difference", runs_estimate(runs - np.array(said[against]["loss"]))),
                **_tails("shipped_seed", said),
            }
        )
    return rows


def elsewhere_rows(found: dict[str, Any]) -> Rows:
    """One line a place: what decides there, and by how much it is better or worse than the rule tuned there."""
    rows = []
    for name, said in found.items():
        change, _, text = name.partition("/")
        agent, rule, lagrangian = (np.array(said[x]["loss"]) for x in ("agent", "rule", "lagrangian"))
        apart = mean_estimate(agent - rule)
        rows.append(
            {
                "change": change,
                "setup": text.replace("`", ""),
                "cases": str(len(rule)),
                "decides": said["decides"],
                "rule": said["rule"]["name"],
                "rule_percent": _percent(rule),
                "agent_percent": _percent(agent),
                "nearest_percent": _percent(said["nearest"]["loss"]) if said["nearest"] else "",
                **_estimate("minus_rule", apart),
                **_estimate("minus_lagrangian", mean_estimate(agent - lagrangian)),
                "agent_is": "better" if apart.high < 0 else "worse" if apart.low > 0 else "level",
                **_tails("agent", said),
            }
        )
    return rows


def _difference(row: dict[str, str], name: str) -> str:
    return f"{row[f'{name}_points']} ({row[f'{name}_low']} to {row[f'{name}_high']})"


def score_table(rows: Rows) -> str:
    """Known lengths. Queues filled by LPT, which the aim does not name, are left to the CSV."""
    body = [
        [
            row["setup"],
            f"`{row['rule']}` {row['rule_percent']}",
            row["agent_percent"],
            row["planner_percent"],
            f"**{row['score']}** ({row['score_low']} to {row['score_high']})" if row["score"] else "–",
        ]
        for row in rows
        if row["percent_of"] == "gap" and "/lpt/" not in row["setup"]
    ]
    return grid(["setup", "best tuned rule, gap in %", "agent", "planner", "score (95 %)"], body)


def serving_table(rows: Rows) -> str:
    """With SLOs: by how much violations differ."""
    body = [
        [
            row["setup"],
            f"`{row['rule']}` {row['rule_percent']}",
            row["agent_percent"],
            row["planner_percent"],
            _difference(row, "difference"),
        ]
        for row in rows
        if row["percent_of"] == "violations"
    ]
    return grid(["setup", "best tuned rule, violations in %", "agent", "planner", "agent − rule, points (95 %)"], body)


def elsewhere_table(rows: Rows) -> str:
    """One line a kind of change: in how many places the agent is better, level or worse, and by how much."""
    body = []
    for change in dict.fromkeys(row["change"] for row in rows):
        places = [row for row in rows if row["change"] == change]
        count = Counter(row["agent_is"] for row in places)
        apart = [float(row["minus_rule_points"]) for row in places]
        nearest = [
            float(row["nearest_percent"]) - float(row["rule_percent"]) for row in places if row["nearest_percent"]
        ]
        body.append(
            [
                CHANGES[change],
                str(len(places)),
                *(str(count[word]) for word in ("better", "level", "worse")),
                f"{min(apart):+.2f} to {max(apart):+.2f}",
                f"{max(float(row['minus_rule_high']) for row in places):+.2f}",
                f"{max(nearest):+.2f}" if nearest else "–",
            ]
        )
    header = [
        "changed",
        "places",
        "better",
        "level",
        "worse",
        "agent − rule",
        "highest upper end",
        "worst of the nearest",
    ]
    return grid(header, body)


def slo_table(rows: Rows) -> str:
    """Other loads and recorded traces; those where neither violates a promise in a hundred are left to the CSV."""
    body = [
        [row["setup"], f"`{row['rule']}` {row['rule_percent']}", row["agent_percent"], _difference(row, "minus_rule")]
        for row in rows
        if row["change"] in ("load", "trace") and max(float(row[f"{who}_percent"]) for who in ("rule", "agent")) >= 1
    ]
    return grid(["", "best tuned rule, violations in %", "agent", "agent − rule, points (95 %)"], body)


def draw(judged: dict[str, Any], path: Path) -> Path:
    """Score by place, each seed a stroke."""
    names = [name for name in judged if not PLACES[name].serving]
    figure = new_figure(7.0, 0.34 * len(names) + 1.2)
    axes = figure.subplots()
    lines = ((0.0, "best tuned rule", "right", "-"), (AIM, f"aim {AIM}", "center", ":"), (1.0, "planner", "left", "-"))
    for x, text, side, line in lines:
        axes.axvline(x, color=FAINT, linewidth=0.8, linestyle=line)
        axes.annotate(text, (x, 1.01), xycoords=("data", "axes fraction"), ha=side, fontsize=8, color=INK)
    for y, name in enumerate(reversed(names)):
        said = judged[name]
        found = _score(said)
        if np.isnan(found.mean):
            continue
        seeds = [_score({**said, "runs": run}).mean for run in said["runs"]]
        axes.plot([found.low, found.high], [y, y], color=LINES[0], linewidth=2)
        axes.plot(seeds, np.full(len(seeds), y), "|", color=FAINT, markersize=7)
        axes.plot(found.mean, y, "^", color=LINES[0], markersize=6)
    axes.set_yticks(range(len(names)), [name.replace("llama-65b-", "") for name in reversed(names)], fontsize=8)
    axes.set_xlabel("score on test cases: interquartile mean over seeds, 95 % bootstrap interval", fontsize=8)
    plain(axes)
    return save(figure, path)


def tables(scores: Rows, elsewhere: Rows) -> dict[str, str]:
    """What stands between the markers of the page, by their names. The text says what came of other costs."""
    found = {
        "scores": score_table(scores),
        "serving scores": serving_table(scores),
        "elsewhere": elsewhere_table(elsewhere),
        "elsewhere with SLOs": slo_table(elsewhere),
    }
    for name, of in (("scores", "gap"), ("serving scores", "violations")):
        judged = {(row["cases"], row["seeds"]) for row in scores if row["percent_of"] == of}
        assert len(judged) < 2, "places that were judged on different cases, or with different seeds"
        for cases, seeds in judged:
            found[name] = f"Test cases {cases.replace('-', ' to ')}, {seeds} training seeds:\n\n{found[name]}"
    return {name: text if len(text.splitlines()) > 2 else "Not measured." for name, text in found.items()}


def page(text: str, found: dict[str, str], decision_us: Sequence[float] | None = None) -> str:
    """The page with the tables between their markers."""
    for name, table in found.items():
        text = replaced(text, name, table)
    if decision_us is None:
        return text
    p50, p99 = decision_us
    return replaced(
        text, "decision time", f"A decision takes {p50:.1f} µs (99th percentile {p99:.1f} µs), asked from Python."
    )


def as_csv(rows: Rows) -> str:
    """A header and one line a row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def stored(name: str) -> Rows:
    """The rows of a CSV file."""
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, text: str) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="DIR", nargs="?")
    study = parser.parse_args(argv).study
    decision_us = None
    if study is not None:
        found = {name: kept(path) for name in FOUND if (path := study / f"{name}.json").exists()}
        decision_us = found.get("decision_us")
        if "judged" in found:
            draw(found["judged"], PICTURE)
            _write(DATA / "agent_scores.csv", as_csv(score_rows(found["judged"])))
        if "elsewhere" in found:
            _write(DATA / "agent_elsewhere.csv", as_csv(elsewhere_rows(found["elsewhere"])))
    shown = tables(stored("agent_scores"), stored("agent_elsewhere"))
    _write(PAGE, page(PAGE.read_text(encoding="utf-8"), shown, decision_us))


if __name__ == "__main__":
    main()
