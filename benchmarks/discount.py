"""Which reward is right under which discount: the threshold that each discounted return asks for, and what it costs.

For every discount factor and reward, the threshold k with the largest mean discounted return over a few training cases
(one factor an iteration, as in an environment without ``skip_forced``), and the makespan that this k gives. The last
line is the threshold with the shortest makespan.

    python benchmarks/discount.py [--scenario ID] [--queue client|shared] [--cases 8]
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import llmsched_env  # noqa: F401  # registers the ids
from llmsched_env import make_scenario
from llmsched_env.baselines.iteration import threshold
from llmsched_env.config import REWARDS
from llmsched_env.evaluation import play
from llmsched_env.simulator import Simulator

CHARGED = tuple(name for name in REWARDS if name != "goodput")
"""Rewards of scenarios without SLOs."""

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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="LLMSched/GSM8K-v0", metavar="ID", help="environment id (%(default)s)")
    parser.add_argument("--queue", default="client", help="client or shared (%(default)s)")
    parser.add_argument("--cases", type=int, default=8, help="training cases (%(default)s)")
    options = parser.parse_args()

    base = make_scenario(options.scenario, queue=options.queue, split="train")
    returns = np.zeros((len(THRESHOLDS), len(DISCOUNTS), len(CHARGED)))
    makespans_s = np.zeros(len(THRESHOLDS))
    for row, k in enumerate(tqdm(THRESHOLDS, desc="thresholds", leave=False)):
        for case in range(options.cases):
            simulator = play(threshold(k), base.replace(reward=CHARGED[case % len(CHARGED)]), case, record=True)
            makespans_s[row] += int(simulator.view.clock_ns) / 1e9 / options.cases
            for column, charge in enumerate(charges(simulator)[name] for name in CHARGED):
                for line, discount in enumerate(DISCOUNTS):
                    returns[row, line, column] -= charge @ discount ** np.arange(len(charge)) / options.cases

    print(f"{options.scenario}, queue={options.queue}, {options.cases} train cases: best k by return: makespan in s\n")
    print("| discount | " + " | ".join(CHARGED) + " |\n| --- |" + " --- |" * len(CHARGED))
    for line, discount in enumerate(DISCOUNTS):
        best = returns[:, line].argmax(axis=0)
        print(f"| {discount} | " + " | ".join(f"k = {THRESHOLDS[i]}: {makespans_s[i]:.2f}" for i in best) + " |")
    best = int(makespans_s.argmin())
    print(f"\nshortest makespan: k = {THRESHOLDS[best]}, {makespans_s[best]:.2f} s; longest: {makespans_s.max():.2f} s")


if __name__ == "__main__":
    main()
