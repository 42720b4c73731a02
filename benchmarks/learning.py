"""Train PPO with its shipped settings, several seeds a place, and judge its most likely actions on test cases.

    python benchmarks/learning.py --out DIR           # trains what is missing, then judges; goes on after a kill
    python benchmarks/learning.py --out DIR --write   # and writes the table and the picture of docs/learning.md

A run keeps the network that is best on validation cases. Test cases are played once, at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np

from llmsched_env.agents.batch_evaluation import BatchEvaluation
from llmsched_env.agents.files import AgentFile
from llmsched_env.agents.training import Training, recorded, train
from llmsched_env.baselines.registry import entry, fixed_order_planner
from llmsched_env.baselines.tuned import best_tuned
from llmsched_env.config import Scenario
from llmsched_env.evaluation import evaluate, mean_estimate, runs_estimate, score_estimate
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, new_figure, plain, save
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "learning.md", ROOT / "docs" / "images" / "learning.png"


class Place(NamedTuple):
    """Where PPO learns, and on how many validation and test cases it is chosen and judged."""

    scenario: str
    arguments: dict[str, Any]
    validated: int
    judged: range


PLACES = {
    "GSM8K-v0": Place("LLMSched/GSM8K-v0", {}, 100, range(100, 200)),
    "GSM8K-Smooth-v0": Place("LLMSched/GSM8K-Smooth-v0", {}, 100, range(100, 200)),
    "Serving-v0, load 0.97": Place("LLMSched/Serving-v0", {"load": 0.97}, 20, range(20, 60)),
}


def training_of(name: str, seed: int, out: Path) -> Training:
    """One run."""
    place = PLACES[name]
    folder = out / name.replace(", ", "_").replace(" ", "_") / f"seed{seed}"
    return Training(
        "ppo", place.scenario, seed=seed, out=folder, validation_cases=place.validated, arguments=place.arguments
    )


def learn(training: Training) -> None:
    """Train, or go on with what a kill left."""
    if (training.out / "run.json").exists():
        return
    started = time.process_time()
    begun = (training.out / "config.json").exists()
    train(recorded(training.out) if begun else training, command="benchmarks/learning.py", resume=begun, progress=False)
    with write_whole(training.out / "cpu_s.json") as temporary:
        temporary.write_text(json.dumps(None if begun else time.process_time() - started), encoding="utf-8")


def losses(name: str, scenario: Scenario, cases: Sequence[int]) -> list[float]:
    """By case, of a policy that the comparison knows by name."""
    item = entry(name, scenario)
    columns = evaluate(item.policy, item.scenario, cases).columns
    if scenario.serving:
        return list((1.0 - columns["goodput"]).tolist())
    return list((columns["makespan_s"] / columns["lb1_s"] - 1.0).tolist())


def judge(name: str, runs: Sequence[Training]) -> dict[str, Any]:
    """All seeds on the test cases, beside the best tuned rule, the planner and the paper's rule."""
    place = PLACES[name]
    test = runs[0].validation.replace(split="test")
    networks = [AgentFile.read(run.out / "agent.npz").trained[0].network for run in runs]
    return {
        "cases": [place.judged.start, place.judged.stop - 1],
        "runs": BatchEvaluation(test, place.judged).losses(networks, place.judged)[0].tolist(),
        "rule": {"name": best_tuned(test), "loss": losses(best_tuned(test), test, place.judged)},
        "planner": {"name": fixed_order_planner(test), "loss": losses(fixed_order_planner(test), test, place.judged)},
        "lagrangian": {"name": "lagrangian", "loss": losses("lagrangian", test, place.judged)},
        "cpu_s": [json.loads((run.out / "cpu_s.json").read_text(encoding="utf-8")) for run in runs],
    }


