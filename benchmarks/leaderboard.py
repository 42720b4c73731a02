"""Play the entries that are shipped, and write them, the table and the picture of docs/leaderboard.md.

    python benchmarks/leaderboard.py                    # all of them: after a change of scenarios, cases or policies
    python benchmarks/leaderboard.py --entries a,b      # these only; the others are scored again
    python benchmarks/leaderboard.py --entries ''       # none: only the page

Rules are listed in ENTRIES. Any other file in the folder, PPO's say, is played by the policies that it names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmsched_env.baselines.leaderboard import LLMSCHED_BENCH, read_entry, references, scored, write_entry
from llmsched_env.baselines.leaderboard.scoring import PLANNER, RULE
from llmsched_env.baselines.leaderboard.standings import (
    by_scenario,
    draw,
    finding,
    shipped_entries,
    table,
    write_csv,
)
from llmsched_env.baselines.leaderboard.submit import play_entry
from llmsched_env.baselines.registry import AGENTS, fixed_order_planner
from llmsched_env.baselines.tuned import best_tuned
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.errors import UnknownNameError
from llmsched_env.progress import Progress
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "leaderboard.md"
SHOWN = 12
MADE_BY = "benchmarks/leaderboard.py"


def agent_or_rule(scenario: Scenario) -> str:
    """The pretrained agent where it fits, the best tuned rule elsewhere."""
    return "agent" if AGENTS["agent"]().fits(scenario) else best_tuned(scenario)


RULES = (
    "prefill_first",
    "decode_first",
    "static_batching",
    "threshold",
    "eb_threshold",
    "eb_threshold_finite",
    "max_wait",
    "min_batch",
    "lightllm",
    "tgi",
    "delay_factor",
    "cadence",
    "interleave",
    "lagrangian",
    "lagrangian_lookahead",
    "lagrangian_literal",
    "lagrangian_instant",
    "tuned_threshold",
    "lagrangian_tuned",
    "max_wait_tuned",
    "interleave_tuned",
    "random",
)
"""Those that run in every scenario, by the name of the entry."""

ENTRIES: dict[str, Callable[[Scenario], str]] = {
    RULE: best_tuned,
    PLANNER: fixed_order_planner,
    "agent": agent_or_rule,
    **{name: (lambda scenario, name=name: name) for name in RULES},
}
"""Policy by scenario; the references first, since the others are scored against them."""


def page_tables() -> tuple[str, str]:
    """What the page shows: who is first and the best entries, and the best in each scenario; the CSV file has all."""
    entries = shipped_entries(LLMSCHED_BENCH)
    first = f"{finding(entries, LLMSCHED_BENCH)}.\n\n{table(entries, LLMSCHED_BENCH, SHOWN)}"
    return first, by_scenario(entries, LLMSCHED_BENCH)


class Headroom(NamedTuple):
    """What the best tuned rule and the planner lose: the gap to LB1, or the share of counted requests that violate."""

    rule: float
    planner: float

    def enough(self, serving: bool) -> bool:
        """At least 3 points of goodput, or a fifth of the gap."""
        return self.rule - self.planner >= (0.03 if serving else 0.2 * self.rule)


def headroom(name: str) -> Headroom:
    """In a scenario, of the figures of the references."""
    place = LLMSCHED_BENCH.places[name]
    problems = [build_problem(place.scenario, case) for case in place.cases]
    if place.scenario.serving:
        slo = place.scenario.slo(problems[0].num_requests)
        assert slo is not None
        zero, unit = 0.0, np.full(len(problems), float(slo.last - slo.first))
    else:
        zero, unit = 1.0, np.array([problem.lb1_ns for problem in problems], np.float64)
    return Headroom(*(float((figures / unit).mean()) - zero for figures in references(LLMSCHED_BENCH)[name]))


def scenario_table() -> str:
    """The scenarios of the benchmark."""
    rows = []
    for name, place in LLMSCHED_BENCH.places.items():
        changes = ", ".join(f"`{key}={value!r}`" for key, value in place.changes.items())
        cases = f"{place.cases.start} to {place.cases.stop - 1}"
        what = "violations" if place.scenario.serving else "gap to LB1"
        lost = headroom(name)
        rule = f"`{best_tuned(place.scenario)}` {100 * lost.rule:.2f}"
        rows.append([f"`{name}`", f"`{place.scenario_id}`", changes, cases, what, rule, f"{100 * lost.planner:.2f}"])
    return grid(["scenario", "environment", "changes", "test cases", "counts, %", "best tuned rule", "planner"], rows)


def page(text: str) -> str:
    """The page with its tables."""
    first, places = page_tables()
    text = replaced(replaced(text, "leaderboard", first), "by scenario", places)
    return replaced(text, "scenarios", scenario_table())


def play(names: Sequence[str], workers: int) -> None:
    """Play these and write them unscored."""
    bench = LLMSCHED_BENCH
    others = {path.stem for path in bench.entries.glob("*.json")} - set(ENTRIES)
    for name in names:
        if name not in ENTRIES and name not in others:
            raise UnknownNameError("entry", name, [*ENTRIES, *others])
    there = {name: read_entry(bench.entries / f"{name}.json", bench) for name in names if name in others}
    policies, made_by = {}, {}
    for name in names:
        if name in ENTRIES:
            policies[name] = {place: [ENTRIES[name](one.scenario)] for place, one in bench.places.items()}
            made_by[name] = MADE_BY
        else:
            policies[name] = {place: list(results.policies) for place, results in there[name].results.items()}
            made_by[name] = there[name].made_by
    total = sum(len(runs) * len(bench.places[place].cases) for one in policies.values() for place, runs in one.items())
    with Progress(total=total, unit="episode", leave=True) as bar:
        for name in names:
            bar.set_description(name, refresh=False)
            path = bench.entries / f"{name}.json"
            entry = play_entry(
                name, policies[name], bench, path, made_by=made_by[name], workers=workers, progress=bar.update
            )
            write_entry(entry, bench, path)


def score() -> None:
    """Score all entries anew, by the references as they are."""
    ends = references(LLMSCHED_BENCH)
    for entry in shipped_entries(LLMSCHED_BENCH):
        stated = scored(entry, LLMSCHED_BENCH, ends).as_json(LLMSCHED_BENCH)
        write_entry(replace(entry, stated=stated), LLMSCHED_BENCH, entry.path)


def main(argv: Sequence[str] | None = None) -> None:
    """Play, score, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", metavar="A,B,...", help="play these only (default: all)")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    options = parser.parse_args(argv)
    if options.entries is None:
        others = sorted(path.stem for path in LLMSCHED_BENCH.entries.glob("*.json") if path.stem not in ENTRIES)
        play([*ENTRIES, *others], options.workers)
    else:
        play([name for name in options.entries.split(",") if name], options.workers)
    score()
    entries = shipped_entries(LLMSCHED_BENCH)
    write_csv(DOCS / "leaderboard.csv", entries, LLMSCHED_BENCH)
    draw(DOCS / "images" / "leaderboard.png", entries, LLMSCHED_BENCH)
    with write_whole(PAGE) as temporary:
        temporary.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table(entries, LLMSCHED_BENCH))


if __name__ == "__main__":
    main()
