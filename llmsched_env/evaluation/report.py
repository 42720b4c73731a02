"""A comparison on paper: tables for people, files for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmsched_env.config import Scenario
from llmsched_env.cost import PRESETS
from llmsched_env.evaluation.comparison import Comparison
from llmsched_env.evaluation.parameters import MEANINGS, written
from llmsched_env.evaluation.statistics import Estimate
from llmsched_env.evaluation.tables import grid, interval, knows
from llmsched_env.storage import write_whole

__all__ = [
    "PAPER",
    "RECORDED",
    "ServingRow",
    "ablation_table",
    "as_json",
    "glossary",
    "is_papers_case",
    "ranking_table",
    "serving_table",
    "two_by_two_table",
    "write_files",
]

PAPER: Mapping[str, tuple[float, float]] = {"baseline": (201.00, 0.802), "hybrid": (190.58, 0.891)}
"""Total time in s and utilization as the paper prints them (arXiv 2502.15763); its bound is about 180 s."""

PAPER_CLIENTS = 200
PAPER_PRESETS = ("llama-65b-paper", "llama-65b-paper-mid", "llama-65b-paper-low")

RECORDED = "recorded"
"""In place of a load or a rate: the workload's own times."""

ORDER_SCORE = "score, order fixed"

COLUMNS = ("policy", "kind", "clairvoyant", "parameters", "metric", "mean", "ci95_low", "ci95_high")


class ServingRow(Protocol):
    """What :func:`serving_table` shows of a policy."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    @property
    def clairvoyant(self) -> bool:
        """Whether policy or queues used true lengths."""
        ...

    @property
    def parameters(self) -> Mapping[str, float]:
        """What a rule decides by, by symbol."""
        ...

    @property
    def score(self) -> Estimate:
        """0 is the best tuned pair of rule and order, 1 the planner; NaN without them."""
        ...

    def estimate(self, metric: str) -> Estimate:
        """Mean and interval of one of `llmsched_env.metrics.SERVING_METRICS`."""
        ...

    def decision_us(self) -> Mapping[str, float | None]:
        """p50, p99 and maximum of its decision times; ``None`` where it never had a choice."""
        ...


def _decisions(row: ServingRow) -> str:
    return " / ".join("–" if x is None else f"{x:.3g}" for x in row.decision_us().values())


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
                knows(row.clairvoyant),
                interval(row.estimate("makespan_s")),
                interval(row.estimate("utilization"), 100, 1),
                interval(row.estimate("gap_to_bound"), 100),
                f"{printed[0]:.2f} s, {printed[1]:.1%}" if printed else "",
            ]
        )
    body.append(["lower bound", "no schedule is faster", "", f"{comparison.bound_s:.2f}", "", "0.00", "about 180 s"])
    header = ["method", "what it is", "knows", "makespan s [95 % CI]", "utilization %", "gap to bound %", "paper"]
    columns = len(header) if paper else len(header) - 1
    return grid(header[:columns], [row[:columns] for row in body])


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
        body.append(
            [
                row.name,
                written(row.parameters) or "–",
                row.kind,
                knows(row.clairvoyant),
                interval(row.estimate("gap_to_bound"), 100),
                interval(row.score),
                interval(row.fixed_order_score),
                f"{row.estimate('prefills').mean:.0f}",
                f"{row.estimate('decodes').mean:.0f}",
                _decisions(row),
            ]
        )
    header = [
        "policy",
        "parameters",
        "kind",
        "knows",
        "gap to bound % [95 % CI]",
        "score [95 % CI]",
        ORDER_SCORE,
        "prefills",
        "decodes",
        "decision µs p50/p99/max",
    ]
    kept = [i for i, name in enumerate(header) if name != ORDER_SCORE or comparison.fixed_order is not None]
    return grid([header[i] for i in kept], [[row[i] for i in kept] for row in body])


def serving_table(rows: Sequence[ServingRow]) -> str:
    """Policies by goodput, best first: goodput, both latencies with their tails, and who starves.

    Goodput hides by how much an SLO is violated: the worst token gap and the longest wait stand in every table, as
    means over the cases of each case's maximum.
    """
    body = []
    for row in sorted(rows, key=_by_goodput):
        gap_s, wait_s = (row.estimate(metric) for metric in ("worst_token_gap_s", "longest_wait_s"))
        body.append(
            [
                row.name,
                written(row.parameters) or "–",
                knows(row.clairvoyant),
                interval(row.estimate("goodput"), 100, 1),
                interval(row.score),
                _mean_and_p99(row, "ttft", 1.0, 3),
                _mean_and_p99(row, "tpot", 1000.0, 1),
                _mean(gap_s, 1.0, 3),
                _mean(wait_s, 1.0, 2),
                _decisions(row),
            ]
        )
    header = [
        "policy",
        "parameters",
        "knows",
        "goodput % [95 % CI]",
        "score [95 % CI]",
        "TTFT s mean / p99",
        "TPOT ms mean / p99",
        "worst token gap s",
        "longest wait s",
        "decision µs p50/p99/max",
    ]
    return grid(header, body)


def glossary(*comparisons: Comparison) -> str:
    """What the columns of tables of policies say, as a list."""
    shown = {symbol for one in comparisons for row in one.rows for symbol in row.parameters}
    numbers = "; ".join(f"{symbol}: {text}" for symbol, text in MEANINGS.items() if symbol in shown)
    ends = {(one.reference, one.planner) for one in comparisons}
    ((zero, one),) = ends if len(ends) == 1 else {("the best tuned rule", "the planner, both named above each table")}
    terms = {
        "parameters": f"the numbers that a rule decides by; of a tuned one, chosen on training cases. {numbers}",
        "knows": "'blind': no true output length is used; 'lengths': the true ones are",
        "score": "none here"
        if zero is None
        else f"0 is {zero}{', the best tuned rule' * (len(ends) == 1)}; 1 is {one}",
    }
    if comparisons[0].fixed_order is not None:
        fixed = comparisons[0].fixed_order
        terms["score, order fixed"] = f"the same with 1 for {fixed}, which picks iterations only"
    if comparisons[0].scenario.serving:
        terms |= {
            "SLO": "a limit on a latency that a request has to meet: on TTFT, the time to its first token, and on "
            "TPOT, the mean time per token after it",
            "goodput": "share of the counted requests that meet both SLOs",
            "load": "requests/s as a share of the capacity, a rate that no schedule can keep up with",
            "worst token gap, longest wait": "means over the cases of each case's maximum",
        }
    else:
        terms["gap to bound"] = "makespan above the best lower bound, which no schedule beats"
    terms["[95 % CI]"] = "confidence interval of the mean over cases"
    return "\n".join(f"- {term}: {text.rstrip('. ')}." for term, text in terms.items())


def _by_goodput(row: ServingRow) -> tuple[bool, float]:
    mean = row.estimate("goodput").mean
    return math.isnan(mean), -mean


def _mean(estimate: Estimate, scale: float, digits: int) -> str:
    return "–" if math.isnan(estimate.mean) else f"{estimate.mean * scale:.{digits}f}"


def _mean_and_p99(row: ServingRow, time: str, scale: float, digits: int) -> str:
    return " / ".join(_mean(row.estimate(metric), scale, digits) for metric in (f"{time}_s", f"{time}_p99_s"))


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
            f"{title} ({knows(comparison.row(pair[0]).clairvoyant)})",
            *(interval(comparison.row(name).estimate("makespan_s")) for name in pair),
        ]
        for title, pair in corners.items()
    ]
    return grid(["one shared queue", "prefill-first", "Lagrangian rule"], body)


def write_files(comparisons: Sequence[Comparison], folder: Path, *, command: str) -> list[Path]:
    """``comparison.json``, ``table.csv``, ``table.md`` and ``configuration.json``, each whole or not at all.

    Args:
        comparisons: the scenario's, then the same at other loads.
        folder: to write to.
        command: that made them.

    Raises:
        PathError: the folder cannot be written.
    """
    first = comparisons[0]
    title = f"# {first.scenario_id}, split {first.scenario.split}, {len(first.cases)} cases\n\n"
    sections = [(name, text) for one in comparisons for name, text in _sections(one)]
    configuration = {"command": command, **first.provenance()}
    if len(comparisons) > 1:
        name, keys = _over(comparisons)
        configuration[name] = keys
    texts = {
        "comparison.json": json.dumps(as_json(comparisons), indent=1) + "\n",
        "configuration.json": json.dumps(configuration, indent=1, default=str) + "\n",
        "table.csv": _long_csv(comparisons),
        "table.md": title + "".join(f"## {name}\n\n{text}\n\n" for name, text in sections),
    }
    for name, text in texts.items():
        with write_whole(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def as_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The first comparison as plain JSON values; with several, ``loads`` or ``rates`` holds all of them.

    Their keys are loads, rates in requests/s, or "recorded" for the workload's own times.
    """
    document = comparisons[0].as_json()
    if len(comparisons) > 1:
        name, keys = _over(comparisons)
        document[name] = {str(key): one.as_json() for key, one in zip(keys, comparisons, strict=True)}
    return document


