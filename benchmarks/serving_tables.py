"""Goodput against load, for docs/serving.md: table, picture and CSV, from a comparison that was run.

    python -m baselines --scenario LLMSched/ServingOrder-v0 --cases 20 --out results/serving-order
    python benchmarks/serving_tables.py results/serving-order [--write]

Without ``--write`` the table is printed. Every tuned rule was tuned on training cases (baselines/tuned.json).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

from result_tables import ROOT

import llmsched_env  # noqa: F401  # registers the environments
from llmsched_env import make_scenario
from llmsched_env.baselines.tuned import best_tuned, paired
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced

PAGE = ROOT / "docs" / "serving.md"
DATA = ROOT / "docs" / "data" / "serving.csv"
PICTURE = ROOT / "docs" / "images" / "goodput_against_load.png"
SHOWN = ("0.9", "0.97")
"""The loads that stand on the page, the last with its waits; the others are in the CSV only."""

LEFT_OUT = "longest first"
"""Orders that are in the CSV only: no better than the shortest first, and with longer waits."""

WAIT = ("longest_wait_s", 1)
DETAILS = (
    # metric of comparison.json, column of the CSV, scale, digits
    ("goodput", "goodput_percent", 100, 1),
    ("score", "score", 1, 2),
    ("ttft_s", "ttft_s", 1, 2),
    ("ttft_p99_s", "ttft_p99_s", 1, 2),
    ("tpot_s", "tpot_ms", 1e3, 1),
    ("worst_token_gap_s", "worst_token_gap_s", 1, 2),
    ("longest_wait_s", "longest_wait_s", 1, 1),
)

ORDERS = {
    "fcfs": "first come first served",
    "late_last": "late last",
    "shortest_first": "shortest first",
    "late_last_shortest": "shortest first, late last",
    "longest_first": "longest first",
    "late_last_longest": "longest first, late last",
}


def cell(policy: dict[str, Any], metric: str, scale: float = 1.0, digits: int = 1) -> str:
    """Mean and half the width of its confidence interval."""
    estimate = policy[metric]
    mean, (low, high) = estimate["mean"], estimate["ci95"]
    if mean is None:
        return "–"
    return f"{mean * scale:.{digits}f}" + ("" if low is None else f" ± {(high - low) / 2 * scale:.{digits}f}")


def rows(said: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """What each row is, and the name of its policy at each load."""
    scenario = make_scenario(said["scenario"])
    loads = sorted(said["loads"], key=float)
    found = [
        ("prefill-first, first come first served", dict.fromkeys(loads, "prefill_first")),
        ("prefill-first, late last", dict.fromkeys(loads, "prefill_first@late_last")),
    ]
    for order, text in ORDERS.items():
        under = scenario.replace(order=order, choose_order=False)
        names = {load: paired(best_tuned(under.replace(load=float(load))), order) for load in loads}
        found.append((f"best tuned rule, {text}", names))
    return [
        *found,
        ("`lookahead`, which knows the future", dict.fromkeys(loads, "lookahead")),
    ]


def table(said: dict[str, Any]) -> str:
    """Goodput at the loads where policies differ, and who starves. The CSV has the rest, with intervals."""
    loads = [load for load in SHOWN if load in said["loads"]] or [max(said["loads"], key=float)]
    body = []
    for text, by_load in rows(said):
        if LEFT_OUT in text:
            continue
        goodputs = [cell(said["loads"][load]["policies"][by_load[load]], "goodput", 100) for load in loads]
        last = said["loads"][loads[-1]]["policies"][by_load[loads[-1]]]
        means = [cell(last, metric, 1, digits).partition(" ± ")[0] for metric, digits in (("ttft_p99_s", 2), WAIT)]
        body.append([text, *goodputs, *means])
    goodput = [f"goodput at load {load} ({said['loads'][load]['requests_per_s']:.2f} requests/s), %" for load in loads]
    return grid(["policy", *goodput, "TTFT p99 there, s", "longest wait there, s"], body)


def as_csv(said: dict[str, Any]) -> str:
    """The details at every load: each mean, and half the width of its interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (name for _, column, _, _ in DETAILS for name in (column, f"{column}_half_interval"))
    writer.writerow(["load", "requests_per_s", "what", "policy", *columns])
    for load in sorted(said["loads"], key=float):
        for what, by_load in rows(said):
            policy = said["loads"][load]["policies"][by_load[load]]
            line = [load, f"{said['loads'][load]['requests_per_s']:.3f}", what.replace("`", ""), by_load[load]]
            for metric, _, scale, digits in DETAILS:
                mean, _, half = cell(policy, metric, scale, digits).partition(" ± ")
                line += [mean.replace("–", ""), half]
            writer.writerow(line)
    return text.getvalue()


def caption(said: dict[str, Any]) -> str:
    """What was run."""
    return (
        f"`{said['scenario']}`, {said['split']} cases 0 to {said['cases'] - 1} of 5,000 requests, seed {said['seed']}; "
        "± half of the 95 % interval. Rules are tuned on training cases, at each load.\n"
    )


def main() -> None:
    """Print the tables, or write them and copy the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what the comparison wrote")
    parser.add_argument("--write", action="store_true", help="replace the tables and the picture")
    options = parser.parse_args()
    said = json.loads((options.folder / "comparison.json").read_text(encoding="utf-8"))
    short = f"{caption(said)}\n{table(said)}\n"
    if not options.write:
        print(short)
        return
    written = replaced(PAGE.read_text(encoding="utf-8"), "serving results", short)
    with write_whole(PAGE) as path:
        path.write_text(written, encoding="utf-8")
    with write_whole(DATA) as path:
        path.write_text(as_csv(said), encoding="utf-8")
    with write_whole(PICTURE) as path:
        shutil.copyfile(options.folder / "goodput_against_load.png", path)


if __name__ == "__main__":
    main()
