"""Goodput against load, for README.md and docs/serving.md: tables and the picture, from a comparison that was run.

    python -m baselines --scenario LLMSched/ServingOrder-v0 --cases 20 --out results/serving-order
    python benchmarks/serving_tables.py results/serving-order [--write]

Without ``--write`` the tables are printed. Every tuned rule was tuned on training cases (baselines/tuned.json).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from readme_tables import README

import llmsched_env  # noqa: F401  # registers the environments
from llmsched_env import make_scenario
from llmsched_env.baselines.tuned import best_tuned, paired
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced

ROOT = README.parent
PAGE = ROOT / "docs" / "serving.md"
PICTURE = ROOT / "docs" / "images" / "goodput_against_load.png"

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
    """What the same policies do at one load: SLOs, tails, who starves."""
    body = []
    for text, by_load in rows(said):
        name = by_load[load]
        policy = said["loads"][load]["policies"][name]
        body.append(
            [
                text,
                f"`{name}`",
                cell(policy, "goodput", 100),
                cell(policy, "score", 1, 2),
                *(cell(policy, metric, scale, 2) for metric, scale in (("ttft_s", 1), ("ttft_p99_s", 1))),
                cell(policy, "tpot_s", 1e3),
                cell(policy, "worst_token_gap_s", 1, 2),
                cell(policy, "longest_wait_s"),
            ]
        )
    columns = ["goodput, %", "score", "TTFT s", "TTFT p99 s", "TPOT ms", "worst token gap s", "longest wait s"]
    return grid([f"at load {load}", "policy", *columns], body)


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
    details = "\n\n".join(detail_table(said, load) for load in sorted(said["loads"], key=float))
    if not options.write:
        print(short, details, sep="\n")
        return
    for page, text in ((README, short), (PAGE, f"{short}\n{details}\n")):
        written = replaced(page.read_text(encoding="utf-8"), "serving results", text)
        with write_whole(page) as path:
            path.write_text(written, encoding="utf-8")
    with write_whole(PICTURE) as path:
        shutil.copyfile(options.folder / "goodput_against_load.png", path)


if __name__ == "__main__":
    main()
