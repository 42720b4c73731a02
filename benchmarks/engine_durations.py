"""How well a fitted simulator predicts an engine's durations: ``python benchmarks/engine_durations.py``, with vLLM.

vLLM's own scheduler serves one load under several token budgets, in turn, several times. A cost model is fitted to
some budgets, and predicts makespan and mean TTFT of all; the ranking of the budgets is compared. It needs vLLM in the
same Python, and says nothing of machines that do other work meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from llmsched_env.engines.fitting import RecordedFit, fit_recording, pooled
from llmsched_env.engines.recording import Recording, latencies_s, read_recording
from llmsched_env.engines.replay import replay
from llmsched_env.engines.trial import TrialEngine, drawn_load
from llmsched_env.progress import Progress
from llmsched_env.storage import write_whole

FIGURES = ("makespan_s", "ttft_s")
BUDGETS = (64, 128, 256, 512, 2048)
FITTED = (64, 2048)
"""The ends: what lies between them is interpolated."""
RESAMPLES = 2000
COLUMNS = ("token_budget", "fitted", "repeat", "figure", "measured_s", "simulated_s")


def measured(options: argparse.Namespace, folder: Path) -> dict[int, list[Recording]]:
    """The recordings by budget, one a repeat; budgets take turns, each repeat from another one on."""
    load = drawn_load(options.requests, rate_per_s=options.rate, prompts=(64, 900), outputs=(2, 48), seed=options.seed)
    engine = TrialEngine(max_num_seqs=options.seats, token_budget=max(*options.budgets, options.seats))
    runs: dict[int, list[Recording]] = {budget: [] for budget in options.budgets}
    turns = [
        (repeat, options.budgets[(repeat + i) % len(options.budgets)])
        for repeat in range(options.repeats)
        for i in range(len(options.budgets))
    ]
    for repeat, budget in Progress(turns, total=len(turns), desc="serving", unit="run"):
        place = folder / f"{budget}-{repeat}"
        engine.run(load, place, token_budget=budget)
        runs[budget].append(read_recording(place))
    engine.close()
    return runs


def rows_of(runs: dict[int, list[Recording]], fit: RecordedFit, fitted: list[int]) -> list[dict[str, Any]]:
    """A row a budget, repeat and figure."""
    rows = []
    for budget, recordings in runs.items():
        for repeat, recording in enumerate(recordings):
            there, here = latencies_s(recording), latencies_s(replay(recording, fit.model))
            for figure in FIGURES:
                values = (budget, budget in fitted, repeat, figure, round(there[figure], 6), round(here[figure], 6))
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def table_of(rows: list[dict[str, Any]], figure: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Budgets, and (budgets, repeats) of what was measured and simulated."""
    budgets = list(dict.fromkeys(row["token_budget"] for row in rows))

    def column(name: str) -> np.ndarray:
        chosen = [[r[name] for r in rows if r["token_budget"] == b and r["figure"] == figure] for b in budgets]
        return np.array(chosen)

    return budgets, column("measured_s"), column("simulated_s")


def ranking(measured_s: np.ndarray, simulated_s: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Kendall's tau of the medians, and its 95 % interval when repeats are drawn again."""
    draws = np.random.default_rng(seed).integers(0, measured_s.shape[1], (RESAMPLES, measured_s.shape[1]))
    there, here = np.median(measured_s, axis=1), np.median(simulated_s, axis=1)
    tau = float(kendalltau(there, here).statistic)
    again = [kendalltau(np.median(measured_s[:, d], axis=1), np.median(simulated_s[:, d], axis=1)) for d in draws]
    low, high = np.quantile([one.statistic for one in again], (0.025, 0.975))
    return tau, float(low), float(high)


def told(rows: list[dict[str, Any]], fit: RecordedFit, repeats: int, loads: list[float]) -> str:
    """The result in Markdown."""
    lines = [
        "| budget | used for the fit | makespan measured | simulated | error | TTFT measured | simulated | error |"
    ]
    lines.append("| --- " * 8 + "|")
    fitted = {row["token_budget"]: row["fitted"] for row in rows}
    parts: dict[int, list[str]] = {budget: [] for budget in fitted}
    notes = []
    for figure in FIGURES:
        budgets, there, here = table_of(rows, figure)
        for budget, a, b in zip(budgets, np.median(there, axis=1), np.median(here, axis=1), strict=True):
            parts[budget] += [f"{a:.3f} s", f"{b:.3f} s", f"{b / a - 1:+.1%}"]
        off = [
            abs(b / a - 1)
            for budget, a, b in zip(budgets, np.median(there, axis=1), np.median(here, axis=1), strict=True)
            if not fitted[budget]
        ]
        spread = statistics.median(np.ptp(there, axis=1) / np.median(there, axis=1))
        apart = np.median(there, axis=1).max() / np.median(there, axis=1).min() - 1
        tau, low, high = ranking(there, here)
        notes.append(
            f"{figure}: error of budgets that were not fitted {max(off):.1%} at most; budgets differ by {apart:.0%}; "
            f"repeats of one budget by {spread:.0%}; Kendall's tau {tau:.2f} (95 % interval {low:.2f} to {high:.2f})"
        )
    lines += [
        f"| {budget} | {'yes' if fitted[budget] else 'no'} | {' | '.join(cells)} |" for budget, cells in parts.items()
    ]
    load = ", ".join(f"{value:.1f}" for value in loads)
    notes.append(f"medians of {repeats} repeats; {os.cpu_count()} cores, load average at begin and end: {load}")
    notes.append(f"iterations last {fit.excess:+.1%} beyond the model in sum")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def numbers(text: str) -> list[int]:
    """``64,128`` for argparse."""
    return [int(part) for part in text.split(",")]


def main() -> int:
    """Measure, fit, predict, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--repeats", type=int, default=7, help="of each budget, taking turns (default: %(default)s)")
    add("--requests", type=int, default=60)
    add("--rate", type=float, help="arrivals a second (default: all at once)")
    add("--seats", type=int, default=16)
    add("--budgets", type=numbers, default=list(BUDGETS), metavar="A,B,...")
    add("--fit", type=numbers, default=list(FITTED), metavar="A,B,...", help="budgets that the cost model is fitted on")
    add("--seed", type=int, default=0)
    add("--csv", type=Path, help="also write every repeat there")
    options = parser.parse_args()
    if not set(options.fit) < set(options.budgets):
        parser.error("--fit: name some of --budgets, not all")
    begin = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        runs = measured(options, Path(folder))
        fit = fit_recording(pooled([one for budget in options.fit for one in runs[budget]]), name="fitted")
        rows = rows_of(runs, fit, options.fit)
    print(fit.report(), "\n")
    print(told(rows, fit, options.repeats, [begin, os.getloadavg()[0]]))
    if options.csv is not None:
        with write_whole(options.csv) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
