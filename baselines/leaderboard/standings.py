"""``llmsched leaderboard``: the entries that are shipped, and yours among them, best first."""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llmsched_env.baselines.leaderboard.bench import LLMSCHED_BENCH, Benchmark
from llmsched_env.baselines.leaderboard.entries import LeaderboardEntry, read_entry
from llmsched_env.baselines.leaderboard.playing import given_the_future, runs_own_code
from llmsched_env.baselines.leaderboard.scoring import REFERENCES, references, scored
from llmsched_env.errors import PathError
from llmsched_env.evaluation import Estimate
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, MARKERS, RULE, check_drawing, new_figure, plain, save
from llmsched_env.evaluation.tables import grid
from llmsched_env.flags import flags_of, path_option, run_command
from llmsched_env.storage import output_folder, write_whole

__all__ = ["by_rank", "by_scenario", "draw", "finding", "main", "shipped_entries", "table", "write_csv"]

COMMAND = "python -m baselines leaderboard"
LEAST_SHOWN = -2.0
"""Score below which an entry is left out of the picture, where it would leave no room for the others."""

FUTURE = "†"
LEGEND = (
    f"Score: 0 = the best tuned rule of each scenario, 1 = the planner; {FUTURE} is given the future and not ranked. "
    "Overall: the interquartile mean over scenarios and runs, [95 % interval]."
)


def shipped_entries(benchmark: Benchmark) -> list[LeaderboardEntry]:
    """All that the package has, by name.

    Raises:
        PathError: there is none.
        FileFormatError: one that cannot be read.
    """
    paths = sorted(benchmark.entries.glob("*.json"))
    if not paths:
        raise PathError(f"no entries in {benchmark.entries}: install the package again.")
    return [read_entry(path, benchmark) for path in paths]


def overall(entry: LeaderboardEntry) -> Estimate | None:
    """The score that the entry states, over all scenarios; ``None`` where it lacks one."""
    return _estimate(entry.stated.get("score"))


def _estimate(stated: object) -> Estimate | None:
    if not isinstance(stated, dict) or stated.get("mean") is None:
        return None
    low, high = (math.nan if end is None else float(end) for end in stated["ci95"])
    return Estimate(float(stated["mean"]), low, high)


def by_rank(entries: Sequence[LeaderboardEntry]) -> list[tuple[str, LeaderboardEntry]]:
    """(rank, entry), best first. No rank has who is given the future, or lacks a scenario; the latter come last."""

    def worth(entry: LeaderboardEntry) -> tuple[float, str]:
        score = overall(entry)
        return (math.inf if score is None else -score.mean, entry.name)

    def ranked() -> Iterator[tuple[str, LeaderboardEntry]]:
        rank = 0
        for entry in sorted(entries, key=worth):
            counts = not entry.clairvoyant and overall(entry) is not None
            rank += counts
            yield str(rank) if counts else "–", entry

    return list(ranked())


def table(entries: Sequence[LeaderboardEntry], benchmark: Benchmark, most: int | None = None) -> str:
    """A Markdown table, best first: rank, name, overall score with its interval.

    Args:
        entries: with what they state.
        benchmark: that they are of.
        most: rows to show; all by default.
    """
    rows = []
    for rank, entry in by_rank(entries)[:most]:
        score = overall(entry)
        shown = "–" if score is None else f"{score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]"
        rows.append([rank, entry.name + f" {FUTURE}" * entry.clairvoyant, shown])
    return grid(["rank", "entry", "score"], rows)


def by_scenario(
    entries: Sequence[LeaderboardEntry], benchmark: Benchmark, given: Sequence[LeaderboardEntry] = (), most: int = 6
) -> str:
    """A Markdown table: a line a scenario, a column for each entry given and the best others but the references."""
    shown_first = {id(entry) for entry in given}
    others = [one for _, one in by_rank(entries) if one.name not in REFERENCES and id(one) not in shown_first]
    shown = [*given, *others][: max(most, len(given))]
    rows = []
    for place in benchmark.places:
        scores = [_estimate(entry.stated["scenarios"].get(place, {}).get("score")) for entry in shown]
        cells = ["–" if score is None else f"{round(score.mean, 2) + 0.0:.2f}" for score in scores]  # no -0.00
        rows.append([place, *cells])
    return grid(["scenario", *(entry.name for entry in shown)], rows)


