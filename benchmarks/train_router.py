"""Train the weights of the router `linear` on training cases of ``LLMSched/Router-v0``, and compare it on test cases.

    python benchmarks/train_router.py [--generations 30] [--cases 40]

CMA-ES from the weights of `least_outstanding`: ten candidates a generation, each on eight training cases, which change
from one generation to the next (five sets in turn). The mean of the last generation is printed, and compared with every
other router on test cases, which training never saw. Three minutes on one core; seed 0.
"""

from __future__ import annotations

import argparse

import numpy as np
from cmaes import CMA

from llmsched_env import ROUTER_ENVIRONMENTS
from llmsched_env.baselines import make_policy
from llmsched_env.config import Scenario
from llmsched_env.evaluation.tables import grid, interval
from llmsched_env.policy import Policy
from llmsched_env.progress import Progress
from llmsched_env.replicas import ROUTERS, make_fleet
from llmsched_env.replicas.comparing import compare_routers
from llmsched_env.replicas.fleet import send_all
from llmsched_env.replicas.routers import LINEAR_FEATURES, Linear

CASES, SETS, POPULATION, SIGMA = 8, 5, 10, 0.4


def violations(scenario: Scenario, policy: Policy, replicas: int, weights: np.ndarray, cases: range) -> float:
    """Share of the counted requests of these cases that violate an SLO."""
    total = counted = 0
    for case in cases:
        fleet = make_fleet(scenario, policy, replicas, case, forecast=True)
        send_all(fleet, Linear(weights.tolist()), 0)
        total += fleet.violations
        counted += fleet.counted
    return total / counted


def main() -> None:
    """Train, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=30)
    parser.add_argument("--cases", type=int, default=40)
    options = parser.parse_args()
    arguments = dict(ROUTER_ENVIRONMENTS["LLMSched/Router-v0"])
    replicas, policy = arguments.pop("replicas"), make_policy(arguments.pop("policy"))
    training = Scenario(split="train", **arguments)
    first = np.array([float(name in ("active", "waiting")) for name in LINEAR_FEATURES])
    search = CMA(mean=first, sigma=SIGMA, seed=0, population_size=POPULATION)
    bar = Progress(range(options.generations), total=options.generations, desc="training", unit="generation")
    for generation in bar:
        start = CASES * (generation % SETS)
        cases = range(start, start + CASES)
        asked = [search.ask() for _ in range(POPULATION)]
        search.tell([(one, violations(training, policy, replicas, one, cases)) for one in asked])
    weights = search.mean / search.mean[0]
    print("weights:", ", ".join(f"{name} {weight:.3f}" for name, weight in zip(LINEAR_FEATURES, weights, strict=True)))
    names = [name for name in ROUTERS if name != "linear"]
    routers = [*names, Linear([round(float(weight), 3) for weight in weights])]
    test = training.replace(split="test")
    rows = compare_routers(test, policy, routers, replicas, np.arange(options.cases))
    body = [[row.router, interval(row.estimate("goodput"), 100), interval(rows[-1].above(row), 100)] for row in rows]
    print(grid(["router", "goodput %", "linear above it"], body))


if __name__ == "__main__":
    main()
