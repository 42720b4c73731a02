"""Which reward is right under which discount: the threshold that each discounted return asks for, and what it costs.

For every discount factor and reward, the threshold k with the largest mean discounted return over a few training cases
(one factor an iteration, as in an environment without ``skip_forced``), and the makespan that this k gives. The last
lines are the thresholds with the shortest and the longest makespan.

    python benchmarks/discount.py [--queue client|shared] [--cases 8] [--write]

``--write`` puts the makespans into docs/model.md, and all of it into docs/data/discount.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import llmsched_env  # noqa: F401  # registers the ids
from llmsched_env import make_scenario
from llmsched_env.baselines.iteration import threshold
from llmsched_env.config import REWARDS, Scenario
from llmsched_env.evaluation import play
from llmsched_env.simulator import Simulator
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced
from llmsched_env.studies.tables import Table

ROOT = Path(__file__).parents[1]
PAGE, DATA = ROOT / "docs" / "model.md", ROOT / "docs" / "data" / "discount.csv"
IDS = {"LLMSched/GSM8K-v0": "GSM8K", "LLMSched/GSM8K-Smooth-v0": "smooth"}
CHARGED = ("excess", "makespan", "idle", "latency")
"""Rewards whose sum is a metric of every episode without SLOs."""
SHOWN = ("excess", "makespan")
SHORTEST, LONGEST = "shortest makespan", "longest makespan"

DISCOUNTS = (0.99, 0.999, 0.9999, 1.0)
THRESHOLDS = (*range(1, 21), 24, 28, 32, 40, 50, 64, 80, 100, 150, 200)


def charges(simulator: Simulator) -> dict[str, NDArray[np.float64]]:
    """(iterations,) what each iteration of a recorded episode without arrivals is charged, for each reward."""
    log, problem = simulator.log, simulator.problem
    cost, reward = problem.data.actual, REWARDS[problem.data.reward]
    clients, prefill = problem.num_clients, log["prefill"] == 1
    duration = (log["end_ns"] - log["start_ns"]).astype(np.float64)
    completions = np.sort(simulator.served["completion_ns"])
    in_system = problem.num_requests - np.searchsorted(completions, log["start_ns"], side="right")
    idle = clients - log["clients"]
    found = {
        "excess": np.where(prefill, cost.alpha_prefill_ns * clients, cost.alpha_decode_ns * idle),
        "makespan": duration,
        "idle": duration * idle,
        "latency": duration * in_system,
    }
    own = found[reward].sum()
    assert own == simulator.charge, f"charges sum to {own}, the engine says {simulator.charge}"
    scale = {"excess": clients, "makespan": 1, "idle": clients, "latency": problem.num_requests}
    return {name: values / (scale[name] * problem.lb1_ns) for name, values in found.items()}


def best_thresholds(base: Scenario, cases: int) -> list[list[str]]:
    """Discount, reward, the k with the best mean return and its mean makespan in s; last the k's of the extremes."""
    returns = np.zeros((len(THRESHOLDS), len(DISCOUNTS), len(CHARGED)))
    makespans_s = np.zeros(len(THRESHOLDS))
    for row, k in enumerate(tqdm(THRESHOLDS, desc=str(base.workload), leave=False)):
        for case in range(cases):
            simulator = play(threshold(k), base.replace(reward=CHARGED[case % len(CHARGED)]), case, record=True)
            makespans_s[row] += int(simulator.view.clock_ns) / 1e9 / cases
            charged = charges(simulator)
            for line, discount in enumerate(DISCOUNTS):
                weights = discount ** np.arange(len(charged["makespan"]))
                returns[row, line] -= [charged[name] @ weights / cases for name in CHARGED]
    best = returns.argmax(axis=0)
    chosen = [(f"{discount:g}", name) for discount in DISCOUNTS for name in CHARGED] + [("", SHORTEST), ("", LONGEST)]
    places = [*best.ravel(), makespans_s.argmin(), makespans_s.argmax()]
    return [[*what, str(THRESHOLDS[i]), f"{makespans_s[i]:.2f}"] for what, i in zip(chosen, places, strict=True)]


def short(table: Table) -> str:
    """Makespans by discount, for the two rewards that a discount tells apart."""
    parts = [(lengths, name) for lengths in IDS.values() for name in SHOWN]
    found = {(row[0], *row[1:3]): row[-1] for row in table.rows}
    rows = [
        [f"{discount:g}", *(found[lengths, f"{discount:g}", name] for lengths, name in parts)] for discount in DISCOUNTS
    ]
    return grid(["discount", *(f"{lengths}: `{name}`" for lengths, name in parts)], rows)


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue", default="client", help="client or shared (%(default)s)")
    parser.add_argument("--cases", type=int, default=8, help="training cases (%(default)s)")
    parser.add_argument("--write", action="store_true", help="replace the table of docs/model.md and its CSV")
    options = parser.parse_args()
    rows = []
    for scenario_id, lengths in IDS.items():
        base = make_scenario(scenario_id, queue=options.queue, split="train")
        rows += [[lengths, *row] for row in best_thresholds(base, options.cases)]
    table = Table("discount", "thresholds", ["lengths", "discount", "reward", "threshold", "makespan_s"], rows)
    if not options.write:
        print(short(table), table.csv(), sep="\n\n")
        return
    for path, text in (
        (DATA, table.csv()),
        (PAGE, replaced(PAGE.read_text(encoding="utf-8"), "discount", f"{short(table)}\n")),
    ):
        with write_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