def write_csv(path: Path, entries: Sequence[LeaderboardEntry], benchmark: Benchmark) -> Path:
    """One line an entry: rank, overall score, and mean, score and interval in each scenario.

    Raises:
        PathError: the file cannot be written.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["rank", "entry", "clairvoyant", "score", "score_low", "score_high"]
    for name, place in benchmark.places.items():
        header += [f"{name}/{column}" for column in (place.mean, "score", "score_low", "score_high")]
    writer.writerow(header)
    for rank, entry in by_rank(entries):
        line = [rank if rank != "–" else "", entry.name, int(entry.clairvoyant), *(overall(entry) or [""] * 3)]
        for name, place in benchmark.places.items():
            said = entry.stated["scenarios"].get(name, {})
            line += [said.get(place.mean, ""), *(_estimate(said.get("score")) or [""] * 3)]
        writer.writerow(line)
    with write_whole(path) as temporary:
        temporary.write_text(out.getvalue(), encoding="utf-8")
    return path


def finding(entries: Sequence[LeaderboardEntry], benchmark: Benchmark) -> str:
    """Who is first, in a sentence without a stop."""
    for rank, entry in by_rank(entries):
        score = overall(entry)
        if rank == "1" and score is not None:
            return (
                f"{entry.name} is first on {benchmark.name} with score {score.mean:.2f} (best tuned rule 0, planner 1)"
            )
    return f"No entry of {benchmark.name} is ranked yet"


def draw(path: Path, entries: Sequence[LeaderboardEntry], benchmark: Benchmark) -> Path:
    """Overall scores as points with horizontal intervals, best on top.

    Raises:
        MissingExtraError: matplotlib is not installed.
        PathError: the file cannot be written.
    """
    ranked = [(entry, score) for _, entry in by_rank(entries) if (score := overall(entry)) is not None]
    shown = [(entry, score) for entry, score in ranked if score.mean >= LEAST_SHOWN]
    figure = new_figure(7.0, 1.2 + 0.24 * max(1, len(shown)))
    axes = figure.add_subplot()
    for end in (0.0, 1.0):
        axes.axvline(end, color=RULE, linewidth=1)
    for row, (entry, score) in enumerate(shown):
        colour = FAINT if entry.clairvoyant else LINES[0]
        axes.plot([score.low, score.high], [row, row], color=colour, linewidth=2, solid_capstyle="round")
        face = "white" if entry.clairvoyant else colour
        axes.plot([score.mean], [row], MARKERS["method"], color=colour, markerfacecolor=face, markersize=5)
    axes.set_yticks(range(len(shown)), [entry.name + f" {FUTURE}" * entry.clairvoyant for entry, _ in shown])
    axes.invert_yaxis()
    plain(axes)
    below = len(ranked) - len(shown)
    left_out = f"; below {LEAST_SHOWN:g}, not shown: {below}" * bool(below)
    axes.set_xlabel(f"score: 0 = best tuned rule, 1 = planner, with 95 % interval{left_out}", fontsize=8, color=INK)
    axes.set_title(finding(entries, benchmark), loc="left", fontsize=9, color=INK)
    return save(figure, path)


def _with_future(entry: LeaderboardEntry, benchmark: Benchmark) -> LeaderboardEntry:
    """The entry, as given the future where one of its policies is, whatever it states. Its own code is not run."""
    known = {
        name: replace(results, policies=tuple(one for one in results.policies if not runs_own_code(one)))
        for name, results in entry.results.items()
    }
    return replace(entry, clairvoyant=entry.clairvoyant or given_the_future(replace(entry, results=known), benchmark))


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command, description=__doc__)
    parser.add_argument(
        "entries", nargs="*", type=path_option, metavar="ENTRY", help="the .json file of an entry that is not shipped"
    )
    parser.add_argument("--out", type=path_option, metavar="DIR", help="folder for leaderboard.csv and .png")
    return parser


def main(argv: Sequence[str] | None = None, command: str = COMMAND, *, benchmark: Benchmark = LLMSCHED_BENCH) -> int:
    """Print the table: 2 for unusable arguments or files."""
    parser = _parser(command)
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    return run_command(flags_of(parser), lambda: _run(options, benchmark))


def _run(options: argparse.Namespace, benchmark: Benchmark) -> int:
    if options.out is not None:
        check_drawing()
        output_folder(options.out)
    entries, unknown = shipped_entries(benchmark), []
    if options.entries:
        ends = references(benchmark)
        for path in options.entries:
            entry = _with_future(read_entry(path, benchmark), benchmark)
            if any(runs_own_code(one) for results in entry.results.values() for one in results.policies):
                unknown.append(entry.name)
            entries.append(replace(entry, stated=scored(entry, benchmark, ends).as_json(benchmark)))
    print(f"{benchmark.name}. {LEGEND}\n")
    print(table(entries, benchmark))
    if unknown:
        print(
            f"\nNot checked for the future, since code of their own is not run here: {', '.join(unknown)}. "
            "`llmsched verify --own-code` checks it."
        )
    own = entries[-len(options.entries) :] if options.entries else []
    print(f"\nThe best in each scenario:\n\n{by_scenario(entries, benchmark, own)}")
    if options.out is not None:
        write_csv(options.out / "leaderboard.csv", entries, benchmark)
        draw(options.out / "leaderboard.png", entries, benchmark)
        print(f"\nWritten to {options.out}: leaderboard.csv, leaderboard.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
