"""A comparison on paper: tables for people, files for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmsched_env.config import Scenario
from llmsched_env.cost import PRESETS
from llmsched_env.evaluation.comparison import Comparison, Row
from llmsched_env.evaluation.statistics import Estimate
from llmsched_env.storage import write_whole

__all__ = ["PAPER", "ablation_table", "is_papers_case", "ranking_table", "two_by_two_table", "write_files"]

PAPER: Mapping[str, tuple[float, float]] = {"baseline": (201.00, 0.802), "hybrid": (190.58, 0.891)}
"""Total time in s and utilization as the paper prints them (arXiv 2502.15763); its bound is about 180 s."""

PAPER_CLIENTS = 200
PAPER_PRESETS = ("llama-65b-paper", "llama-65b-paper-mid", "llama-65b-paper-low")

COLUMNS = ("policy", "kind", "clairvoyant", "metric", "mean", "ci95_low", "ci95_high")


def _interval(estimate: Estimate, scale: float = 1.0, digits: int = 2) -> str:
    if math.isnan(estimate.mean):
        return "–"
    text = f"{estimate.mean * scale:.{digits}f}"
    if math.isnan(estimate.low):
        return text
    return f"{text} [{estimate.low * scale:.{digits}f}, {estimate.high * scale:.{digits}f}]"


def _grid(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    widths = [max(len(row[i]) for row in [header, *body]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _knows(row: Row) -> str:
    return "lengths" if row.clairvoyant else "blind"


def ablation_table(comparison: Comparison) -> str:
    """The methods and the bound; on the paper's own case, with what it printed beside them."""
    paper = is_papers_case(comparison.scenario)
    body = []
    for row in comparison.rows:
        if row.kind != "method":
            continue
        printed = PAPER.get(row.name)
        body.append(
            [
                row.name,
                row.text,
                _knows(row),
                _interval(row.estimate("makespan_s")),
                _interval(row.estimate("utilization"), 100, 1),
                _interval(row.estimate("gap_to_bound"), 100),
                f"{printed[0]:.2f} s, {printed[1]:.1%}" if printed else "",
            ]
        )
    body.append(["bound (LB1)", "no schedule is faster", "", f"{comparison.bound_s:.2f}", "", "0.00", "about 180 s"])
    header = ["method", "what it is", "knows", "makespan s [95 % CI]", "utilization %", "gap to bound %", "paper"]
    columns = len(header) if paper else len(header) - 1
    return _grid(header[:columns], [row[:columns] for row in body])


def is_papers_case(scenario: Scenario) -> bool:
    """Whether the paper's printed numbers are about this scenario: its requests, clients and fitted cost models."""
    own = scenario.source.name == "gsm8k" and scenario.num_requests is None and scenario.num_clients == PAPER_CLIENTS
    return own and scenario.cost_model in [PRESETS[name] for name in PAPER_PRESETS]


def ranking_table(comparison: Comparison) -> str:
    """Rules, planners and agents on the scenario's queues, best first."""
    rows = [row for row in comparison.rows if row.kind != "method"]
    rows.sort(key=lambda row: row.estimate("makespan_s").mean)
    body = []
    for row in rows:
        times = row.decision_us()
        body.append(
            [
                row.name,
                row.kind,
                _knows(row),
                _interval(row.estimate("gap_to_bound"), 100),
                _interval(row.score),
                f"{row.estimate('prefills').mean:.0f}",
                f"{row.estimate('decodes').mean:.0f}",
                " / ".join("–" if x is None else f"{x:.3g}" for x in times.values()),
            ]
        )
    header = [
        "policy",
        "kind",
        "knows",
        "gap to bound % [95 % CI]",
        "score [95 % CI]",
        "prefills",
        "decodes",
        "decision µs p50/p99/max",
    ]
    return _grid(header, body)


def two_by_two_table(comparison: Comparison) -> str | None:
    """Queue order against iteration rule on one shared queue, in s; ``None`` where a corner is missing."""
    corners = {
        "FCFS": ("baseline", "baseline_lagrangian"),
        "longest first": ("shared_lpt_prefill_first", "shared_lpt_lagrangian"),
    }
    names = {row.name for row in comparison.rows}
    if not names.issuperset(name for pair in corners.values() for name in pair):
        return None
    body = [
        [
            f"{title} ({_knows(comparison.row(pair[0]))})",
            *(_interval(comparison.row(name).estimate("makespan_s")) for name in pair),
        ]
        for title, pair in corners.items()
    ]
    return _grid(["one shared queue", "prefill-first", "Lagrangian rule"], body)


def write_files(comparison: Comparison, folder: Path, *, command: str) -> list[Path]:
    """``comparison.json``, ``table.csv``, ``table.md`` and ``configuration.json``, each whole or not at all.

    Raises:
        PathError: the folder cannot be written.
    """
    sections = {"Ablation": ablation_table(comparison), "Queue order and rule": two_by_two_table(comparison)}
    if any(row.kind != "method" for row in comparison.rows):
        sections["Rules and planners on the scenario's queues"] = ranking_table(comparison)
    title = f"# {comparison.scenario_id}, split {comparison.scenario.split}, {len(comparison.cases)} cases\n\n"
    texts = {
        "comparison.json": json.dumps(comparison.as_json(), indent=1) + "\n",
        "configuration.json": json.dumps({"command": command, **comparison.provenance()}, indent=1, default=str) + "\n",
        "table.csv": _long_csv(comparison),
        "table.md": title + "".join(f"## {name}\n\n{text}\n\n" for name, text in sections.items() if text),
    }
    for name, text in texts.items():
        with write_whole(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _long_csv(comparison: Comparison) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in comparison.rows:
        estimates: dict[str, Any] = {metric: row.estimate(metric) for metric in row.evaluation.columns}
        estimates["score"] = row.score
        for metric, estimate in estimates.items():
            writer.writerow([row.name, row.kind, row.clairvoyant, metric, *estimate])
    return out.getvalue()
