"""``python -m llmsched_env.baselines.predictions``: what a prediction of lengths is worth, and what its error costs.

One shared queue, longest first by mean + k standard deviations of the prediction, against first come first served,
which knows nothing, on the same cases. Every row has the threshold rule with the threshold that is best for it on
training cases; k is chosen on training cases too, and what is shown was measured on others.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llmsched_env
from llmsched_env import make_scenario
from llmsched_env.baselines.__main__ import parse_cases
from llmsched_env.baselines.registry import make_policy
from llmsched_env.baselines.tuned import tuned_value
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import Estimate, evaluate, mean_estimate, pictures
from llmsched_env.evaluation.drawing import check_drawing
from llmsched_env.evaluation.tables import grid, interval
from llmsched_env.flags import flags_of, path_option, run_command
from llmsched_env.progress import Progress
from llmsched_env.storage import output_folder, write_whole
from llmsched_env.workload import SPLITS, NoisyTruth, Population, Predictor, PromptRegression, UnevenTruth

__all__ = ["Row", "Study", "main", "study"]

COMMAND = "python -m llmsched_env.baselines.predictions"
RULE = "tuned_threshold"

SD_WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0)
EVEN = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Correlations where all requests are predicted equally well."""

POOR_HALF = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
GOOD_HALF = 0.95
"""Correlations where every other request, by chance, is predicted well, and the scheduler knows which."""

COLUMNS = ("predictor", "spearman", "sd_weight", "chosen", "training_makespan_s")
ESTIMATES = ("gap_to_bound", "above_fcfs")


@dataclass(frozen=True)
class Row:
    """One predictor with one k.

    Attributes:
        predictor: its name.
        spearman: rank correlation of predicted means and true lengths, mean over the cases; ``None`` where all means
            are equal.
        sd_weight: k.
        chosen: whether training cases chose this k for this predictor.
        training_makespan_s: mean makespan on the training cases, by which it was chosen.
        gap_to_bound: on the cases of the study.
        above_fcfs: its gap less that of first come first served, case by case.
    """

    predictor: str
    spearman: float | None
    sd_weight: float
    chosen: bool
    training_makespan_s: float
    gap_to_bound: Estimate
    above_fcfs: Estimate


@dataclass(frozen=True)
class Study:
    """All rows, and what they are compared with.

    Attributes:
        scenario: of first come first served.
        cases: (cases,) case numbers.
        seed: of the predictors' noise.
        fcfs: gap of first come first served.
        rows: predictor by predictor, k by k.
    """

    scenario: Scenario
    cases: NDArray[np.int64]
    seed: int
    fcfs: Estimate
    rows: Sequence[Row]

    def gap(self, predictor: Predictor, sd_weight: float) -> Estimate:
        """The gap of one row."""
        return next(
            row.gap_to_bound for row in self.rows if (row.predictor, row.sd_weight) == (predictor.name, sd_weight)
        )

    def as_json(self) -> dict[str, Any]:
        """The study as plain JSON values."""
        return {
            "version": llmsched_env.__version__,
            "scenario": self.scenario.describe(),
            "cases": self.cases.tolist(),
            "seed": self.seed,
            "rule": RULE,
            "fcfs": {"gap_to_bound": self.fcfs.as_json()},
            "rows": [
                {name: getattr(row, name) for name in COLUMNS}
                | {name: getattr(row, name).as_json() for name in ESTIMATES}
                for row in self.rows
            ],
        }


def even(seed: int) -> list[NoisyTruth]:
    """Predictors that are equally good for all requests."""
    return [NoisyTruth(correlation, seed) for correlation in EVEN]


def uneven(seed: int) -> list[UnevenTruth]:
    """Predictors that are good for half of the requests."""
    return [UnevenTruth((correlation, GOOD_HALF), seed) for correlation in POOR_HALF]


def study(scenario: Scenario, cases: NDArray[np.int64], seed: int = 0) -> Study:
    """Run every predictor with every k on these cases of the scenario, on one shared queue.

    Raises:
        ConfigError: no such cases, or a seed out of range.
    """
    policy = make_policy(RULE)
    predictors: list[Predictor] = [Population(), PromptRegression(), *even(seed), *uneven(seed)]
    fcfs = scenario.replace(queue="shared", order="fcfs", lengths="hidden", predictor=None, sd_weight=0.0)
    usual = evaluate(policy, fcfs, cases).columns["gap_to_bound"]
    rows: list[Row] = []
    for predictor in Progress(predictors, desc="predictions", unit="predictor"):
        places = [
            fcfs.replace(order="longest_first", lengths="predicted", predictor=predictor, sd_weight=weight)
            for weight in SD_WEIGHTS
        ]
        trained = [tuned_value(RULE, place).mean for place in places]
        spearman = _spearman(predictor, fcfs, cases)
        for place, training_s in zip(places, trained, strict=True):
            gaps = evaluate(policy, place, cases).columns["gap_to_bound"]
            chosen = place is places[int(np.argmin(trained))]
            rows.append(
                Row(
                    predictor.name,
                    spearman,
                    place.sd_weight,
                    chosen,
                    training_s,
                    mean_estimate(gaps),
                    mean_estimate(gaps - usual),
                )
            )
    return Study(fcfs, cases, seed, mean_estimate(usual), rows)


