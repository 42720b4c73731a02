"""What the offline step reaches and what it costs: ``python benchmarks/offline.py [--cases N] [--csv PATH] [--naive]``.

One process, one core. Every row says how many cases met their bound (proved), the largest gap and the time a case took;
``--csv`` writes the rows there (docs/data/assignment.csv). ``--oracle N`` compares the lower bounds with the exact
optimum of N instances, larger than those of the tests, and of N test cases of each workload by size, then with the
joint plans of larger ones (minutes).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmsched_env.cost import PRESETS, CostModel, cost_model
from llmsched_env.offline import Assignment, Budget, assign, lb1_ns, lower_bounds, naive_model
from llmsched_env.offline.bounds import Case
from llmsched_env.offline.joint import joint_plan
from llmsched_env.storage import write_whole
from llmsched_env.workload import LognormalWorkload, Requests, Workload, workload

COLUMNS = ("instance", "method", "proved", "cases", "largest_gap_percent", "mean_s", "longest_s", "stages")
POLISH_ONLY = Budget(resplit_moves=0, polish_mips=2000)


def row(label: str, cases: list[Requests], solve: Callable[[Requests], Assignment]) -> list[str]:
    """Solve every case and print a line of the table; its cells for a CSV."""
    seconds, found = [], []
    for requests in cases:
        start = time.perf_counter()
        found.append(solve(requests))
        seconds.append(time.perf_counter() - start)
    proved = sum(assignment.proved for assignment in found)
    stages = sorted({assignment.stage for assignment in found})
    gap = max(assignment.gap for assignment in found)
    print(
        f"| {label} | {proved} of {len(found)} | {gap:.3%} | {np.mean(seconds):.3f} s | {max(seconds):.3f} s | "
        f"{', '.join(stages)} |",
        flush=True,
    )
    instance, _, method = label.rpartition(", ")
    figures = (str(proved), str(len(found)), f"{100 * gap:.3f}", f"{np.mean(seconds):.3f}", f"{max(seconds):.3f}")
    return [instance.replace(",", ""), method, *figures, ", ".join(stages)]


def assignments(count: int, *, naive: bool) -> list[list[str]]:
    """The table of the assignment step."""
    few = max(1, count // 20)
    print("| instance | proved | largest gap | mean | longest | stages |\n| --- | --- | --- | --- | --- | --- |")

    def cases(name: str, number: int, num_requests: int | None = None) -> list[Requests]:
        return [workload(name).requests("test", i, num_requests=num_requests) for i in range(number)]

    paper, smooth = cases("gsm8k", count), cases("gsm8k-smooth", count)
    assign(smooth[0], 200)  # compile before the clock runs
    found = [
        row("1319 / 200 smooth, lpt", smooth, lambda r: assign(r, 200, "lpt")),
        row("1319 / 200 smooth, mip", smooth, lambda r: assign(r, 200)),
        row("1319 / 200 smooth, PuLP polish alone", smooth[:few], lambda r: assign(r, 200, budget=POLISH_ONLY)),
        row("1319 / 200 gsm8k, lpt", paper, lambda r: assign(r, 200, "lpt")),
        row("1319 / 200 gsm8k, mip", paper, lambda r: assign(r, 200)),
        row("1319 / 10 gsm8k, mip", paper[:few], lambda r: assign(r, 10)),
        row("1319 / 400 gsm8k, mip", paper[:few], lambda r: assign(r, 400)),
        row("10,000 / 1,000 smooth, mip", cases("gsm8k-smooth", few, 10_000), lambda r: assign(r, 1_000)),
        row("10,000 / 1,000 gsm8k, mip", cases("gsm8k", few, 10_000), lambda r: assign(r, 1_000)),
        row("100,000 / 5,000 smooth, mip", cases("gsm8k-smooth", 1, 100_000), lambda r: assign(r, 5_000)),
        row("100,000 / 50 smooth, mip", cases("gsm8k-smooth", 1, 100_000), lambda r: assign(r, 50)),
    ]
    if naive:
        plain = cases("gsm8k-smooth", 1, 40)
        found.append(row("40 / 5 smooth, naive MIP", plain, lambda r: naive_model(r, 5, node_limit=20_000)))
    return found


def bounds() -> None:
    """Values and times of LB1 to LB3."""
    print("\n| preset, workload | LB1 | LB2 | LB3 | LB4 | LB1 takes | all take |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ("gsm8k", "gsm8k-smooth"):
        requests = workload(name).requests("test", 0)
        for preset in PRESETS:
            lower_bounds(requests, 200, preset)
            start = time.perf_counter()
            lb1_ns(requests, 200, preset)
            middle = time.perf_counter()
            found = lower_bounds(requests, 200, preset)
            end = time.perf_counter()
            values = " | ".join(f"{value / 1e9:.3f} s" for value in dataclasses.astuple(found))
            print(f"| {preset}, {name} | {values} | {(middle - start) * 1e6:.0f} us | {(end - middle) * 1e3:.1f} ms |")


def oracle(count: int) -> None:
    """Compare the bounds with the exact optimum of random instances of up to eight requests."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "offline"))
    from oracles import least_makespan_ns

    met = 0
    gaps = []
    for seed in range(count):
        rng = np.random.default_rng([9, seed])
        n, clients = int(rng.integers(6, 9)), int(rng.integers(2, 4))
        requests = Requests.of(rng.integers(1, 9, n), rng.integers(1, 9, n))
        cap = int(rng.integers(8, 40))
        cost = CostModel("random", int(rng.integers(0, 80)), 1, int(rng.integers(1, 40)), 1, prefill_token_cap=cap)
        optimum = least_makespan_ns(requests, clients, cost)
        found = lower_bounds(requests, clients, cost)
        if not found.lb1_ns <= found.lb2_ns <= found.lb3_ns <= found.lb4_ns <= optimum:
            raise SystemExit(f"bound above the optimum at seed {seed}: {found}, optimum {optimum} ns")
        met += found.best_ns == optimum
        gaps.append(optimum / found.best_ns - 1)
    print(
        f"\nlower bounds on {count} instances: none above the optimum, {met} equal to it, mean gap {np.mean(gaps):.2%}"
    )


