"""Tables and the picture of docs/agents.md, from what benchmarks/judging.py found.

python benchmarks/agent_tables.py DIR
"""

from __future__ import annotations

import argparse
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
PICTURE = ROOT / "docs" / "images" / "agent_scores.png"

AIM = 0.6
"""The score that the project set itself for known lengths."""

SERVED_TITLES = dict(zip(SERVED, ("worst token gap, s", "longest wait, s"), strict=True))


def _percent(values: Any, digits: int = 2) -> str:
    return f"{100 * float(np.mean(values)):.{digits}f}"


def _points(found: Estimate) -> str:
    return f"{100 * found.mean:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def _score(said: dict[str, Any]) -> Estimate:
    return score_estimate(said["runs"], said["rule"]["loss"], said["planner"]["loss"])


def _tails(*said: dict[str, Any]) -> list[str]:
    """Rule's and agent's worst token gap, then their longest wait."""
    return [" / ".join(f"{np.mean(one[metric]):.2f}" for one in said) for metric in SERVED]


def score_table(judged: dict[str, Any], serving: bool) -> str:
    """One line a place. Several seeds are summed up by `runs_estimate` everywhere: differences are those of columns."""
    lines = []
    for name, said in judged.items():
        if PLACES[name].serving != serving:
            continue
        assert len(said["rule"]["loss"]) == len(said["planner"]["loss"]) == np.shape(said["runs"])[1]
        runs, score = np.array(said["runs"]), _score(said)
        other = np.array(said["rule" if serving else "lagrangian"]["loss"])
        lines.append(
            [
                name.replace("llama-65b-paper", "paper"),
                f"`{said['rule']['name']}` {_percent(said['rule']['loss'])}",
                _percent(runs_estimate(runs).mean),
                _percent(said["agent"]["loss"]),
                _percent(said["planner"]["loss"]),
                "–" if np.isnan(score.mean) else f"**{score.mean:.2f}** ({score.low:.2f} to {score.high:.2f})",
                _points(runs_estimate(runs - other)),
                *(_tails(said["rule"], said["agent"]) if serving else ()),
            ]
        )
    what = "violations, %" if serving else "gap, %"
    against = "agent − rule, points" if serving else "agent − `lagrangian`, points"
    header = ["place", f"best tuned rule, {what}", f"agent, {what}", "the shipped seed", f"planner, {what}"]
    tails = [f"{title}: rule / shipped seed" for title in SERVED_TITLES.values()] if serving else []
    return grid([*header, "score (95 %)", against, *tails], lines)


def transfer_table(found: dict[str, Any], kind: str) -> str:
    """One line a place: the agent of the box, and by how much it is better or worse."""
    lines = []
    serving = False
    for name, said in found.items():
        of, _, text = name.partition("/")
        if of != kind:
            continue
        serving = SERVED[0] in said["agent"]
        agent, rule, lagrangian = (np.array(said[x]["loss"]) for x in ("agent", "rule", "lagrangian"))
        differences = [_points(mean_estimate(agent - other)) for other in (rule, lagrangian)]
        tails = _tails(said["rule"], said["agent"]) if serving else []
        lines.append([text, f"`{said['rule']['name']}` {_percent(rule)}", _percent(agent), *differences, *tails])
    what = "violations, %" if serving else "gap in %"
    header = ["place", f"best tuned rule, {what}", "agent", "agent − rule, points", "agent − `lagrangian`"]
    return grid([*header, *(f"{title}: rule / agent" for title in SERVED_TITLES.values() if serving)], lines)


def cost_table(found: dict[str, Any]) -> str:
    """One line a change of the cost model, one column for each set of lengths and form of queues."""
    cells: dict[str, dict[str, str]] = {}
    for name, said in found.items():
        kind, _, text = name.partition("/")
        if kind != "cost":
            continue
        column, _, change = text.rpartition(", ")
        agent, rule = (np.array(said[x]["loss"]) for x in ("agent", "rule"))
        apart = mean_estimate(100 * (agent - rule))
        shown = f"{_percent(rule)}: {apart.mean:+.2f} ± {apart.high - apart.mean:.2f}"
        cells.setdefault(change, {})[column] = shown if apart.high < 0 else f"**{shown}**"
    columns = dict.fromkeys(column for row in cells.values() for column in row)
    return grid(["change", *columns], [[change, *(row[one] for one in columns)] for change, row in cells.items()])


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


def page(text: str, judged: dict[str, Any], moved: dict[str, Any], decision_us: Sequence[float]) -> str:
    """The page with the tables between their markers."""
    p50, p99 = decision_us
    for serving, marker in ((False, "scores"), (True, "serving scores")):
        found = [said for name, said in judged.items() if PLACES[name].serving == serving]
        if found:
            cases, seeds = {tuple(said["cases"]) for said in found}, {len(said["seeds"]) for said in found}
            assert len(cases) == len(seeds) == 1, "places that were judged on different cases, or with different seeds"
            first, last = cases.pop()
            said = f"Test cases {first} to {last}, {seeds.pop()} training seeds:\n\n"
            text = replaced(text, marker, said + score_table(judged, serving))
    for kind in ("clients", "cost", "load", "trace"):
        made = cost_table(moved) if kind == "cost" else transfer_table(moved, kind)
        table = made if any(name.startswith(f"{kind}/") for name in moved) else "Not measured."
        text = replaced(text, f"transfer by {kind}", table)
    spent = f"A decision takes {p50:.1f} µs (99th percentile {p99:.1f} µs), asked from Python."
    return replaced(text, "decision time", spent)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="DIR")
    study = parser.parse_args(argv).study
    judged, moved, decision_us = (kept(study / f"{name}.json") for name in ("judged", "transferred", "decision_us"))
    written = page(PAGE.read_text(encoding="utf-8"), judged, moved, decision_us)
    with write_whole(PAGE) as path:
        path.write_text(written, encoding="utf-8")
    draw(judged, PICTURE)


if __name__ == "__main__":
    main()
