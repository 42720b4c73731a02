"""Which order and admission wins where the KV cache is a budget: methods of 2025 and 2026 side by side.

Batches that are there at once, and requests over time, on test cases. `mc_sf` is what the others are compared with,
case by case. On requests over time each case is played with SLOs that are no limit, which measures latencies.

    python benchmarks/memory_methods.py [--cases 20] [--write]

``--write`` puts the two tables into docs/memory.md, and all of it into docs/data/memory_methods.csv.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env import make_scenario
from llmsched_env.baselines.registry import entry
from llmsched_env.config import LARGEST, Scenario
from llmsched_env.evaluation import evaluate, mean_estimate
from llmsched_env.progress import Progress
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced
from llmsched_env.studies.tables import Table
from llmsched_env.workload import Requests, workload

ROOT = Path(__file__).parents[1]
PAGE, DATA = ROOT / "docs" / "memory.md", ROOT / "docs" / "data" / "memory_methods.csv"
BASE = "mc_sf"
BLIND = ("prefill_first", "memory_aware")
AT_ONCE = (*BLIND, BASE, "svf", "svf_1bit", "sorted_f", "a_max", "a_min")
SERVED = (*BLIND, BASE, "svf", "svf_1bit", "aged_sf", "a_max", "a_min")
KEPT = ("mean_latency_s", "makespan_s", "preemptions")
KNOWS = {"known": "lengths", "predicted": "predictions", "hidden": "nothing"}
TAILS = ("ttft_p99_s", "latency_p99_s")

Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class AtOnce:
    """The requests of another workload, all there at the beginning: lengths of its own, as many as GSM8K has.

    Attributes:
        source: name of that workload.
    """

    source: str

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.source}, at once"

    def pool_size(self, split: str) -> int | None:
        """Cases of a split; ``None`` for no end."""
        return workload(self.source).pool_size(split)

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """A case."""
        drawn = workload(self.source).requests(split, number, num_requests=num_requests or 1319)
        return Requests.of(drawn.prompt_tokens, drawn.output_tokens, mean_output_tokens=drawn.mean_output_tokens)


MIXED_PROMPTS = AtOnce("azure-synthetic")
BATCHES: dict[str, dict[str, Any]] = {
    "GSM8K, 170,000": {"workload": "gsm8k", "kv_budget_tokens": 170_000},
    "GSM8K, 60,000": {"workload": "gsm8k", "kv_budget_tokens": 60_000},
    "smooth, 60,000": {"workload": "gsm8k-smooth", "kv_budget_tokens": 60_000},
    "Azure, 170,000": {"workload": MIXED_PROMPTS, "kv_budget_tokens": 170_000},
    "Azure, 60,000": {"workload": MIXED_PROMPTS, "kv_budget_tokens": 60_000},
}
NO_LIMIT = {name: LARGEST[name] for name in ("ttft_s", "tpot_s")}
OVER_TIME: dict[str, dict[str, Any]] = {
    f"{title}, {budget:,}, load {load}": {
        **NO_LIMIT, "workload": source, "kv_budget_tokens": budget, "load": load, "num_clients": 200,
    }
    for title, source, budget, load in (
        ("GSM8K", "serving", 60_000, 0.9),
        ("Azure", "azure-synthetic", 60_000, 0.7),
        ("Azure", "azure-synthetic", 60_000, 0.9),
        ("Azure", "azure-synthetic", 170_000, 0.9),
    )
}  # fmt: skip


def place(changes: dict[str, Any]) -> Scenario:
    """LLMSched/KVMemory-v0 on test cases, without caps."""
    return make_scenario("LLMSched/KVMemory-v0", split="test", choose_cap=False, **changes)


def measure(scenario: Scenario, names: tuple[str, ...], cases: int) -> dict[str, tuple[str, Columns]]:
    """What each method knows, and what it reached, by case."""
    found = {}
    for name in names:
        item = entry(name, scenario)
        result = evaluate(item.policy, item.scenario, cases)
        kept = KEPT + (TAILS if scenario.serving else ())
        known = KNOWS[item.scenario.lengths]
        found[name] = known, {metric: result.columns[metric] for metric in kept}
    return found


def above(found: dict[str, tuple[str, Columns]], name: str, metric: str) -> NDArray[np.float64]:
    """(cases,) how much more a method has than `BASE`, in %."""
    excess: NDArray[np.float64] = 100.0 * (found[name][1][metric] / found[BASE][1][metric] - 1.0)
    return excess


def rows_of(where: str, found: dict[str, tuple[str, Columns]]) -> list[list[str]]:
    """Of the CSV: each metric with its interval, and against `BASE`."""
    rows = []
    for name, (known, columns) in found.items():
        for metric, values in columns.items():
            estimates = [mean_estimate(values)]
            estimates += [mean_estimate(above(found, name, metric))] if metric != "preemptions" else []
            cells = [f"{x:.4g}" for estimate in estimates for x in estimate]
            rows.append([where, name, known, metric, *cells, *[""] * (6 - len(cells))])
    return rows


def short(found: dict[str, dict[str, tuple[str, Columns]]], names: tuple[str, ...]) -> str:
    """Mean latency against `BASE`, and of requests over time the 99th percentile of TTFT."""
    rows = []
    for name in names:
        cells = []
        for place_found in found.values():
            columns = place_found[name][1]
            estimate = mean_estimate(above(place_found, name, "mean_latency_s"))
            half = estimate.mean - estimate.low
            cell = f"{columns['mean_latency_s'].mean():.1f} s" if name == BASE else f"{estimate.mean:+.1f} ± {half:.1f}"
            tail = f"; {columns['ttft_p99_s'].mean():.0f}" if "ttft_p99_s" in columns else ""
            cells.append(cell + tail)
        rows.append([f"`{name}`", *cells])
    return grid(["policy", *found], rows)


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20, help="test cases, at least 2 (%(default)s)")
    parser.add_argument("--write", action="store_true", help="replace the tables of docs/memory.md and their CSV")
    options = parser.parse_args()
    wanted = [(BATCHES, AT_ONCE), (OVER_TIME, SERVED)]
    progress = iter(Progress([where for places, _ in wanted for where in places], desc="places", unit="place"))
    tables, rows = [], []
    for places, names in wanted:
        found = {where: measure(place(places[where]), names, options.cases) for where, _ in zip(places, progress)}  # noqa: B905
        tables.append(short(found, names))
        rows += [row for where in found for row in rows_of(where, found[where])]
    header = ["place", "policy", "knows", "metric", "mean", "ci95_low", "ci95_high"]
    header += ["above_mc_sf_percent", "above_mc_sf_ci95_low", "above_mc_sf_ci95_high"]
    table = Table("memory_methods", "methods under a KV budget", header, rows)
    if not options.write:
        print(*tables, table.csv(), sep="\n\n")
        return
    page = PAGE.read_text(encoding="utf-8")
    for name, text in zip(("memory at once", "memory over time"), tables, strict=True):
        page = replaced(page, name, f"{text}\n")
    for path, text in ((DATA, table.csv()), (PAGE, page)):
        with write_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
