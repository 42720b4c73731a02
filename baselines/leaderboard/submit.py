"""``llmsched submit NAME POLICY``: play a policy on the benchmark and write its entry.

    llmsched submit lagrangian lagrangian
    llmsched submit my-ppo runs/seed*/agent.npz --scenarios gsm8k,smooth
    llmsched submit my-ppo lagrangian_tuned --in gsm8k runs/gsm8k/seed*/agent.npz --in smooth runs/smooth/agent.npz

Several policies are training runs of one method: give an agent's .npz file for each seed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmsched_env.baselines.leaderboard.bench import LLMSCHED_BENCH, Benchmark
from llmsched_env.baselines.leaderboard.commands import add_scenarios, add_sharing, scenarios_of
from llmsched_env.baselines.leaderboard.entries import LeaderboardEntry, Results, check_name, check_runs, write_entry
from llmsched_env.baselines.leaderboard.playing import contestant
from llmsched_env.baselines.leaderboard.scoring import references, scored
from llmsched_env.baselines.leaderboard.standings import by_scenario, table
from llmsched_env.baselines.leaderboard.verify import played
from llmsched_env.errors import ConfigError, PathError
from llmsched_env.evaluation.parallel import Sharing
from llmsched_env.flags import flags_of, path_option, run_command
from llmsched_env.progress import Progress
from llmsched_env.storage import output_folder

__all__ = ["main", "play_entry"]

COMMAND = "python -m baselines submit"


def play_entry(
    name: str,
    policies: Mapping[str, Sequence[str]],
    benchmark: Benchmark,
    path: Path,
    *,
    made_by: str,
    workers: int = 1,
    own_code: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> LeaderboardEntry:
    """An entry with its figures, not scored yet.

    Args:
        name: of the entry.
        policies: by scenario; agents' files relative to the entry's folder.
        benchmark: what is played.
        path: where the entry will lie.
        made_by: who, or the command.
        workers: processes that share the cases.
        own_code: whether ``module:factory`` may be run.
        progress: called with a number of episodes when they are done.

    Raises:
        LLMSchedError: a policy that cannot be made, or does not fit, before anything is played.
    """
    made = {
        place: [contestant(one, place, benchmark, path.parent, own_code=own_code) for one in runs]
        for place, runs in policies.items()
    }
    figures = played(made, benchmark, workers=workers, progress=progress)
    clairvoyant = any(item.policy.clairvoyant for runs in made.values() for item in runs)
    results = {place: Results(tuple(policies[place]), figures[place]) for place in made}
    return LeaderboardEntry(name, results, made_by, clairvoyant, path=path)


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="what the table calls the entry")
    add(
        "policies",
        nargs="*",
        default=[],
        metavar="POLICY",
        help="a registered name, or an agent's .npz file; several are runs",
    )
    add(
        "--in",
        dest="places",
        nargs="+",
        action="append",
        default=[],
        metavar=("SCENARIO", "POLICY"),
        help="other policies in one scenario; may be given for each",
    )
    add_scenarios(parser, "leave out the others; such an entry has no overall score")
    add("--by", metavar="TEXT", help="who made it (default: this command)")
    add("--out", type=path_option, metavar="PATH", help="file to write (default: NAME.json)")
    add_sharing(parser)
    return parser


def policies_of(options: argparse.Namespace, benchmark: Benchmark, folder: Path) -> dict[str, list[str]]:
    """By scenario, with agents' files relative to ``folder``.

    Raises:
        UnknownNameError: no such scenario.
        ConfigError: no policy, one that is given twice, or a scenario that is named twice.
    """
    given: dict[str, list[str]] = {}
    for place, *policies in options.places:
        benchmark.chosen([place])
        if not policies or place in given:
            raise ConfigError(f"--in {place}: give its policies once, one or more.")
        given[place] = policies
    if not options.policies and not given:
        raise ConfigError("no policy: give one for all scenarios, or --in SCENARIO POLICY for some.")
    wanted = scenarios_of(options.scenarios, benchmark)
    if options.policies:
        given = {place: given.get(place, options.policies) for place in wanted}
    elif options.scenarios is not None:
        raise ConfigError("--scenarios chooses where one policy is played: leave it out, or give such a policy.")
    named = {
        place: [os.path.relpath(one, folder) if one.endswith(".npz") else one for one in given[place]]
        for place in benchmark.chosen(given)
    }
    for policies in named.values():
        check_runs(policies)
    return named


def main(argv: Sequence[str] | None = None, command: str = COMMAND, *, benchmark: Benchmark = LLMSCHED_BENCH) -> int:
    """Play and write: 2 for unusable arguments or files, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(command)
    options = parser.parse_args(arguments)
    return run_command(flags_of(parser), lambda: _run(options, benchmark, f"{command} {shlex.join(arguments)}"))


def _run(options: argparse.Namespace, benchmark: Benchmark, command: str) -> int:
    check_name(options.name)
    given = options.out or Path(f"{options.name}.json")
    if given.suffix != ".json" or given.is_dir():
        raise PathError(f"cannot write {given}: give the path of a .json file in --out.")
    # A link is replaced, so agents are looked for where it lies, not where it leads to.
    path = given.parent.resolve() / given.name
    output_folder(path.parent)
    Sharing(options.workers)
    policies = policies_of(options, benchmark, path.parent)
    ends = references(benchmark)
    with Progress(
        total=sum(len(runs) * len(benchmark.places[place].cases) for place, runs in policies.items()), unit="episode"
    ) as bar:
        entry = play_entry(
            options.name, policies, benchmark, path, made_by=options.by or command,
            workers=options.workers, own_code=options.own_code, progress=bar.update,
        )  # fmt: skip
    entry = replace(entry, stated=scored(entry, benchmark, ends).as_json(benchmark))
    write_entry(entry, benchmark, path)
    print(f"{table([entry], benchmark)}\n\n{by_scenario([entry], benchmark)}")
    own = " --own-code" if options.own_code else ""
    print(f"\nWritten to {given}. Anybody can check it: llmsched verify {given}{own}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
