"""``python -m baselines``: the paper's ablation, then every rule and planner, on the same cases.

With SLOs: every rule under every order that the scenario has, at several loads. The first word may be another command:
leaderboard, submit or verify (``python -m baselines verify --help``).
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmsched_env import make_scenario
from llmsched_env.baselines.comparing import ends_of
from llmsched_env.baselines.lagrangian import lagrangian
from llmsched_env.baselines.registry import BASELINES, Entry, default_names, entry
from llmsched_env.baselines.serving import draw_serving, show_serving
from llmsched_env.baselines.tuned import LOADS
from llmsched_env.cases import build_problem
from llmsched_env.config import (
    DEADLINE_ORDERS,
    KEYED_ORDERS,
    LENGTHS,
    ORDER_CODES,
    ORDERS,
    QUEUES,
    Scenario,
    read_arguments,
)
from llmsched_env.cost import PRESETS
from llmsched_env.errors import ConfigError, LLMSchedError
from llmsched_env.evaluation import CoverageWarning, Estimate, SLOWarning, evaluate, pictures, play
from llmsched_env.evaluation.comparison import Comparison, compare
from llmsched_env.evaluation.drawing import check_drawing
from llmsched_env.evaluation.parallel import Sharing
from llmsched_env.evaluation.report import (
    RECORDED,
    ablation_table,
    as_json,
    glossary,
    ranking_table,
    two_by_two_table,
    write_files,
)
from llmsched_env.flags import flags_of, in_flags, path_option
from llmsched_env.progress import Progress
from llmsched_env.storage import output_file, output_folder, write_whole
from llmsched_env.units import UnitWarning
from llmsched_env.workload import SPLITS, predictor

COMMAND = "python -m baselines"

LEADERBOARD = {"leaderboard": "standings", "submit": "submit", "verify": "verify"}
"""Other commands, by the first word, and their modules in `llmsched_env.baselines.leaderboard`."""

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


def scenario_of(options: argparse.Namespace, **arrivals: float | None) -> Scenario:
    """The scenario that the command line asks for.

    Args:
        options: of :func:`scenario_options`.
        arrivals: ``load`` and ``requests_per_s``, in place of the id's own.

    Raises:
        UnknownNameError: no such id, preset or option value.
        ConfigError: a value out of range.
    """
    changes = {
        name: getattr(options, name)
        for name in ("workload", "cost", "queue", "order", "lengths", "predictor", "ttft_s", "tpot_s")
        if getattr(options, name) is not None
    }
    if options.prefill_cap is not None:
        changes["prefill_token_cap"] = options.prefill_cap
    if options.clients is not None:
        changes["num_clients"] = options.clients
    if options.requests is not None:
        changes["num_requests"] = options.requests
    for name, value in read_arguments(options.arguments).items():
        if name in changes or name == "split":
            raise ConfigError(f"--arguments {name}={value}: this one has an option of its own.")
        if name == "max_iterations" and value is not None:
            raise ConfigError(f"--arguments {name}={value}: whole episodes are played here. Leave it out.")
        changes[name] = value
    changes.update(arrivals)
    if changes.get("lengths", "predicted") != "predicted":
        changes.setdefault("predictor", None)  # nobody would read that of the id
    return make_scenario(options.scenario, split=options.split, **changes)


def arrivals_of(options: argparse.Namespace) -> list[dict[str, float | None]]:
    """What --loads or --rate changes of the scenario at each of its values; nothing without them.

    Raises:
        ConfigError: not numbers, or both.
    """
    if options.loads is not None and options.rate is not None:
        raise ConfigError(f"--loads {options.loads!r} with --rate {options.rate!r}: give one of them.")
    given = [("load", "--loads", options.loads, "0.8,0.9"), ("requests_per_s", "--rate", options.rate, "12,20")]
    found: list[dict[str, float | None]] = []
    for name, option, text, example in given:
        for part in () if text is None else text.split(","):
            try:
                value = None if part.strip() == RECORDED else float(part)
            except ValueError:
                raise ConfigError(
                    f"{option} {text!r}: give numbers above 0, as {example}, or {RECORDED!r} for the workload's own "
                    "times."
                ) from None
            found.append({"load": None, "requests_per_s": None, name: value})
    return found


def places_of(options: argparse.Namespace, scenario: Scenario) -> list[Scenario]:
    """The scenario at each load or rate to compare at, its own first.

    Raises:
        ConfigError: loads or rates that cannot be, or where there are no SLOs.
    """
    changes = arrivals_of(options)
    if changes and not scenario.serving:
        option, text = ("--loads", options.loads) if options.rate is None else ("--rate", options.rate)
        raise ConfigError(f"{option} {text!r}: take a scenario with SLOs, as LLMSched/ServingOrder-v0.")
    if not changes:
        changes = [{}]
        if scenario.load is not None and scenario.serving:
            changes += [{"load": load} for load in LOADS]
    return list(dict.fromkeys(scenario.replace(**change) for change in changes))


def scenario_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`scenario_of` reads."""
    add = parser.add_argument
    add("--scenario", default="LLMSched/GSM8K-v0", metavar="ID", help="environment id (default: %(default)s)")
    add("--split", default="test", help=f"pool of cases: {', '.join(SPLITS)} (default: %(default)s)")
    add("--clients", type=int, metavar="J", help="clients (default: the scenario's, 200)")
    add("--requests", type=int, metavar="N", help="requests a case, drawn with replacement (default: the workload's)")
    add(
        "--workload",
        metavar="NAME|FILE.csv",
        help="other requests: a workload's name, a CSV file of your own, or trace:PATH",
    )
    add("--cost", metavar="PRESET", help=f"cost model: {', '.join(PRESETS)}")
    add("--prefill-cap", type=int, metavar="C", help="most prompt tokens in a prefill (default: the cost model's)")
    add("--queue", metavar="KIND", help=f"queues of the rules and planners: {', '.join(QUEUES)}")
    add(
        "--order",
        metavar="ORDER",
        help=f"order of those queues: {', '.join(ORDERS)}, {', '.join(KEYED_ORDERS)}; with SLOs also "
        f"{', '.join(DEADLINE_ORDERS)}",
    )
    add("--lengths", metavar="KIND", help=f"what they may know of output lengths: {', '.join(LENGTHS)}")
    add("--predictor", metavar="NAME", help="who predicts them: population, prompt, noisy, noisy:0.8, ...")
    add(
        "--arguments",
        default="",
        metavar="A=X,B=Y,...",
        help="any other arguments of the scenario: noise_sd=0.5,mixed_tokens=1024",
    )
    add("--ttft-s", type=float, metavar="S", help="TTFT limit, of the time to first token, in seconds")
    add("--tpot-s", type=float, metavar="S", help="TPOT limit, of the time per output token, in seconds")