def _spearman(predictor: Predictor, scenario: Scenario, cases: NDArray[np.int64]) -> float | None:
    from scipy.stats import rankdata

    correlations = []
    for case in cases.tolist():
        requests = scenario.source.requests(scenario.split, case, num_requests=scenario.num_requests)
        mean = predictor.predict(scenario.source, scenario.split, case, requests).mean_tokens
        if min(np.ptp(mean), np.ptp(requests.output_tokens)) == 0:
            return None
        correlations.append(np.corrcoef(rankdata(mean), rankdata(requests.output_tokens))[0, 1])
    return float(np.mean(correlations))


def table(result: Study) -> str:
    """One line a predictor: its gap above that of first come first served, in percentage points, at each k."""
    body = []
    for first in range(0, len(result.rows), len(SD_WEIGHTS)):
        rows = result.rows[first : first + len(SD_WEIGHTS)]
        best = next(row for row in rows if row.chosen)
        body.append(
            [
                best.predictor,
                "–" if best.spearman is None else f"{best.spearman:.2f}",
                *(f"{100 * row.above_fcfs.mean:+.2f}" for row in rows),
                f"{best.sd_weight:g}",
                interval(best.gap_to_bound, 100),
                interval(rows[0].above_fcfs, 100),
                interval(best.above_fcfs, 100),
            ]
        )
    header = ["predictor", "Spearman", *(f"k = {weight:g}" for weight in SD_WEIGHTS)]
    header += ["best k", "gap % at best k", "above FCFS at k = 0", "at best k"]
    return grid(header, body)


def write_files(result: Study, folder: Path, *, command: str) -> list[Path]:
    """``predictions.json``, ``predictions.csv`` and ``predictions.png``, each whole or not at all.

    Raises:
        MissingExtraError: matplotlib is not installed.
        PathError: the folder cannot be written.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{name}{end}" for name in ESTIMATES for end in ("", "_ci95_low", "_ci95_high"))])
    for row in result.rows:
        writer.writerow(
            [getattr(row, name) for name in COLUMNS] + [x for name in ESTIMATES for x in getattr(row, name)]
        )
    texts = {
        "predictions.json": json.dumps({"command": command, **result.as_json()}, indent=1, default=str) + "\n",
        "predictions.csv": out.getvalue(),
    }
    for name, text in texts.items():
        with write_whole(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    return [*(folder / name for name in texts), _draw(result, folder / "predictions.png")]


def _draw(result: Study, path: Path) -> Path:
    def lines(correlations: Sequence[float], predictors: Sequence[Predictor]) -> list[pictures.Line]:
        return [
            pictures.Line(f"k = {weight:g}", correlations, [result.gap(one, weight) for one in predictors])
            for weight in SD_WEIGHTS
        ]

    panels = {
        "correlation of signal and log length, of all requests": lines(EVEN, even(result.seed)),
        f"of half of them, known which (of the others {GOOD_HALF:g})": lines(POOR_HALF, uneven(result.seed)),
    }
    title = f"Longest first by mean + k·sd, {result.scenario.source.name}"
    return pictures.gap_by_correlation(path, panels, ("first come first served", result.fcfs), title=title)


def _parser(command: str = COMMAND) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--scenario", default="LLMSched/GSM8K-v0", metavar="ID", help="environment id (default: %(default)s)")
    add("--split", default="test", help=f"pool of cases: {', '.join(SPLITS)} (default: %(default)s)")
    add("--cases", default="40", metavar="N|A-B", help="the first N cases, or cases A to B (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the predictors' noise (default: %(default)s)")
    add("--clients", type=int, metavar="J", help="clients (default: the scenario's, 200)")
    add("--requests", type=int, metavar="N", help="requests a case, drawn with replacement (default: the workload's)")
    add(
        "--out",
        type=path_option,
        metavar="DIR",
        help="folder for predictions.json, predictions.csv and predictions.png",
    )
    return parser


FLAGS = flags_of(_parser())


def main(argv: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Run the study; 2 for unusable arguments, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser(command).parse_args(arguments)
    return run_command(FLAGS, lambda: _run(options, f"{command} {shlex.join(arguments)}".rstrip()))


def _run(options: argparse.Namespace, command: str) -> None:
    changes = {"num_clients": options.clients, "num_requests": options.requests}
    given = {name: value for name, value in changes.items() if value is not None}
    scenario = make_scenario(options.scenario, split=options.split, **given)
    if scenario.serving:
        raise ConfigError(
            f"--scenario {options.scenario}: this study measures the makespan of a batch. Take LLMSched/GSM8K-v0 or "
            "-Smooth-v0; `python -m baselines --predictor NAME` compares with SLOs."
        )
    cases = parse_cases(options.cases)
    if options.out is not None:  # complains now, before the long work
        check_drawing()
        output_folder(options.out)
    result = study(scenario, cases, options.seed)
    print(
        f"{options.scenario}, split {options.split}, {len(cases)} cases, {scenario.num_clients} clients, one shared "
        f"queue, {RULE}.\nFirst come first served: gap {interval(result.fcfs, 100)} %. Longest first by mean + k sd, "
        "in percentage points above it (below 0 is better):\n"
    )
    print(table(result))
    if options.out is not None:
        written = write_files(result, options.out, command=command)
        print(f"\nWritten to {options.out}: {', '.join(path.name for path in written)}")


if __name__ == "__main__":
    raise SystemExit(main())