def table(found: dict[str, Any]) -> str:
    """One line a place."""
    lines = []
    for name, said in found.items():
        runs, rule = np.array(said["runs"]), np.array(said["rule"]["loss"])
        score = score_estimate(runs, rule, said["planner"]["loss"])
        ahead = runs_estimate(runs - rule)
        taken = [seconds for seconds in said["cpu_s"] if seconds]
        lines.append(
            [
                name,
                f"{100 * np.mean(said['lagrangian']['loss']):.2f}",
                f"`{said['rule']['name']}` {100 * rule.mean():.2f}",
                f"**{100 * runs_estimate(runs).mean:.2f}**",
                f"{100 * np.mean(said['planner']['loss']):.2f}",
                f"{100 * ahead.mean:+.2f} ({100 * ahead.low:+.2f} to {100 * ahead.high:+.2f})",
                "–" if np.isnan(score.mean) else f"**{score.mean:.2f}** ({score.low:.2f} to {score.high:.2f})",
                " ".join(f"{100 * mean:.2f}" for mean in runs.mean(axis=1)),
                f"{np.mean(taken) / 60:.0f}" if taken else "",
            ]
        )
    header = [
        "place", "`lagrangian`", "best tuned rule", "PPO", "planner", "PPO − tuned rule, points", "score (95 %)",
        "each seed", "CPU minutes a seed",
    ]  # fmt: skip
    return grid(header, lines)


def curves(runs: Sequence[Training]) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps, and (runs, timesteps) of the objective at each validation."""
    rows = [list(csv.DictReader((run.out / "curve.csv").open(encoding="utf-8"))) for run in runs]
    column = next(key for key in rows[0][0] if key in ("ppo/makespan_s", "ppo/goodput"))
    return (
        np.array([int(row["timesteps"]) for row in rows[0]]),
        np.array([[float(row[column]) for row in one] for one in rows]),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    runs = {name: [training_of(name, seed, options.out) for seed in range(options.seeds)] for name in options.places}
    waiting = [run for name in runs for run in runs[name]]
    print(f"{len(waiting)} runs, {options.workers} at a time", file=sys.stderr)
    done = joblib.Parallel(options.workers, return_as="generator")(joblib.delayed(learn)(run) for run in waiting)
    for number, _ in enumerate(done, 1):
        print(f"{number} of {len(waiting)} runs are there", file=sys.stderr, flush=True)
    kept = options.out / "judged.json"
    found = {name: judge(name, ones) for name, ones in runs.items()}
    with write_whole(kept) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
    print(table(found))
    if options.write:
        with write_whole(PAGE) as temporary:
            temporary.write_text(replaced(PAGE.read_text(encoding="utf-8"), "learning", table(found)), encoding="utf-8")
        draw(runs)


def draw(runs: dict[str, list[Training]]) -> None:
    """Validation by decisions: the middle seed and the band of all, between the best tuned rule and the planner."""
    figure = new_figure(4.2 * len(runs), 3.4)
    for number, (name, ones) in enumerate(runs.items(), 1):
        axis = figure.add_subplot(1, len(runs), number)
        steps, values = curves(ones)
        validation = ones[0].validation
        cases = range(ones[0].validation_cases)
        ends = []
        for policy in (best_tuned(validation), fixed_order_planner(validation)):
            item = entry(policy, validation)
            column = "goodput" if validation.serving else "makespan_s"
            ends.append(float(mean_estimate(evaluate(item.policy, item.scenario, cases).columns[column]).mean))
        axis.fill_between(steps / 1e6, values.min(axis=0), values.max(axis=0), color=LINES[0], alpha=0.25, lw=0)
        axis.plot(steps / 1e6, np.median(values, axis=0), color=LINES[0])
        for value, text, color in (
            (ends[0], best_tuned(validation), INK),
            (ends[1], fixed_order_planner(validation), FAINT),
        ):
            axis.axhline(value, color=color, lw=1, ls="--")
            axis.annotate(text, (steps[-1] / 1e6, value), ha="right", va="bottom", fontsize=8, color=color)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_xlabel("million decisions")
        axis.set_ylabel("goodput" if validation.serving else "makespan, s")
        plain(axis)
    save(figure, PICTURE)


if __name__ == "__main__":
    main()