def sources() -> list[tuple[str, Workload]]:
    """Lengths with repeats, smooth ones, and heavy tails."""
    tails = LognormalWorkload(output_sd_tokens=600.0)
    return [("gsm8k", workload("gsm8k")), ("smooth", workload("gsm8k-smooth")), ("sd 600", tails)]


def tightness(count: int) -> None:
    """How far the exact optimum is above LB1, LB3 and LB4, by size and lengths, with the default preset."""
    from oracles import least_counted  # oracle() has made it known

    cost = cost_model("llama-65b-paper")
    print("\n| n / J | lengths | above LB1 | above LB3 | above LB4 | LB4 met |\n| --- | --- | --- | --- | --- | --- |")
    for n, clients in ((6, 2), (8, 2), (8, 3), (9, 3), (8, 4)):
        for name, source in sources():
            gaps, met = [], 0
            for case in range(count):
                requests = source.requests("test", case, num_requests=n)
                case_of = Case.of(requests, clients, cost)
                units = math.gcd(cost.alpha_prefill_ns, cost.alpha_decode_ns)
                counted = least_counted(
                    requests.decodes.tolist(),
                    requests.prompt_tokens.tolist(),
                    clients,
                    cost.alpha_prefill_ns // units,
                    cost.alpha_decode_ns // units,
                    cost.prefill_token_cap,
                )
                optimum = case_of.makespan_ns(0, 0) + counted * units
                found = lower_bounds(requests, clients, cost)
                if found.lb4_ns > optimum:
                    raise SystemExit(f"LB4 above the optimum: {n} / {clients} {name}, case {case}")
                met += found.lb4_ns == optimum
                gaps.append([optimum / found.lb1_ns - 1, optimum / found.lb3_ns - 1, optimum / found.lb4_ns - 1])
            means = " | ".join(f"{mean:.2%}" for mean in np.mean(gaps, axis=0))
            print(f"| {n} / {clients} | {name} | {means} | {met} of {count} |", flush=True)


def planned(count: int) -> None:
    """How far joint plans are above the bounds, where optima are out of reach: the bounds are at most so loose."""
    print("\n| n / J | lengths | above LB1 | above LB3 | above LB4 | largest |\n| --- | --- | --- | --- | --- | --- |")
    for n, clients in ((12, 4), (20, 4), (40, 6)):
        for name, source in sources():
            gaps = []
            for case in range(count):
                requests = source.requests("test", case, num_requests=n)
                found, plan = lower_bounds(requests, clients, "llama-65b-paper"), joint_plan(requests, clients)
                gaps.append([plan.makespan_ns / ns - 1 for ns in (found.lb1_ns, found.lb3_ns, found.lb4_ns)])
            means = " | ".join(f"{mean:.2%}" for mean in np.mean(gaps, axis=0))
            print(f"| {n} / {clients} | {name} | {means} | {np.max(gaps, axis=0)[2]:.2%} |", flush=True)


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100, help="cases of the two 1319 / 200 rows")
    parser.add_argument("--oracle", type=int, default=0, metavar="N", help="instances to compare with the optimum")
    parser.add_argument("--naive", action="store_true", help="the naive MIP on 40 / 5 as well")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="also write the table of assignments there")
    args = parser.parse_args()
    found = assignments(args.cases, naive=args.naive)
    if args.csv is not None:
        with write_whole(args.csv) as path, path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(found)
    bounds()
    if args.oracle:
        oracle(args.oracle)
        tightness(args.oracle)
        planned(max(1, args.oracle // 4))


if __name__ == "__main__":
    main()
