"""Agents of LLMSched/GSM8KOrder-v0: the file that is shipped, and how near they come to the joint plan.

    for w in gsm8k gsm8k-smooth; do for s in 0 1 2 3 4; do
      python train.py --algo es --scenario LLMSched/GSM8KOrder-v0 --workload $w --seed $s \\
        --settings benchmarks/order_agent.yaml --out RUNS/$w-$s; done; done
    python benchmarks/order_agent.py RUNS box       # ships, of each workload, the seed that is best on validation cases
    python benchmarks/order_agent.py RUNS [--cases 100] [--write]

The last plays test cases, and with ``--write`` writes docs/data/order_agent.csv: gaps to the bound in %, with the
half width of their 95 % intervals, and ms a decision (measured here: only their size says something).
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmsched_env import make_scenario
from llmsched_env.agents import load_agent
from llmsched_env.agents.files import WEIGHTS, AgentFile
from llmsched_env.baselines import entry
from llmsched_env.baselines.planners import Rollout, _patience
from llmsched_env.baselines.rule import Rule
from llmsched_env.config import Scenario
from llmsched_env.engine.patience import Patience
from llmsched_env.evaluation import evaluate, mean_estimate
from llmsched_env.policy import Policy
from llmsched_env.progress import Progress
from llmsched_env.storage import write_whole

DATA = Path(__file__).parents[1] / "docs" / "data" / "order_agent.csv"
WORKLOADS = ("gsm8k", "gsm8k-smooth")
SEEDS = range(5)
NAME = "gsm8k_order"
VALIDATION_CASES = 50


def place(workload: str, split: str) -> Scenario:
    """The id on other lengths."""
    return make_scenario("LLMSched/GSM8KOrder-v0", workload=workload, split=split)


def runs(folder: Path, workload: str) -> dict[int, Path]:
    """Files of the agents that there are, by seed."""
    paths = {seed: folder / f"{workload}-{seed}" / "agent.npz" for seed in SEEDS}
    return {seed: path for seed, path in paths.items() if path.is_file()}


def gaps(policy: Policy, scenario: Scenario, cases: int) -> np.ndarray:
    """(cases,) in %."""
    return 100 * evaluate(policy, scenario, cases, latencies=False).columns["gap_to_bound"]


def box(folder: Path) -> None:
    """Ship the best seeds."""
    chosen, seeds = [], []
    for workload in WORKLOADS:
        where = place(workload, "validation")
        found = {
            seed: float(gaps(load_agent(path), where, VALIDATION_CASES).mean())
            for seed, path in runs(folder, workload).items()
        }
        best = min(found, key=lambda seed: found[seed])
        print(workload, {seed: round(gap, 3) for seed, gap in found.items()}, "->", best)
        chosen += AgentFile.read(runs(folder, workload)[best]).trained
        seeds.append(best)
    AgentFile(tuple(chosen), "benchmarks/order_agent.py box", tuple(seeds)).write(WEIGHTS / f"{NAME}.npz")


def measured(folder: Path, cases: int) -> list[dict[str, object]]:
    """A row for each policy, workload and seed."""
    rows: list[dict[str, object]] = []
    for workload in WORKLOADS:
        where = place(workload, "test")
        makers: list[tuple[str, object, Callable[[], Policy]]] = [
            (name, "", lambda name=name, where=where: entry(name, where).policy)  # type: ignore[misc]
            for name in ("beam", "joint", "tuned_threshold")
        ]
        makers.append(("rollout on Patience", "", lambda: Rollout(Rule("patience", Patience, _patience))))
        for seed, path in runs(folder, workload).items():
            makers.append(("network", seed, lambda path=path: load_agent(path)))  # type: ignore[misc]
            makers.append(("rollout on the network", seed, lambda path=path: Rollout(load_agent(path))))  # type: ignore[misc]
        for name, seed, make in Progress(makers, desc=workload, unit="policy"):
            own = seed == "" and not name.startswith("rollout")
            scenario = entry(name, where).scenario if own else where
            policy = make()
            start, counted = time.perf_counter(), Counted(policy)
            found = gaps(counted if name.startswith("rollout") else policy, scenario, cases)
            spent_ms = 1e3 * (time.perf_counter() - start)
            interval = mean_estimate(found)
            rows.append(
                {
                    "workload": workload,
                    "policy": name,
                    "seed": seed,
                    "gap_percent": round(interval.mean, 4),
                    "half_width": round(interval.high - interval.mean, 4),
                    "worst": round(float(found.max()), 4),
                    "ms_a_decision": round(spent_ms / counted.decisions, 3) if counted.decisions else "",
                }
            )
            print(rows[-1], flush=True)
    return rows


class Counted:
    """A policy, and how often it was asked."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.name, self.kind, self.clairvoyant = f"counted_{policy.name}", policy.kind, policy.clairvoyant
        self.plans = getattr(policy, "plans", False)
        self.reset = policy.reset
        self.decisions = 0

    def act(self, view: object) -> int:
        """The policy's action; a decode that the base rule goes on with is no decision."""
        self.decisions += not getattr(self._policy, "_follows", False)
        return self._policy.act(view)  # type: ignore[arg-type]


def main() -> None:
    """Ship, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("step", nargs="?", choices=("box", "test"), default="test")
    parser.add_argument("--cases", type=int, default=100, help="test cases (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help=f"write {DATA.name}")
    options = parser.parse_args()
    if options.step == "box":
        box(options.folder)
        return
    rows = measured(options.folder, options.cases)
    if options.write:
        with write_whole(DATA) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
