"""``python -m llmsched_env.offline.joint.pools``: make and verify the joint plans that ship with the package.

What is shipped already is kept, and each new case goes through the disk cache, so a run that was killed goes on where
it was. A case takes about a minute of one core; ``--cases`` makes the first ones only. To make all anew, delete the
file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from llmsched_env.cost import cost_model
from llmsched_env.errors import ConfigError, LLMSchedError
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint.plan import JointPlan
from llmsched_env.offline.joint.search import Effort
from llmsched_env.offline.joint.store import plan_digest, plan_of, pool_path, shipped_plans, stored_plan
from llmsched_env.offline.pools import CLIENTS, SPLITS, WORKLOADS, pool_size, solved
from llmsched_env.progress import Progress
from llmsched_env.storage import write_whole
from llmsched_env.workload import workload

__all__ = ["COST", "EFFORT", "build", "main", "verify"]

COST = cost_model("llama-65b-paper")

EFFORT = Effort(tries=8, goal=0.0024)
"""Of shipped plans."""


def _case(job: tuple[str, str, int]) -> JointPlan:
    name, split, number = job
    return stored_plan(workload(name).requests(split, number), CLIENTS, COST, effort=EFFORT)


def build(name: str, split: str, cases: int, *, processes: int = 1) -> None:
    """Plan the first cases of a split and write them to the package, whole or not at all.

    Raises:
        PathError: the file cannot be written.
    """
    jobs = [(name, split, number) for number in range(cases)]
    made = solved(_case, jobs, processes, at_once=1)
    plans = list(Progress(made, total=cases, desc=f"{name} {split}", unit="case"))
    instants = np.full((cases, max(plan.prefills for plan in plans)), -1, np.int32)
    for row, plan in zip(instants, plans, strict=True):
        row[: plan.prefills] = plan.instants
    digests = [plan_digest(workload(name).requests(split, number), CLIENTS, COST) for number in range(cases)]
    with write_whole(pool_path(name, split)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            digest=np.array(digests, "S64"),
            prefill_of=np.stack([plan.prefill_of for plan in plans]).astype(np.uint8),
            instants=instants,
        )


def verify(name: str, split: str) -> list[float]:
    """The gap to the bound of each case that is in a pool's file, played anew.

    Raises:
        ConfigError: a file without a case of the split, or a plan that is none.
    """
    rows = shipped_plans(pool_path(name, split))
    gaps = []
    for number in range(pool_size(name, split)):
        requests = workload(name).requests(split, number)
        row = rows.pop(plan_digest(requests, CLIENTS, COST), None)
        if row is not None:
            gaps.append(plan_of(Case.of(requests, CLIENTS, COST), *row).gap)
    if rows or not gaps:
        raise ConfigError(
            f"{pool_path(name, split).name} has {len(gaps)} cases of the split and {len(rows)} others: build it again."
        )
    return gaps


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m llmsched_env.offline.joint.pools", description=__doc__)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--splits", nargs="+", default=["test"], choices=SPLITS)
    parser.add_argument("--cases", type=int, metavar="N", help="the first N (default: all)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (the result is the same)")
    parser.add_argument("--verify", action="store_true", help="check the files that are there; make nothing")
    args = parser.parse_args(argv)
    for name, value in (("jobs", args.jobs), ("cases", args.cases)):
        if value is not None and value < 1:
            parser.error(f"--{name} {value}: give at least 1.")
    failed = False
    for name in args.workloads:
        for split in args.splits:
            size = pool_size(name, split)
            try:
                if not args.verify:
                    build(name, split, min(size, args.cases or size), processes=args.jobs)
                gaps = 100 * np.array(verify(name, split))
                told = f"{len(gaps)} of {size} cases, gap {gaps.mean():.3f} % in the mean, {gaps.max():.3f} % at most"
                print(f"{pool_path(name, split).name}: {told}")
            except LLMSchedError as error:
                print(f"{pool_path(name, split).name}: {error}", file=sys.stderr)
                failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
