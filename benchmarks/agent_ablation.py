"""What the evolution strategy owes to each of its settings: the table of docs/agents.md.

    python benchmarks/agent_ablation.py DIR [--seeds 3]

Breeds what is missing in DIR, with as many iterations each, and judges on validation cases 0 to 99.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
from agent_tables import PAGE
from breeding import PLACES, SIZES, bred, breed, folder, iterations_of, settings_of
from judging import rows

from agents.arena import Arena
from llmsched_env.evaluation import runs_estimate
from llmsched_env.storage import write_whole
from studies.page import grid, replaced

TRIED_IN = ("gsm8k/shared/llama-65b-paper-low",)
CASES = range(100)

VARIANTS: dict[str, dict[str, Any]] = {
    "as bred": {},
    "one size only": {"sizes": (1.0,)},
    "several sizes": {"sizes": SIZES},
    "no rule to begin with": {"base": "none"},
    "cases that do not grow": {"growth": 0},
    "1 hidden unit": {"hidden": 1},
    "15 hidden units": {"hidden": 15},
    "diagonal steps": {"covariance": "diagonal"},
    "five features": {"features": ("ready", "charge", "due_1", "due_2_4", "work")},
}
"""What each changes of :func:`breeding.settings_of`."""


def cell(place: str, networks_at: Path) -> str:
    """Interquartile mean of the gap over seeds, in %, and its 95 % interval."""
    networks = bred(networks_at)
    losses = Arena(PLACES[place].replace(split="validation"), CASES).losses(rows(networks), CASES)[0]
    found = runs_estimate(100 * losses)
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Breed, judge, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    jobs, folders = {}, {}
    for seed, (variant, changes), place in itertools.product(range(options.seeds), VARIANTS.items(), TRIED_IN):
        usual = settings_of(PLACES[place])
        settings = replace(usual, **changes)
        where = folder(options.study, place if settings == usual else f"{place} ({variant})")
        folders[variant, place] = where
        path = where / f"{seed}.npz"
        jobs[path] = (path, PLACES[place], settings, seed, iterations_of(place))
    joblib.Parallel(n_jobs=-1, verbose=5)(joblib.delayed(breed)(*job) for job in jobs.values())
    body = [[variant, *(cell(place, folders[variant, place]) for place in TRIED_IN)] for variant in VARIANTS]
    page = replaced(PAGE.read_text(encoding="utf-8"), "ablation", grid(["gap, %", *TRIED_IN], body))
    with write_whole(PAGE) as path:
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
