"""``llmsched replicas``: several accelerators behind a router, and how many a rate of requests needs.

A table of routers on the same cases, at one load or several. With --rate: the least number of replicas that keeps the
SLOs for the share --goodput of the requests, for each router.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines.__main__ import parse_cases, scenario_of
from llmsched_env.baselines.registry import Entry, entry
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.tables import grid, interval
from llmsched_env.flags import flags_of, path_option, run_command, warnings_in_flags
from llmsched_env.progress import Progress
from llmsched_env.replicas.comparing import Needed, RouterRow, compare_routers, replicas_needed
from llmsched_env.replicas.routers import ROUTERS
from llmsched_env.storage import output_file, write_whole
from llmsched_env.workload import SPLITS

__all__ = ["main"]

COMMAND = "python -m llmsched_env.replicas"
RECORDED = "recorded"
FEWEST = 5
"""Requests for each client of a replica, below which a case is short."""

GLOSSARY = """\
goodput: share of the counted requests that keep both SLOs, with its 95 % interval over cases. to best: its difference
to the best router, case by case; an interval that holds 0 says nothing. most sent: requests of the replica that was
sent the most, in times of an even share."""


def _parser(command: str = COMMAND) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0; 1 where no number of replicas keeps the SLOs; 2 for unusable input",
    )
    add = parser.add_argument
    add("--scenario", default="LLMSched/Serving-v0", metavar="ID", help="of each replica (default: %(default)s)")
    add("--replicas", type=int, metavar="N", help="replicas (default: 4)")
    add("--router", metavar="A,B,...", help=f"routers (default: {','.join(ROUTERS)})")
    add("--policy", default="prefill_first", metavar="NAME", help="what decides in each replica (default: %(default)s)")
    add("--loads", metavar="X,Y,...", help="loads of each replica to compare at (default: the scenario's)")
    add(
        "--rate",
        metavar=f"R|{RECORDED}",
        help="requests/s at all replicas together, or the workload's own times: find the number of replicas",
    )
    add(
        "--goodput", type=float, default=0.99, metavar="G", help="that is to be kept with --rate (default: %(default)s)"
    )
    add(
        "--max-replicas",
        type=int,
        default=64,
        metavar="N",
        help="with --rate no more are tried (default: %(default)s)",
    )
    add("--split", default="test", help=f"pool of cases: {', '.join(SPLITS)} (default: %(default)s)")
    add("--cases", default="20", metavar="N|A-B", help="the first N cases, or cases A to B (default: %(default)s)")
    add("--seed", type=int, default=0, help="of routers and policies that draw (default: %(default)s)")
    add("--clients", type=int, metavar="J", help="clients of each replica (default: the scenario's)")
    add("--requests", type=int, metavar="N", help="requests a case (default: the workload's)")
    add("--workload", metavar="NAME|FILE.csv", help="other requests: a workload's name, a CSV file, or trace:PATH")
    add("--cost", metavar="PRESET", help="cost model of each replica")
    add("--ttft-s", type=float, metavar="S", help="TTFT limit in seconds")
    add("--tpot-s", type=float, metavar="S", help="TPOT limit in seconds")
    add(
        "--arguments", default="", metavar="A=X,B=Y,...", help="other arguments of the scenario: kv_budget_tokens=60000"
    )
    add("--json", type=path_option, metavar="PATH", help="also write all metrics as JSON there")
    parser.set_defaults(queue=None, order=None, lengths=None, predictor=None, prefill_cap=None)
    return parser


FLAGS = {**flags_of(_parser()), "requests_per_s": "--rate"}


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Compare routers; 1 where no number of replicas keeps the SLOs, 2 for unusable arguments, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser(command).parse_args(arguments)
    with warnings_in_flags(FLAGS):
        return run_command(FLAGS, lambda: _run(options, f"{command} {shlex.join(arguments)}"))


def _run(options: argparse.Namespace, command: str) -> int:
    if options.json is not None:
        output_file(options.json)
    cases = parse_cases(options.cases)
    item = entry(options.policy, scenario_of(options))
    routers = list(ROUTERS) if options.router is None else [name.strip() for name in options.router.split(",")]
    answer: dict[str, Any] = {"command": command, "scenario": item.scenario.describe(), "policy": item.name}
    if options.rate is None:
        rows = _compared(options, item, routers, cases)
        answer["rows"] = [row.as_json() for row in rows]
        text, status = f"{_table(rows)}\n\n{GLOSSARY}{_too_short(rows[0], item.scenario)}", 0
    else:
        found = _needed(options, item, routers, cases)
        answer["needed"] = [
            {"router": one.router, "replicas": one.replicas, "tried": [row.as_json() for row in one.tried.values()]}
            for one in found
        ]
        text = _answer(found, options.goodput, options.max_replicas)
        last = found[0].tried[found[0].replicas or max(found[0].tried)]
        text += _too_short(last, item.scenario)
        status = 0 if any(one.replicas is not None for one in found) else 1
    if options.json is not None:
        with write_whole(options.json) as path:
            path.write_text(json.dumps(answer, indent=1, default=str) + "\n", encoding="utf-8")
    print(text)
    return status


def _compared(
    options: argparse.Namespace, item: Entry, routers: list[str], cases: NDArray[np.int64]
) -> list[RouterRow]:
    """Every router at every load."""
    scenarios: list[Scenario] = [item.scenario]
    if options.loads is not None:
        try:
            loads = [float(part) for part in options.loads.split(",")]
        except ValueError:
            raise ConfigError(f"--loads {options.loads!r}: give numbers above 0, as 0.8,0.9.") from None
        scenarios = [item.scenario.replace(load=load) for load in loads]
    count = 4 if options.replicas is None else options.replicas
    rows: list[RouterRow] = []
    with Progress(total=len(scenarios) * len(routers) * len(cases), desc="routers", unit="run") as bar:
        for scenario in scenarios:
            rows += compare_routers(
                scenario, item.policy, routers, count, cases, seed=options.seed, progress=bar.update
            )
    return rows


def _needed(options: argparse.Namespace, item: Entry, routers: list[str], cases: NDArray[np.int64]) -> list[Needed]:
    """The number of replicas for each router."""
    for name in ("replicas", "loads"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name} with --rate: the number of replicas is searched, at one rate. Leave one out.")
    rate: float | None = None
    if options.rate != RECORDED:
        try:
            rate = float(options.rate)
        except ValueError:
            raise ConfigError(f"--rate {options.rate!r}: give requests/s, as 40, or {RECORDED!r}.") from None
    found = []
    for router in Progress(routers, total=len(routers), desc="routers", unit="router"):
        found.append(
            replicas_needed(
                item.scenario,
                item.policy,
                router,
                rate,
                options.goodput,
                cases,
                seed=options.seed,
                max_replicas=options.max_replicas,
            )
        )
    return found


def _table(rows: list[RouterRow]) -> str:
    header = [
        "router",
        "load",
        "requests/s",
        "goodput %",
        "to best",
        "TTFT p99 s",
        "TPOT p99 ms",
        "served/s",
        "most sent",
    ]
    body = []
    for row in rows:
        peers = [one for one in rows if one.load == row.load]
        best = max(peers, key=lambda one: one.estimate("goodput").mean)
        body.append(
            [
                row.router,
                "–" if row.load is None else f"{row.load:g}",
                f"{row.estimate('offered_requests_per_s').mean:.2f}",
                interval(row.estimate("goodput"), 100),
                "best" if row is best else interval(row.above(best), 100),
                f"{row.estimate('ttft_p99_s').mean:.2f}",
                f"{row.estimate('tpot_p99_s').mean * 1000:.0f}",
                f"{row.estimate('served_requests_per_s').mean:.2f}",
                f"{row.estimate('largest_share').mean:.2f}",
            ]
        )
    return grid(header, body)


def _answer(found: list[Needed], goodput: float, max_replicas: int) -> str:
    header = ["router", "replicas", "goodput %", "with one less", "TTFT p99 s", "TPOT p99 ms", "utilization %"]
    body = []
    for one in found:
        if one.replicas is None:
            last = one.tried[max(one.tried)]
            body.append([one.router, f"> {max_replicas}", interval(last.estimate("goodput"), 100), "", "", "", ""])
            continue
        row, before = one.tried[one.replicas], one.tried.get(one.replicas - 1)
        body.append(
            [
                one.router,
                str(one.replicas),
                interval(row.estimate("goodput"), 100),
                "–" if before is None else interval(before.estimate("goodput"), 100),
                f"{row.estimate('ttft_p99_s').mean:.2f}",
                f"{row.estimate('tpot_p99_s').mean * 1000:.0f}",
                f"{row.estimate('utilization').mean * 100:.0f}",
            ]
        )
    enough = [one for one in found if one.replicas is not None]
    row = next(iter(found[0].tried.values()))
    rate = f"{row.estimate('offered_requests_per_s').mean:.2f} requests/s"
    if not enough:
        text = f"No number of replicas up to {max_replicas} keeps the SLOs for {goodput * 100:g} % of {rate}."
        return f"{grid(header, body)}\n\n{text}"
    best = min(enough, key=_rank)
    keep = "1 replica keeps" if best.replicas == 1 else f"{best.replicas} replicas keep"
    text = f"Behind {best.router} {keep} the SLOs for {goodput * 100:g} % of {rate}"
    low = _at_its_number(best).estimate("goodput").low
    if math.isnan(low):
        text += ", in one case: take more for an interval."
    else:
        text += "." if low >= goodput else ", in the mean over cases: the interval reaches below."
    return f"{grid(header, body)}\n\n{text}"


def _too_short(row: RouterRow, scenario: Scenario) -> str:
    """What to say where replicas had no time to fill up."""
    each, clients = int(row.estimate("requests").mean / row.replicas), scenario.num_clients
    if each >= FEWEST * clients:
        return ""
    return (
        f"\n\nEach replica had about {each} requests for its {clients} clients, and hardly filled up: over longer "
        f"times it may fall behind. Take --requests {FEWEST * clients * row.replicas} or more."
    )


def _at_its_number(one: Needed) -> RouterRow:
    assert one.replicas is not None
    return one.tried[one.replicas]


def _rank(one: Needed) -> tuple[float, ...]:
    """Fewest replicas, then the best goodput, then the shortest tail."""
    row = _at_its_number(one)
    return row.replicas, -row.estimate("goodput").mean, row.estimate("ttft_p99_s").mean


if __name__ == "__main__":
    raise SystemExit(main())
