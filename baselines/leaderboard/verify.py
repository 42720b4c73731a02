"""``llmsched verify ENTRY``: play every policy of an entry again, and compare.

Figures are whole numbers and have to be equal in every case. Means and scores have to follow from them. A difference
is shown in a table, and the exit status is 1; it is 2 where an entry cannot be read or played.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmsched_env import __version__
from llmsched_env.baselines.leaderboard.bench import LLMSCHED_BENCH, Benchmark
from llmsched_env.baselines.leaderboard.commands import add_scenarios, add_sharing, scenarios_of
from llmsched_env.baselines.leaderboard.entries import LeaderboardEntry, Results, read_entry
from llmsched_env.baselines.leaderboard.playing import contestant, given_the_future, play_place
from llmsched_env.baselines.leaderboard.scoring import differences, references, scored
from llmsched_env.baselines.registry import Entry
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.parallel import Sharing
from llmsched_env.evaluation.tables import grid, interval
from llmsched_env.flags import flags_of, path_option, run_command
from llmsched_env.progress import Progress

__all__ = ["Check", "check", "main"]

COMMAND = "python -m baselines verify"


class Row(NamedTuple):
    """A run whose figures differ.

    Attributes:
        scenario: where.
        policy: of the run.
        cases: numbers of the cases that differ.
        stated: the first of them, as the entry says.
        found: and as it was played.
    """

    scenario: str
    policy: str
    cases: Sequence[int]
    stated: int
    found: int


@dataclass(frozen=True)
class Check:
    """What came out of playing an entry again.

    Attributes:
        entry: as it is stated.
        found: with the figures that were found.
        played: names of the scenarios that were played.
        rows: runs that differ.
        faults: (what, stated, follows) of derived numbers that do not follow from the stated figures.
    """

    entry: LeaderboardEntry
    found: LeaderboardEntry
    played: Sequence[str]
    rows: Sequence[Row]
    faults: Sequence[tuple[str, Any, Any]]

    @property
    def passed(self) -> bool:
        """Whether all is as stated."""
        return not self.rows and not self.faults


def contestants(
    entry: LeaderboardEntry, benchmark: Benchmark, names: Sequence[str], *, own_code: bool
) -> dict[str, list[Entry]]:
    """The policies of an entry's runs by scenario: complains now, before the long work.

    Raises:
        ConfigError: a policy that does not fit, or an entry without any of the scenarios.
        UnknownNameError, PathError, FileFormatError: a policy that cannot be made.
    """
    there = [name for name in names if name in entry.results]
    if not there:
        raise ConfigError(f"{entry.path} has none of these scenarios: {', '.join(names)}. Name others in --scenarios.")
    folder = entry.path.parent
    return {
        name: [
            contestant(policy, name, benchmark, folder, own_code=own_code) for policy in entry.results[name].policies
        ]
        for name in there
    }


def played(
    policies: Mapping[str, Sequence[Entry]],
    benchmark: Benchmark,
    *,
    workers: int = 1,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """(runs, cases) figures by scenario."""
    return {
        name: np.stack([play_place(item, benchmark.places[name], workers=workers, progress=progress) for item in runs])
        for name, runs in policies.items()
    }


def check(
    entry: LeaderboardEntry,
    benchmark: Benchmark,
    names: Sequence[str] | None = None,
    *,
    workers: int = 1,
    own_code: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> Check:
    """Play an entry again and compare.

    Args:
        entry: from a file.
        benchmark: that it is of.
        names: scenarios to play; all by default. Derived numbers, and who is given the future, are compared in all.
        workers: processes that share the cases.
        own_code: whether ``module:factory`` may be run.
        progress: called with a number of episodes when they are done.

    Raises:
        LLMSchedError: what cannot be played, before anything is.
    """
    policies = contestants(entry, benchmark, benchmark.chosen(names), own_code=own_code)
    ends = references(benchmark)
    faults = list(differences(entry.stated, scored(entry, benchmark, ends).as_json(benchmark)))
    clairvoyant = given_the_future(entry, benchmark, own_code=own_code)
    if clairvoyant > entry.clairvoyant:
        faults.append(("clairvoyant", entry.clairvoyant, clairvoyant))
    found = played(policies, benchmark, workers=workers, progress=progress)
    rows = []
    for name, figures in found.items():
        stated = entry.results[name]
        for policy, one, other in zip(stated.policies, stated.figures, figures, strict=True):
            differ = np.flatnonzero(one != other)
            if len(differ):
                cases = [benchmark.places[name].cases[index] for index in differ]
                rows.append(Row(name, policy, cases, int(one[differ[0]]), int(other[differ[0]])))
    results = {name: Results(one.policies, found.get(name, one.figures)) for name, one in entry.results.items()}
    return Check(entry, replace(entry, results=results), list(policies), rows, faults)


def report(result: Check, benchmark: Benchmark) -> str:
    """One line where all is as stated, else tables of what is not."""
    entry, ends = result.entry, references(benchmark)
    stated, found = (scored(one, benchmark, ends) for one in (entry, result.found))
    episodes = sum(entry.results[name].figures.size for name in result.played)
    if result.passed:
        score = "no overall score" if stated.score is None else f"score {interval(stated.score)}"
        return (
            f"{entry.name}: verified. {len(result.played)} of {len(benchmark.places)} scenarios, {episodes} episodes, "
            f"all equal; {score}."
        )
    parts = [f"{entry.name}: NOT verified."]
    if result.rows:
        parts.append(
            grid(
                ["scenario", "policy", "cases that differ", "first", "stated", "found", "score stated", "score found"],
                [
                    [
                        row.scenario, row.policy, f"{len(row.cases)} of {len(benchmark.places[row.scenario].cases)}",
                        str(row.cases[0]), str(row.stated), str(row.found),
                        interval(stated.scores[row.scenario]), interval(found.scores[row.scenario]),
                    ]
                    for row in result.rows
                ],
            )
        )  # fmt: skip
        if stated.score is not None and found.score is not None:
            parts.append(f"Over all scenarios: score stated {interval(stated.score)}, found {interval(found.score)}.")
        if entry.version != __version__:
            parts.append(f"It was made with llmsched-env {entry.version}; this is {__version__}.")
    if result.faults:
        parts.append("Stated, and not what follows from the figures:")
        lines = [[what, str(one), str(other)] for what, one, other in result.faults]
        parts.append(grid(["what", "stated", "follows"], lines))
    return "\n\n".join(parts) + "\n"


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entries", nargs="+", type=path_option, metavar="ENTRY", help="the .json file of an entry")
    add_scenarios(parser, "play these only (default: all that the entry has)")
    add_sharing(parser)
    return parser


def main(argv: Sequence[str] | None = None, command: str = COMMAND, *, benchmark: Benchmark = LLMSCHED_BENCH) -> int:
    """Verify: 0 if all is as stated, 1 for a difference, 2 for unusable arguments or files, 130 after Ctrl-C."""
    parser = _parser(command)
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    return run_command(flags_of(parser), lambda: _run(options, benchmark))


def _run(options: argparse.Namespace, benchmark: Benchmark) -> int:
    names = scenarios_of(options.scenarios, benchmark)
    Sharing(options.workers)
    entries = [read_entry(path, benchmark) for path in options.entries]
    total = 0
    for entry in entries:  # all of them, before the long work
        policies = contestants(entry, benchmark, names, own_code=options.own_code)
        given_the_future(entry, benchmark, own_code=options.own_code)
        total += sum(len(runs) * len(benchmark.places[name].cases) for name, runs in policies.items())
    failed = 0
    with Progress(total=total, unit="episode") as bar:
        for entry in entries:
            bar.set_description(entry.name, refresh=False)
            result = check(
                entry, benchmark, names, workers=options.workers, own_code=options.own_code, progress=bar.update
            )
            if not bar.in_lines:
                bar.clear()
            print(report(result, benchmark), flush=True)
            failed += not result.passed
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
