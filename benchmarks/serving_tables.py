"""Goodput against load, for docs/serving.md: tables, picture and CSV, from a comparison that was run.

    python -m baselines --scenario LLMSched/ServingOrder-v0 --cases 20 --out results/serving-order
    python benchmarks/serving_tables.py results/serving-order [--write]

Without ``--write`` the tables are printed. Every tuned rule was tuned on training cases (baselines/tuned.json).
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
SHOWN = "0.97"
"""The load whose details stand on the page; the others are in the CSV only."""

DETAILS = (
    # metric of comparison.json, column of the CSV, heading on the page (None: CSV only), scale, digits
    ("goodput", "goodput_percent", None, 100, 1),
    ("score", "score", "score", 1, 2),
    ("ttft_s", "ttft_s", None, 1, 2),
    ("ttft_p99_s", "ttft_p99_s", "TTFT p99 s", 1, 2),
    ("tpot_s", "tpot_ms", "TPOT ms", 1e3, 1),
    ("worst_token_gap_s", "worst_token_gap_s", "worst token gap s", 1, 2),
    ("longest_wait_s", "longest_wait_s", "longest wait s", 1, 1),
)

ORDERS = {
    "fcfs": "first come first served",
    "late_last": "first come first served, late ones go last",
    "shortest_first": "shortest predicted first",
    "late_last_shortest": "shortest predicted first, late ones last",
    "longest_first": "longest predicted first",
    "late_last_longest": "longest predicted first, late ones last",
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
        ("prefill-first, late ones go last", dict.fromkeys(loads, "prefill_first@late_last")),
    ]
    for order, text in ORDERS.items():
        under = scenario.replace(order=order, choose_order=False)
        names = {load: paired(best_tuned(under.replace(load=float(load))), order) for load in loads}
        found.append((f"best tuned rule, {text}", names))
    return [
        *found,
        ("`lookahead`: tries everything in the true future", dict.fromkeys(loads, "lookahead")),
    ]


def goodput_table(said: dict[str, Any]) -> str:
    """Goodput by load."""
    found = rows(said)
    loads = list(found[0][1])
    body = [
        [text, *(cell(said["loads"][load]["policies"][names[load]], "goodput", 100) for load in loads)]
        for text, names in found
    ]
    return grid(["goodput, % (± half of the 95 % interval)", *(f"load {load}" for load in loads)], body)


def detail_table(said: dict[str, Any], load: str) -> str:
    """What the same policies do at one load, in means: tails, who starves. The CSV has the intervals."""
    shown = [(metric, scale, digits) for metric, _, heading, scale, digits in DETAILS if heading]
    body = [
        [
            f"`{by_load[load]}`",
            *(cell(said["loads"][load]["policies"][by_load[load]], *what).partition(" ± ")[0] for what in shown),
        ]
        for _, by_load in rows(said)
    ]
    return grid([f"at load {load}, means", *(heading for _, _, heading, _, _ in DETAILS if heading)], body)


def as_csv(said: dict[str, Any]) -> str:
    """The details at every load: each mean, and half the width of its interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (name for _, column, _, _, _ in DETAILS for name in (column, f"{column}_half_interval"))
    writer.writerow(["load", "what", "policy", *columns])
    for load in sorted(said["loads"], key=float):
        for what, by_load in rows(said):
            policy = said["loads"][load]["policies"][by_load[load]]
            line = [load, what.replace("`", ""), by_load[load]]
            for metric, _, _, scale, digits in DETAILS:
                mean, _, half = cell(policy, metric, scale, digits).partition(" ± ")
                line += [mean.replace("–", ""), half]
            writer.writerow(line)
    return text.getvalue()


def caption(said: dict[str, Any]) -> str:
    """What was run."""
    return (
        f"`{said['scenario']}`, {said['split']} cases 0 to {said['cases'] - 1} of 5,000 requests, seed {said['seed']}. "
        "Tuned on training cases, at each load.\n"
    )


def main() -> None:
    """Print the tables, or write them and copy the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what the comparison wrote")
    parser.add_argument("--write", action="store_true", help="replace the tables and the picture")
    options = parser.parse_args()
    said = json.loads((options.folder / "comparison.json").read_text(encoding="utf-8"))
    short = f"{caption(said)}\n{goodput_table(said)}\n"
    details = detail_table(said, SHOWN if SHOWN in said["loads"] else max(said["loads"], key=float))
    if not options.write:
        print(short, details, sep="\n")
        return
    written = replaced(PAGE.read_text(encoding="utf-8"), "serving results", f"{short}\n{details}\n")
    with write_whole(PAGE) as path:
        path.write_text(written, encoding="utf-8")
    with write_whole(DATA) as path:
        path.write_text(as_csv(said), encoding="utf-8")
    with write_whole(PICTURE) as path:
        shutil.copyfile(options.folder / "goodput_against_load.png", path)


if __name__ == "__main__":
    main()
