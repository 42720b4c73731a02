"""WAIT, SLAI and FairBatching against the rules before them under SLOs, for docs/mixed.md: table and CSV.

    python benchmarks/slack_policies.py [--cases 20] [--write]

Without ``--write`` the table is printed. It takes seconds. Nothing is tuned but `deadline_tuned`, on training cases
(a minute more where its numbers are not stored).
"""

from __future__ import annotations

import argparse
import csv
import io
import warnings
from typing import Any

from result_tables import ROOT

from llmsched_env import make_scenario
from llmsched_env.baselines.registry import entry
from llmsched_env.config import Scenario
from llmsched_env.evaluation import CoverageWarning, evaluate, mean_estimate
from llmsched_env.progress import Progress
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced

PAGE = ROOT / "docs" / "mixed.md"
DATA = ROOT / "docs" / "data" / "slack_policies.csv"
BUDGET = {"mixed_tokens": 2048, "mixed_counts_active": True}
KEPT_APART = {"mixed_tokens": None, "mixed_counts_active": False}
LONG = {
    "workload": "azure-synthetic", "cost": "qwen3-30b-a3b-h200", "prefill_token_cap": 16384, "num_requests": 3000,
    "ttft_s": 1.0, "tpot_s": 0.05,
}  # fmt: skip
PLACES: dict[str, dict[str, Any]] = {
    "short prompts, 0.9": {"load": 0.9},
    "short prompts, 0.97": {"load": 0.97},
    "tight limits, 0.95": {"load": 0.95, "ttft_s": 1.0, "tpot_s": 0.08},
    "long prompts, 0.9": {"load": 0.9, **LONG},
    "long prompts, 0.97": {"load": 0.97, **LONG},
}
"""Load and what differs of `Mixed-v0`, whose limits are 2 s and 100 ms."""

METHODS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("prefill_first", KEPT_APART, ""),
    ("wait", KEPT_APART, "prefill_first"),
    ("slai", KEPT_APART, "prefill_first"),
    ("deadline_tuned", KEPT_APART, ""),
    ("vllm_v1", BUDGET, ""),
    ("slai", BUDGET, "vllm_v1"),
    ("fairbatching", BUDGET, "vllm_v1"),
)
"""Policy, composition, and whom it is compared with, case by case."""

DETAILS = (("ttft_p99_s", 1.0, 2), ("tpot_p99_s", 1e3, 1), ("worst_token_gap_s", 1.0, 3))


def label(name: str, composed: dict[str, Any]) -> str:
    """What a row is called."""
    return f"{name}, mixed" if name == "slai" and composed is BUDGET else name


def measured(cases: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of the CSV, a list a place."""
    found: dict[str, list[dict[str, Any]]] = {}
    runs = [(place, method) for place in PLACES for method in METHODS]
    goodputs: dict[tuple[str, str], Any] = {}
    for place, (name, composed, other) in Progress(runs, desc="policies", unit="run"):
        base = make_scenario("LLMSched/Mixed-v0", split="test", order="late_last")
        scenario: Scenario = base.replace(**PLACES[place], **composed)
        item = entry(name, scenario)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CoverageWarning)
            columns = evaluate(item.policy, item.scenario, cases).columns
        goodput = goodputs[place, label(name, composed)] = 100.0 * columns["goodput"]
        mean = mean_estimate(goodput)
        row: dict[str, Any] = {"place": place, "policy": label(name, composed), "cases": cases}
        row |= {"goodput_percent": f"{mean.mean:.1f}", "half_interval": f"{(mean.high - mean.low) / 2:.1f}"}
        apart = mean_estimate(goodput - goodputs[place, other]) if other else None
        row["compared_with"] = other
        for key, at in (("points_above", 0), ("points_above_low", 1), ("points_above_high", 2)):
            row[key] = f"{apart[at]:.2f}" if apart is not None else ""
        for metric, scale, digits in DETAILS:
            unit = metric.replace("tpot_p99_s", "tpot_p99_ms")
            row[unit] = f"{float(columns[metric].mean()) * scale:.{digits}f}"
        found.setdefault(place, []).append(row)
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Goodput by policy and place."""
    body = []
    for index, (name, composed, _) in enumerate(METHODS):
        rows = [rows[index] for rows in found.values()]
        body.append([f"`{label(name, composed)}`", *(f"{r['goodput_percent']} ± {r['half_interval']}" for r in rows)])
    return grid(["goodput, %", *found], body)


def main() -> None:
    """Run, and print or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    found = measured(given.cases)
    if not given.write:
        print(table(found))
        return
    text = io.StringIO()
    rows = [row for place in found.values() for row in place]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with write_whole(DATA) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    page = replaced(PAGE.read_text(encoding="utf-8"), "slack policies", table(found))
    with write_whole(PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