def _parser(command: str = COMMAND) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command, description=__doc__)
    scenario_options(parser)
    add = parser.add_argument
    add("--cases", default="20", metavar="N|A-B", help="the first N cases, or cases A to B (default: %(default)s)")
    add("--seed", type=int, default=0, help="for policies that draw random numbers (default: %(default)s)")
    add(
        "--loads",
        metavar="X,Y,...",
        help="loads to compare at, shares of the capacity; 'recorded': the workload's own times "
        f"(default with SLOs: {LOADS} and the scenario's)",
    )
    add("--rate", metavar="R,S,...", help="rates of arrivals to compare at, in requests/s, in place of --loads")
    add(
        "--policies",
        metavar="A,B,...",
        help="names, rule@order; of your own module:factory, or the path of an agent's .npz file (default: all)",
    )
    add("--json", type=path_option, metavar="PATH", help="also write the comparison as JSON there")
    add("--out", type=path_option, metavar="DIR", help="folder for tables, configuration and pictures")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share the cases; -1 for every core; with --out, an interrupted run can be gone on with",
    )
    add("--engine", default="loky", metavar="NAME", help="what runs them: loky here, ray on a cluster (default: loky)")
    add("--list", action="store_true", help="list the policies and exit")
    return parser


FLAGS = flags_of(_parser())


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Run the comparison; 2 for unusable arguments, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if command == COMMAND and arguments and arguments[0] in LEADERBOARD:
        module = importlib.import_module(f"llmsched_env.baselines.leaderboard.{LEADERBOARD[arguments[0]]}")
        return int(module.main(arguments[1:], f"{COMMAND} {arguments[0]}"))
    options = _parser(command).parse_args(arguments)
    if options.list:
        print("\n".join(BASELINES))
        print(f"Rules under an order: rule@order, with {', '.join(ORDER_CODES)}.")
        return 0
    try:
        run(options, f"{command} {shlex.join(arguments)}")
    except LLMSchedError as error:
        print(f"error: {in_flags(str(error), FLAGS)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        folder = chunk_folder(options)
        print("interrupted: nothing half-written is left behind.", file=sys.stderr)
        if folder is not None:
            print(f"Finished cases are kept in {folder}: the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


def chunk_folder(options: argparse.Namespace) -> Path | None:
    """Where finished cases are kept: below --out, where --workers is given too."""
    return None if options.out is None or options.workers is None else options.out / "chunks"


def run(options: argparse.Namespace, command: str) -> None:
    """Check everything, then compare, print and write."""
    first = next(iter(arrivals_of(options)), {})  # an id's own load may be none of this cost model
    scenario, cases = scenario_of(options, **first), parse_cases(options.cases)
    places = places_of(options, scenario)
    names = options.policies.split(",") if options.policies else default_names(scenario)
    names = [name for name in dict.fromkeys(name.strip() for name in names) if name]
    if not names:
        raise ConfigError(f"--policies {options.policies!r} names no policy: see --list.")
    fields = [[entry(name, place) for name in names] for place in places]
    workers = 1 if options.workers is None else options.workers
    Sharing(workers, options.engine)  # complains now, before the long work
    with warnings.catch_warnings(record=True) as warned:
        for kind in (SLOWarning, UnitWarning):
            warnings.simplefilter("always", kind)
        for place in places:
            build_problem(place, int(cases[0]))
    for text in dict.fromkeys(str(warning.message) for warning in warned):
        print(f"warning: {in_flags(text, FLAGS)}", file=sys.stderr)
    if options.out is not None:
        check_drawing()
        output_folder(options.out)
    if options.json is not None:
        output_file(options.json)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)  # one a policy and load, and more while rules are tuned
        _compare_and_tell(options, command, places, fields, cases, workers)


def _compare_and_tell(
    options: argparse.Namespace,
    command: str,
    places: Sequence[Scenario],
    fields: Sequence[Sequence[Entry]],
    cases: NDArray[np.int64],
    workers: int,
) -> None:
    # Nothing is scored where all are methods: each has queues of its own.
    ends = [
        (None, None, None)
        if all(item.kind == "method" for item in entries)
        else ends_of(place, cases.tolist(), entries)
        for place, entries in zip(places, fields, strict=True)
    ]
    runs = sum(
        len({item.name for item in [*entries, *three] if item is not None})
        for entries, three in zip(fields, ends, strict=True)
    )
    comparisons = []
    with Progress(total=runs * len(cases), unit="episode") as bar:

        def progress(name: str, episodes: int) -> None:
            bar.set_description(name, refresh=False)
            bar.update(episodes)

        for place, entries, (reference, planner, fixed_order) in zip(places, fields, ends, strict=True):
            comparisons.append(
                compare(
                    entries, options.scenario, place, cases,
                    reference=reference, planner=planner, fixed_order=fixed_order, seed=options.seed,
                    progress=progress, workers=workers, engine=options.engine, folder=chunk_folder(options),
                    timed=place is places[0],
                )
            )  # fmt: skip
    show(comparisons)
    if options.json is not None:
        with write_whole(options.json) as path:
            path.write_text(json.dumps(as_json(comparisons), indent=1) + "\n")
    if options.out is not None:
        written = write_files(comparisons, options.out, command=command)
        if places[0].serving:
            written += draw_serving(comparisons, fields[0], options.out)
        else:
            written += draw(comparisons[0], fields[0], options.out)
        print(f"\nWritten to {options.out}: {', '.join(path.name for path in written)}")
        if options.workers is not None:
            print(f"Cases, for another run of this command: {chunk_folder(options)} (may be deleted)")
    _tell_outside(comparisons)


def _tell_outside(comparisons: Sequence[Comparison]) -> None:
    """One line about all policies that left the range of iterations that the cost model was fitted on."""
    left: dict[str, str] = {}
    for comparison in comparisons:
        for row in comparison.rows:
            if row.evaluation.outside is not None:
                left.setdefault(row.name, row.evaluation.outside)
    if left:
        name, message = next(iter(left.items()))
        several = f"{len(left)} of {len(comparisons[0].rows)} policies left the range of their cost model"
        print(f"warning: {several}. The first is {name}: {message}", file=sys.stderr)


def show(comparisons: Sequence[Comparison]) -> None:
    """Print the tables."""
    comparison = comparisons[0]
    where = comparison.scenario
    order = f"{where.queue} queues ({where.assignment})" if where.queue == "client" else "one shared queue"
    picked = "the order chosen at each prefill" if where.choose_order else where.order
    who = f", {predictor(where.predictor).name}" if where.predictor is not None else ""
    print(
        f"{comparison.scenario_id}, split {where.split}, {len(comparison.cases)} cases, "
        f"{where.num_clients} clients, cost model {where.cost_model.name}"
        + (f", {where.num_requests} requests" if where.num_requests else "")
        + f"\nWorkload {where.source.name}. The scenario's queues: {order}, {picked}, lengths {where.lengths}{who}\n"
    )
    for row in comparison.rows:
        if row.kind == "agent" and row.text:
            print(f"{row.name}: {row.text}.\n")
    if where.serving:
        show_serving(comparisons)
        return
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
        print(f"{ranking_table(comparison)}\n\n{glossary(comparison)}")


def draw(comparison: Comparison, entries: Sequence[Entry], folder: Path) -> list[Path]:
    """The pictures: gap by policy, timelines of two of them, and where the hybrid is among them what its λ does."""
    paths = [folder / "gap_by_policy.png"]
    pictures.gap_by_policy(
        paths[0],
        [
            {
                "name": row.name,
                "kind": row.kind,
                "clairvoyant": row.clairvoyant,
                **_ends_of(row.estimate("gap_to_bound")),
            }
            for row in comparison.rows
        ],
        title=f"Gap to the lower bound: {comparison.about()}",
    )
    by_name = {item.name: item for item in entries}
    pictured = set(PICTURED) <= set(by_name)
    names = PICTURED if pictured else dict.fromkeys((entries[0].name, entries[-1].name))
    shown = [by_name[name] for name in names]
    case = int(comparison.cases[0])
    paths.append(folder / "timelines.png")
    pictures.timelines(
        paths[-1],
        [(item.name, play(item.policy, item.scenario, case, record=True)) for item in shown],
        title=comparison.about(case),
    )
    if not pictured:
        return paths
    paths.append(folder / "multiplier_effect.png")
    curves = [_multiplier_curve(comparison, name) for name in CURVES]
    pictures.multiplier_effect(paths[-1], curves, title=f"The effect of the multiplier λ: {comparison.about()}")
    return paths


def _ends_of(estimate: Estimate) -> dict[str, float]:
    """Mean and interval; one case has none."""
    mean = float(estimate.mean)
    low, high = (mean if math.isnan(end) else float(end) for end in (estimate.low, estimate.high))
    return {"mean": mean, "lo": low, "hi": high}


def _multiplier_curve(comparison: Comparison, method: str) -> pictures.Curve:
    """Gap to the bound against lambda, on the cases of the comparison."""
    where = entry(method, comparison.scenario).scenario
    gaps = [evaluate(lagrangian(x), where, comparison.cases).estimate("gap_to_bound") for x in MULTIPLIERS]
    mean, low, high = zip(*gaps, strict=True)
    return pictures.Curve(method, MULTIPLIERS, mean, low, high)


if __name__ == "__main__":
    raise SystemExit(main())
