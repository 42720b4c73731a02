"""``python -m baselines``: the paper's ablation, then every rule and planner, on the same cases."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from baselines.lagrangian import lagrangian
from baselines.registry import METHODS, POLICIES, Entry, entry
from baselines.tuned import best_tuned
from llmsched_env import ENVIRONMENTS
from llmsched_env.config import LENGTHS, ORDERS, QUEUES, Scenario
from llmsched_env.cost import PRESETS
from llmsched_env.errors import ConfigError, LLMSchedError, PathError, UnknownNameError
from llmsched_env.evaluation import CoverageWarning, evaluate, pictures, play
from llmsched_env.evaluation.comparison import Comparison, compare
from llmsched_env.evaluation.parallel import Sharing
from llmsched_env.evaluation.report import ablation_table, ranking_table, two_by_two_table, write_files
from llmsched_env.storage import output_folder, write_whole
from llmsched_env.workload import SPLITS

PICTURED = ("baseline", "hybrid")
CURVES = ("baseline_lagrangian", "hybrid", "shared_lpt_lagrangian")
MOST_CASES = 10**6
MULTIPLIERS = [float(x) for x in np.round(np.geomspace(0.01, 10.0, 31), 4)]


def parse_cases(text: str) -> NDArray[np.int64]:
    """``"20"`` is the first 20 cases, ``"100-199"`` those numbers.

    Raises:
        ConfigError: neither.
    """
    first, dash, last = text.partition("-")
    try:
        start, stop = (int(first), int(last) + 1) if dash else (0, int(first))
    except ValueError:
        start, stop = 0, 0
    if not 0 < stop - start <= MOST_CASES or stop >= 2**63:
        raise ConfigError(f"--cases {text!r}: give a count from 1 to {MOST_CASES} (20) or a range (100-199).")
    return np.arange(start, stop)


def scenario_of(options: argparse.Namespace) -> Scenario:
    """The scenario that the command line asks for.

    Raises:
        UnknownNameError: no such id, preset or option value.
        ConfigError: a value out of range.
    """
    if options.scenario not in ENVIRONMENTS:
        raise UnknownNameError("scenario", options.scenario, ENVIRONMENTS)
    kwargs = gymnasium.spec(options.scenario).kwargs
    changes = {
        name: getattr(options, name)
        for name in ("workload", "cost", "queue", "order", "lengths")
        if getattr(options, name) is not None
    }
    if options.clients is not None:
        changes["num_clients"] = options.clients
    if options.requests is not None:
        changes["num_requests"] = options.requests
    return Scenario(**{**kwargs, "split": options.split, **changes})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m baselines", description=__doc__)
    add = parser.add_argument
    add("--scenario", default="LLMSched/GSM8K-v0", metavar="ID", help="environment id (default: %(default)s)")
    add("--split", default="test", help=f"pool of cases: {', '.join(SPLITS)} (default: %(default)s)")
    add("--cases", default="20", metavar="N|A-B", help="the first N cases, or cases A to B (default: %(default)s)")
    add("--seed", type=int, default=0, help="for policies that draw random numbers (default: %(default)s)")
    add("--clients", type=int, metavar="J", help="clients (default: the scenario's, 200)")
    add("--requests", type=int, metavar="N", help="requests a case, drawn with replacement (default: the workload's)")
    add("--workload", metavar="NAME|FILE.csv", help="other requests: a workload's name, or a CSV file of your own")
    add("--cost", metavar="PRESET", help=f"cost model: {', '.join(PRESETS)}")
    add("--queue", metavar="KIND", help=f"queues of the rules and planners: {', '.join(QUEUES)}")
    add("--order", metavar="ORDER", help=f"order of those queues: {', '.join(ORDERS)}")
    add("--lengths", metavar="KIND", help=f"what they may know of output lengths: {', '.join(LENGTHS)}")
    add("--policies", metavar="A,B,...", help="names, or module:factory for your own (default: all)")
    add("--json", type=Path, metavar="PATH", help="also write the comparison as JSON there")
    add("--out", type=Path, metavar="DIR", help="folder for tables, configuration and pictures")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share the cases; -1 for every core; with --out, an interrupted run can be gone on with",
    )
    add("--engine", default="loky", metavar="NAME", help="what runs them: loky here, ray on a cluster (default: loky)")
    add("--list", action="store_true", help="list the policies and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 2 for unusable arguments, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join([*METHODS, *POLICIES]))
        return 0
    try:
        run(options, "python -m baselines " + shlex.join(arguments))
    except LLMSchedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = chunk_folder(options)
        print("interrupted: nothing half-written is left behind.", file=sys.stderr)
        if kept is not None:
            print(f"Finished cases are kept in {kept}: the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


def chunk_folder(options: argparse.Namespace) -> Path | None:
    """Where finished cases are kept: below --out, where --workers is given too."""
    return None if options.out is None or options.workers is None else options.out / "chunks"


def run(options: argparse.Namespace, command: str) -> None:
    """Check everything, then compare, print and write."""
    scenario, cases = scenario_of(options), parse_cases(options.cases)
    names = [name.strip() for name in options.policies.split(",")] if options.policies else [*METHODS, *POLICIES]
    entries = [entry(name, scenario) for name in dict.fromkeys(names) if name]
    if not entries:
        raise ConfigError(f"--policies {options.policies!r} names no policy: see --list.")
    workers = 1 if options.workers is None else options.workers
    Sharing(workers, options.engine)  # complains now, before the long work
    if options.out is not None:
        output_folder(options.out)
    if options.json is not None:
        output_folder(options.json.resolve().parent)
        if options.json.is_dir():
            raise PathError(f"cannot write {options.json}: it is a folder. Give the path of a file.")

    ends: list[Entry] = []
    if any(item.kind != "method" for item in entries):
        shown = {item.name: item for item in entries}
        ends = [shown.get(name) or entry(name, scenario) for name in (best_tuned(scenario), "beam")]
    reference, planner = ends or (None, None)
    seconds = 0.1 if sys.stderr.isatty() else 10.0  # a log file is not a terminal
    runs = {item.name for item in [*entries, *ends]}
    with (
        tqdm(total=len(runs) * len(cases), unit="episode", leave=False, mininterval=seconds) as bar,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("once", CoverageWarning)

        def progress(name: str, episodes: int) -> None:
            bar.set_description(name, refresh=False)
            bar.update(episodes)

        comparison = compare(
            entries, options.scenario, scenario, cases,
            reference=reference, planner=planner, seed=options.seed, progress=progress,
            workers=workers, engine=options.engine, folder=chunk_folder(options),
        )  # fmt: skip
    show(comparison)
    if options.json is not None:
        with write_whole(options.json) as path:
            path.write_text(json.dumps(comparison.as_json(), indent=1) + "\n")
    if options.out is not None:
        written = [*write_files(comparison, options.out, command=command), *draw(comparison, options.out)]
        print(f"\nWritten to {options.out}: {', '.join(path.name for path in written)}")
        if options.workers is not None:
            print(f"Cases, for another run of this command: {chunk_folder(options)} (may be deleted)")


def show(comparison: Comparison) -> None:
    """Print the tables."""
    where = comparison.scenario
    order = f"{where.queue} queues ({where.assignment})" if where.queue == "client" else "one shared queue"
    print(
        f"{comparison.scenario_id}, split {where.split}, {len(comparison.cases)} cases, "
        f"{where.num_clients} clients, cost model {where.cost_model.name}"
        + (f", {where.num_requests} requests" if where.num_requests else "")
        + f"\nWorkload {where.source.name}. The scenario's queues: {order}, {where.order}, lengths {where.lengths}\n"
    )
    if any(row.kind == "method" for row in comparison.rows):
        print("Methods. 'blind' sees no output length; 'lengths' is given the true ones.\n")
        print(ablation_table(comparison), "\n")
    square = two_by_two_table(comparison)
    if square:
        print("What the order of the queue is worth, and what the rule is worth (makespan in s)\n")
        print(square, "\n")
    if any(row.kind != "method" for row in comparison.rows):
        print(
            "Rules and planners on the scenario's queues. "
            f"Score: 0 = {comparison.reference}, 1 = {comparison.planner}.\n"
            "Decision times are those of `act`, asked from Python (the paper allows 5 ms);\n"
            "a beam plans the whole episode before its first decision.\n"
        )
        print(ranking_table(comparison))


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """The pictures: timelines, gap by policy, effect of the multiplier."""
    paths = [folder / "gap_by_policy.png"]
    pictures.gap_by_policy(
        paths[0],
        [
            {
                "name": row.name,
                "kind": row.kind,
                "clairvoyant": row.clairvoyant,
                **dict(zip(("mean", "lo", "hi"), row.estimate("gap_to_bound"), strict=True)),
            }
            for row in comparison.rows
        ],
    )
    shown = [entry(name, comparison.scenario) for name in PICTURED]
    case = int(comparison.cases[0])
    paths.append(folder / "timelines.png")
    pictures.timelines(paths[-1], [(item.name, play(item.policy, item.scenario, case, record=True)) for item in shown])
    paths.append(folder / "multiplier_effect.png")
    curves = [_multiplier_curve(comparison, name) for name in CURVES]
    pictures.multiplier_effect(paths[-1], curves)
    return paths


def _multiplier_curve(comparison: Comparison, method: str) -> pictures.Curve:
    """Gap to the bound against lambda, on the cases of the comparison."""
    where = entry(method, comparison.scenario).scenario
    gaps = [evaluate(lagrangian(x), where, comparison.cases).estimate("gap_to_bound") for x in MULTIPLIERS]
    mean, low, high = zip(*gaps, strict=True)
    return pictures.Curve(method, MULTIPLIERS, mean, low, high)


if __name__ == "__main__":
    raise SystemExit(main())
