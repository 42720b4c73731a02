"""Routers of four replicas at load 0.9, over policies, limits and cost presets; and how many replicas a rate needs.

    python benchmarks/replicas.py [--cases 20] [--write]

``--write`` puts the tables into docs/replicas.md, and all of it into docs/data/replicas.csv. Test cases of 20,000
requests, so that each replica has 5,000, and twice as many cases of Router-v0; three minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import numpy as np

from llmsched_env import ROUTER_ENVIRONMENTS, make_scenario
from llmsched_env.baselines import make_policy
from llmsched_env.config import Scenario
from llmsched_env.cost import PRESETS
from llmsched_env.evaluation.tables import interval
from llmsched_env.progress import Progress
from llmsched_env.replicas import ROUTERS
from llmsched_env.replicas.comparing import Needed, RouterRow, compare_routers, replicas_needed
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced

ROOT = Path(__file__).parents[1]
PAGE, DATA = ROOT / "docs" / "replicas.md", ROOT / "docs" / "data" / "replicas.csv"
REPLICAS, REQUESTS = 4, 20_000
RATE_PER_S, GOODPUT, RATE_CASES = 60.0, 0.99, 10
METRICS = (
    "goodput",
    "ttft_s",
    "ttft_p99_s",
    "tpot_s",
    "tpot_p99_s",
    "served_requests_per_s",
    "largest_share",
    "prefills",
)
REFERENCE = "least_outstanding"


def serving(**changes: object) -> Scenario:
    """`LLMSched/Serving-v0` on test cases of 20,000 requests."""
    return make_scenario("LLMSched/Serving-v0", split="test", num_requests=REQUESTS, **changes)


def routed() -> Scenario:
    """`LLMSched/Router-v0` as it is, on test cases."""
    arguments = dict(ROUTER_ENVIRONMENTS["LLMSched/Router-v0"])
    del arguments["replicas"], arguments["policy"]
    return Scenario(split="test", **arguments)


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    cases, few = np.arange(options.cases), np.arange(min(5, options.cases))
    settings = [
        ("deadline", "deadline", serving(), cases),
        ("prefill_first", "prefill_first", serving(), cases),
        ("LLMSched/Router-v0", "deadline", routed(), np.arange(2 * options.cases)),
        *((name, "deadline", serving(cost=name), few) for name in PRESETS),
    ]
    found: dict[str, list[RouterRow]] = {}
    for name, policy, scenario, numbers in Progress(settings, total=len(settings), desc="settings", unit="setting"):
        found[name] = compare_routers(scenario, make_policy(policy), list(ROUTERS), REPLICAS, numbers)
    numbers = np.arange(min(RATE_CASES, options.cases))
    needed = {
        policy: [
            replicas_needed(serving(), make_policy(policy), router, RATE_PER_S, GOODPUT, numbers) for router in ROUTERS
        ]
        for policy in ("prefill_first", "deadline")
    }
    tables = {"routers": routers_table(found), "presets": presets_table(found), "needed": needed_table(needed)}
    if not options.write:
        print("\n\n".join(tables.values()))
        return
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables.items():
        page = replaced(page, name, text)
    for target, text in ((PAGE, page), (DATA, as_csv(found, needed))):
        with write_whole(target) as path:
            path.write_text(text, encoding="utf-8")


def routers_table(found: dict[str, list[RouterRow]]) -> str:
    """Goodput of each router in the three settings, and the tail of TTFT in the first."""
    header = ["router", "`deadline`: goodput %", "TTFT p99 s", "`prefill_first`: goodput %", "`Router-v0`: goodput %"]
    rows = []
    for one, other, third in zip(found["deadline"], found["prefill_first"], found["LLMSched/Router-v0"], strict=True):
        tail = f"{one.estimate('ttft_p99_s').mean:.2f}"
        goodput = [interval(row.estimate("goodput"), 100) for row in (one, other, third)]
        rows.append([f"`{one.router}`", goodput[0], tail, *goodput[1:]])
    return grid(header, rows)


def presets_table(found: dict[str, list[RouterRow]]) -> str:
    """Goodput of each router under each cost preset."""
    rows = [[f"`{name}`", *(f"{100 * row.estimate('goodput').mean:.1f}" for row in found[name])] for name in PRESETS]
    return grid(["cost preset", *(f"`{router}`" for router in ROUTERS)], rows)


def needed_table(needed: dict[str, list[Needed]]) -> str:
    """The number of replicas of each router, and what they and one less reach."""
    rows = []
    for policy, found in needed.items():
        for one in found:
            assert one.replicas is not None
            row, before = one.tried[one.replicas], one.tried[one.replicas - 1]
            goodput = [interval(each.estimate("goodput"), 100) for each in (row, before)]
            rows.append([f"`{policy}`", f"`{one.router}`", str(one.replicas), *goodput])
    return grid(["policy", "router", "replicas", "goodput %", "with one less"], rows)


def as_csv(found: dict[str, list[RouterRow]], needed: dict[str, list[Needed]]) -> str:
    """A line for each setting, router and number of replicas."""
    named = []
    for name, rows in found.items():
        reference = next(row for row in rows if row.router == REFERENCE)
        named += [(name, row, list(row.above(reference))) for row in rows]
    named += [
        (f"{RATE_PER_S:g} requests/s, {policy}", row, [])
        for policy, searches in needed.items()
        for one in searches
        for row in one.tried.values()
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = ("", "_ci95_low", "_ci95_high")
    names = (*METRICS, f"goodput_above_{REFERENCE}")
    writer.writerow(["setting", "router", "replicas", "cases", *(f"{name}{end}" for name in names for end in ends)])
    for name, row, above in named:
        values = [f"{value:.6g}" for metric in METRICS for value in row.estimate(metric)]
        values += [f"{value:.6g}" for value in above] or [""] * 3
        writer.writerow([name, row.router, row.replicas, len(row.cases), *values])
    return out.getvalue()


if __name__ == "__main__":
    main()