def _over(comparisons: Sequence[Comparison]) -> tuple[str, list[float | str]]:
    """What the comparisons differ in, and of each the value."""
    by_rate = any(one.scenario.requests_per_s is not None for one in comparisons)
    return "rates" if by_rate else "loads", [_key(one.scenario) for one in comparisons]


def _key(scenario: Scenario) -> float | str:
    given = scenario.requests_per_s if scenario.load is None else scenario.load
    return RECORDED if given is None else given


def _sections(comparison: Comparison) -> list[tuple[str, str]]:
    if comparison.scenario.serving:
        text = f"{serving_table(comparison.rows)}\n\n{glossary(comparison)}"
        return [(f"At {comparison.arrivals()}", text)]
    sections = {"Ablation": ablation_table(comparison), "Queue order and rule": two_by_two_table(comparison)}
    if any(row.kind != "method" for row in comparison.rows):
        sections["Rules and planners on the scenario's queues"] = (
            f"{ranking_table(comparison)}\n\n{glossary(comparison)}"
        )
    return [(name, text) for name, text in sections.items() if text]


def _long_csv(comparisons: Sequence[Comparison]) -> str:
    serving = comparisons[0].scenario.serving
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*(("load", "requests_per_s") if serving else ()), *COLUMNS))
    for comparison in comparisons:
        first = (comparison.offered.load, comparison.offered.requests_per_s) if serving else ()
        for row in comparison.rows:
            estimates: dict[str, Any] = {
                metric: row.estimate(metric)
                for metric, column in row.evaluation.columns.items()
                if not np.isnan(column).all()  # not measured in this scenario
            }
            estimates["score"] = row.score
            if comparison.fixed_order is not None:
                estimates["fixed_order_score"] = row.fixed_order_score
            for metric, estimate in estimates.items():
                writer.writerow(
                    [*first, row.name, row.kind, row.clairvoyant, written(row.parameters), metric, *estimate]
                )
    return out.getvalue()
