"""Play one case, and write what happened: for trace viewers, as a table of requests, as a log of decisions.

The trace (--trace-out) opens in Perfetto and speedscope. The log of decisions can ask another policy
(--against) what it would have done at each choice, and find out what its action would have cost. docs/traces.md says
more.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from llmsched_env import __version__
from llmsched_env.baselines.__main__ import scenario_of, scenario_options
from llmsched_env.baselines.registry import Entry, entry
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import Trace, request_table, trace_episode, write_table, write_trace
from llmsched_env.evaluation.decisions import MOST_DECISIONS
from llmsched_env.evaluation.rollout import case_numbers, episode_seed
from llmsched_env.evaluation.trace_events import check_trace_path
from llmsched_env.evaluation.write_table import check_table_path
from llmsched_env.flags import flags_of, path_option, run_command, warnings_in_flags
from llmsched_env.metrics import final_metrics
from llmsched_env.progress import Progress
from llmsched_env.storage import output_file

COMMAND = "llmsched trace"

SEEN = ("choose_order", "lengths", "predictor", "sd_weight")
"""What a policy may have otherwise, and still be asked at another's states: it answers by what it sees there."""

STEPS = {"play": ("playing", "request"), "fork": ("trying other actions", "action")}
"""Of `trace_episode`: what the progress bar says, and counts."""

VIEWERS = "Open a trace in https://ui.perfetto.dev or speedscope."


def _parser(command: str = COMMAND) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command, description=__doc__, epilog=VIEWERS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    scenario_options(parser)
    add = parser.add_argument
    add("--load", type=float, metavar="X", help="load, as a share of the capacity (default: the scenario's)")
    add("--policy", required=True, metavar="NAME", help="name, rule@order, module:factory or the path of an agent")
    add("--case", type=int, default=0, metavar="N", help="number of the case (default: %(default)s)")
    add("--seed", type=int, default=0, help="for policies that draw random numbers (default: %(default)s)")
    add("--trace-out", type=path_option, metavar="FILE", help="trace events: .json or .json.gz")
    add("--requests-out", type=path_option, metavar="FILE", help="a line a request: .csv or .parquet")
    add("--decisions-out", type=path_option, metavar="FILE", help="a line a decision: .csv or .parquet")
    add("--against", metavar="NAME", help="another policy, which is asked at each decision")
    add(
        "--most-decisions",
        type=int,
        default=MOST_DECISIONS,
        metavar="N",
        help="find the cost of so many of its other answers, evenly spread (default: %(default)s)",
    )
    return parser


FLAGS = flags_of(_parser())


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Play and write; 2 for unusable arguments, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser(command).parse_args(arguments)
    with warnings_in_flags(FLAGS):
        return run_command(FLAGS, lambda: _run(options, f"{command} {shlex.join(arguments)}"))


def _run(options: argparse.Namespace, command: str) -> None:
    outputs = _outputs(options)
    scenario = scenario_of(options)
    if options.load is not None:
        scenario = scenario.replace(load=options.load)
    item = entry(options.policy, scenario)
    rival = None if options.against is None else _rival(options.against, item)
    case = int(case_numbers([options.case])[0])
    with ExitStack() as bars:
        shown: dict[str, Progress] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in shown:
                bars.close()
                desc, unit = STEPS[what]
                shown[what] = bars.enter_context(Progress(total=total, desc=desc, unit=unit))
            shown[what].update(done - shown[what].n)

        trace = trace_episode(
            item.policy, item.scenario, case, seed=episode_seed(options.seed, case),
            against=None if rival is None else rival.policy, most_decisions=options.most_decisions, progress=progress,
        )  # fmt: skip
    about = {"command": command, "version": __version__, "scenario": options.scenario, "case": case}
    about |= {"policy": item.name} | ({} if rival is None else {"against": rival.name})
    if options.trace_out is not None:
        write_trace(trace, options.trace_out, **about)
    if options.requests_out is not None:
        write_table(request_table(trace.simulator), options.requests_out)
    if options.decisions_out is not None:
        write_table(trace.table(), options.decisions_out)
    _tell(options.scenario, item, rival, case, trace)
    print(f"Written: {', '.join(map(str, outputs))}. {VIEWERS if options.trace_out is not None else ''}".rstrip())


def _outputs(options: argparse.Namespace) -> list[Path]:
    """What is to be written; complains now, before the long work.

    Raises:
        ConfigError: nothing, or an ending that says no format.
        MissingExtraError: a Parquet file without pyarrow.
        PathError: a folder that cannot be written, or a folder in place of a file.
    """
    if options.trace_out is not None:
        check_trace_path(options.trace_out)
    for name in ("requests_out", "decisions_out"):
        if getattr(options, name) is not None:
            check_table_path(getattr(options, name), name)
    paths = [path for path in (options.trace_out, options.requests_out, options.decisions_out) if path is not None]
    if not paths:
        raise ConfigError("nothing to write: give --trace-out, --requests-out or --decisions-out.")
    if options.against is not None and options.trace_out is None and options.decisions_out is None:
        raise ConfigError(f"--against {options.against}: its answers go to --decisions-out and --trace-out. Give one.")
    for path in paths:
        output_file(path)
    return paths


def _rival(name: str, item: Entry) -> Entry:
    """The other policy, to be asked at the states of the first.

    Raises:
        UnknownNameError: no such name.
        ConfigError: it needs other queues than the first one's, or makes no sense in the scenario.
    """
    rival = entry(name, item.scenario)
    there = rival.scenario.replace(**{field: getattr(item.scenario, field) for field in SEEN})
    if there != item.scenario:
        raise ConfigError(
            f"--against {name}: it needs other queues or iterations than those of {item.name!r}, so it has no answer "
            "at the states of that one. Give a rule by its own name."
        )
    return rival


def _tell(scenario: str, item: Entry, rival: Entry | None, case: int, trace: Trace) -> None:
    """Say in a few lines what came out."""
    metrics, decisions = final_metrics(trace.simulator), trace.decisions
    goodput = f", goodput {100 * metrics['goodput']:.2f} %" if item.scenario.serving else ""
    print(
        f"{item.name} in {scenario}, split {item.scenario.split}, case {case}: {metrics['completed']} requests in "
        f"{metrics['makespan_s']:.3f} s{goodput}, {metrics['prefills']} prefills, {metrics['decodes']} decodes, "
        f"{len(decisions['action'])} decisions."
    )
    if rival is None:
        return
    differs = decisions["action"] != decisions["against_action"]
    print(f"{rival.name} would have decided otherwise at {differs.sum()} of them.")
    changes = {"makespan_change_s": ("makespan", 1.0, "s")}
    if item.scenario.serving:
        changes["goodput_change"] = ("goodput", 100.0, "percentage points")
    for name, (what, scale, unit) in changes.items():
        found = decisions[name][differs & ~np.isnan(decisions[name])] * scale
        if len(found):
            print(
                f"One of these actions alone changes the {what} by {found.min():+.3f} to {found.max():+.3f} {unit}, "
                f"{found.mean():+.4f} in the mean ({len(found)} of them tried)."
            )
