"""How well a fitted simulator predicts an engine's durations: ``python benchmarks/engine_durations.py``, with vLLM.

One load is served by vLLM's own scheduler and by policies, in turn, several times. In each repeat a cost model is
fitted to vLLM's own scheduler at two token budgets, and predicts makespan and mean TTFT of everything else in that
repeat, so that a machine that slows down meanwhile slows both; the rankings are compared. It needs vLLM in the same
Python.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from llmsched_env.engines.fitting import fit_recording, pooled
from llmsched_env.engines.recording import Recording, latencies_s, read_recording
from llmsched_env.engines.replay import replay
from llmsched_env.engines.trial import TrialEngine, drawn_load
from llmsched_env.progress import Progress
from llmsched_env.storage import write_whole


@dataclass(frozen=True)
class Setting:
    """Who decides, within how many tokens an iteration."""

    token_budget: int
    policy: str | None = None
    parameters: tuple[float, ...] = ()
    fitted: bool = False

    @property
    def name(self) -> str:
        """What the table calls it."""
        if self.policy is None:
            return f"vLLM's own, {self.token_budget} tokens"
        return self.policy + (f"({', '.join(map(str, self.parameters))})" if self.parameters else "")

    @property
    def options(self) -> dict[str, Any] | None:
        """Of the driver; ``None`` where vLLM's own scheduler decides."""
        return None if self.policy is None else {"policy": self.policy, "parameters": list(self.parameters)}


SETTINGS = (
    Setting(64, fitted=True),
    Setting(2048, fitted=True),
    Setting(256),
    Setting(2048, "prefill_first"),
    Setting(2048, "threshold", (8,)),
    Setting(2048, "threshold", (10,)),
    Setting(2048, "static_batching"),
    Setting(2048, "threshold", (12,)),
)
"""The two ends of vLLM's own are fitted. No policy here asks for costs, so none of them knows the fit."""

FIGURES = {"makespan_s": "makespan", "ttft_s": "TTFT"}
RESAMPLES = 2000
COLUMNS = ("setting", "fitted", "repeat", "figure", "measured_s", "simulated_s")
SEATS = 16


def measured(options: argparse.Namespace, folder: Path) -> list[list[Recording]]:
    """The recordings by setting, one a repeat; settings take turns, each repeat from another one on."""
    load = drawn_load(options.requests, rate_per_s=options.rate, prompts=(16, 600), outputs=(2, 200), seed=options.seed)
    engine = TrialEngine(max_num_seqs=SEATS, token_budget=max(one.token_budget for one in SETTINGS), driven=True)
    runs: list[list[Recording]] = [[] for _ in SETTINGS]
    turns = [(r, (r + i) % len(SETTINGS)) for r in range(options.repeats) for i in range(len(SETTINGS))]
    for repeat, which in Progress(turns, total=len(turns), desc="serving", unit="run"):
        place, setting = folder / f"{which}-{repeat}", SETTINGS[which]
        engine.run(load, place, token_budget=setting.token_budget, options=setting.options)
        runs[which].append(read_recording(place))
    engine.close()
    return runs


def rows_of(runs: list[list[Recording]]) -> list[dict[str, Any]]:
    """A row a repeat, setting and figure."""
    rows = []
    for repeat, recordings in enumerate(zip(*runs, strict=True)):
        fitted = [one for setting, one in zip(SETTINGS, recordings, strict=True) if setting.fitted]
        model = fit_recording(pooled(fitted)).model
        for setting, recording in zip(SETTINGS, recordings, strict=True):
            there, here = latencies_s(recording), latencies_s(replay(recording, model))
            for figure in FIGURES:
                times = (round(there[figure], 6), round(here[figure], 6))
                values = (setting.name, setting.fitted, repeat, figure, *times)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


Times = NDArray[np.float64]
"""(settings, repeats) in seconds."""


def table_of(rows: list[dict[str, Any]], figure: str) -> tuple[Times, Times]:
    """What was measured and simulated."""

    def column(name: str) -> Times:
        by_setting = [
            [row[name] for row in rows if row["setting"] == setting.name and row["figure"] == figure]
            for setting in SETTINGS
        ]
        return np.array(by_setting, np.float64)

    return column("measured_s"), column("simulated_s")


def again(figure: Callable[[NDArray[np.int64]], Any], repeats: int, seed: int = 0) -> NDArray[np.float64]:
    """The 95 % interval of a figure when repeats are drawn again."""
    draws = np.random.default_rng(seed).integers(0, repeats, (RESAMPLES, repeats))
    return np.quantile([figure(draw) for draw in draws], (0.025, 0.975), axis=0)


def ranking(there: Times, here: Times) -> tuple[float, float, float]:
    """Kendall's tau of the medians, and its interval."""

    def tau(draw: NDArray[np.int64]) -> float:
        return float(kendalltau(*(np.median(times[:, draw], axis=1) for times in (there, here))).statistic)

    repeats = there.shape[1]
    low, high = again(tau, repeats)
    return tau(np.arange(repeats)), float(low), float(high)


def told(rows: list[dict[str, Any]], repeats: int, loads: Sequence[float]) -> str:
    """The result in Markdown."""
    predicted = np.array([not setting.fitted for setting in SETTINGS])
    cells: list[list[str]] = [[setting.name, "yes" if setting.fitted else "no"] for setting in SETTINGS]
    notes = []
    for figure, shown in FIGURES.items():
        there, here = table_of(rows, figure)
        medians, errors = np.median(there, axis=1), np.median(here / there - 1, axis=1)
        lows, highs = again(lambda draw, t=there, h=here: np.median((h / t - 1)[:, draw], axis=1), there.shape[1])
        for row, *values in zip(cells, medians, np.median(here, axis=1), errors, lows, highs, strict=True):
            row += [f"{values[0]:.3f}", f"{values[1]:.3f}"]
            row.append("{:+.1%} ({:+.1%} to {:+.1%})".format(*values[2:]))
        apart = medians[predicted].max() / medians[predicted].min() - 1
        spread = np.median(np.ptp(there, axis=1) / medians)
        tau, low, high = ranking(there[predicted], here[predicted])
        notes.append(
            f"{shown} of what was not fitted: error {np.abs(errors[predicted]).max():.1%} at most; settings differ by "
            f"{apart:.0%}, repeats of one by {spread:.0%}; Kendall's tau {tau:.2f} (95 % interval {low:.2f} to "
            f"{high:.2f})"
        )
    load = ", ".join(f"{value:.1f}" for value in loads)
    notes.append(
        f"medians of {repeats} repeats, errors with 95 % intervals; {os.cpu_count()} cores, load average at begin and "
        f"end: {load}"
    )
    head = "| who decides | fitted |" + "".join(f" {shown} (s) | simulated | error |" for shown in FIGURES.values())
    lines = [head, "| --- " * (2 + 3 * len(FIGURES)) + "|", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])


def main() -> int:
    """Measure, fit, predict, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--repeats", type=int, default=7, help="of each setting, taking turns (default: %(default)s)")
    add("--requests", type=int, default=60)
    add("--rate", type=float, help="arrivals a second (default: all at once)")
    add("--seed", type=int, default=0)
    add("--csv", type=Path, help="also write every repeat there")
    options = parser.parse_args()
    begin = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        runs = measured(options, Path(folder))
        rows = rows_of(runs)
    print(told(rows, options.repeats, [begin, os.getloadavg()[0]]))
    if options.csv is not None:
        with write_whole(options.csv) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
