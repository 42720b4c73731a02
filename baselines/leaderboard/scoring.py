"""What follows from the figures of entries: means, scores and standings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.baselines.leaderboard.bench import Benchmark
from llmsched_env.baselines.leaderboard.entries import LeaderboardEntry, read_entry
from llmsched_env.errors import FileFormatError
from llmsched_env.evaluation import Estimate, aggregate_estimate, runs_estimate, score_estimate

__all__ = ["PLANNER", "REFERENCES", "RULE", "Scoring", "differences", "references", "scored"]

RULE, PLANNER = "best_tuned_rule", "planner"
"""The entries that score 0 and 1."""
REFERENCES = (RULE, PLANNER)

DIGITS = 4
CLOSE = 1.5 * 10.0**-DIGITS
"""How far two roundings of a number to so many digits may be apart, where libraries add in another order."""

Ends = Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
"""By scenario: (cases,) figures of the best tuned rule and of the planner."""


@dataclass(frozen=True)
class Scoring:
    """What follows from an entry's figures.

    Attributes:
        means: by scenario: makespan in s, or violations a case; of several runs the interquartile mean.
        scores: by scenario: 0 is the best tuned rule, 1 the planner.
        score: over all scenarios; ``None`` where the entry lacks one.
    """

    means: Mapping[str, float]
    scores: Mapping[str, Estimate]
    score: Estimate | None

    def as_json(self, benchmark: Benchmark) -> dict[str, Any]:
        """As the file of an entry states it, rounded to 4 digits."""
        return {
            "score": None if self.score is None else _rounded(self.score),
            "scenarios": {
                name: {benchmark.places[name].mean: round(mean, DIGITS), "score": _rounded(self.scores[name])}
                for name, mean in self.means.items()
            },
        }


def _rounded(estimate: Estimate) -> dict[str, Any]:
    ends = [None if math.isnan(value) else round(float(value), DIGITS) + 0.0 for value in estimate]
    return {"mean": ends[0], "ci95": ends[1:]}


def references(benchmark: Benchmark) -> Ends:
    """The figures of the shipped entries that scores are counted from and to.

    Raises:
        PathError: one of them is not there.
        FileFormatError: one of them lacks a scenario, or has several runs.
    """
    found = []
    for name in (RULE, PLANNER):
        entry = read_entry(benchmark.entries / f"{name}.json", benchmark)
        for place in benchmark.places:
            if place not in entry.results or len(entry.results[place].figures) != 1:
                raise FileFormatError(
                    entry.path, f"a reference needs one run in every scenario, {place!r} too: play it again."
                )
        found.append(entry)
    rule, planner = found
    return {place: (rule.results[place].figures[0], planner.results[place].figures[0]) for place in benchmark.places}


def scored(entry: LeaderboardEntry, benchmark: Benchmark, ends: Ends) -> Scoring:
    """Means and scores of an entry.

    Args:
        entry: with figures.
        benchmark: that it is of.
        ends: of :func:`references`.
    """
    means, scores, tasks = {}, {}, []
    for name, results in entry.results.items():
        task = (results.figures, *ends[name])
        means[name] = runs_estimate(results.figures).mean / benchmark.places[name].scale
        scores[name] = score_estimate(*task)
        tasks.append(task)
    complete = set(means) == set(benchmark.places)
    return Scoring(means, scores, aggregate_estimate(tasks) if complete else None)


def differences(stated: Any, follows: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(what, stated, follows) for each derived number that is stated otherwise than it follows from the figures."""
    if isinstance(follows, dict):
        known = stated if isinstance(stated, dict) else {}
        for key in dict.fromkeys([*follows, *known]):
            yield from differences(known.get(key), follows.get(key), f"{where} {key}".strip())
    elif isinstance(follows, list) and isinstance(stated, list) and len(stated) == len(follows):
        for side, one, other in zip(("low", "high"), stated, follows, strict=True):
            yield from differences(one, other, f"{where} {side}")
    elif not _alike(stated, follows):
        yield where, stated, follows


def _alike(stated: Any, follows: Any) -> bool:
    numbers = [isinstance(one, int | float) and not isinstance(one, bool) for one in (stated, follows)]
    if not all(numbers):
        return stated is follows is None
    try:
        return bool(abs(stated - follows) <= CLOSE)
    except OverflowError:  # a whole number beyond those that a float holds
        return False
