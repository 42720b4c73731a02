"""The tables of docs/results.md, measured: the ablation on both ids, what each step is worth, the band of cost presets,
and how far simple rules and a search are from the bound. The table of README.md is a part of the first. docs/data
has the first two in full (methods.csv, steps.csv), the page the columns and rows that are read.

    python benchmarks/result_tables.py [--cases 100] [--write]

Without ``--write`` they are printed. Differences are paired: the same case under two methods.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import llmsched_env  # noqa: F401  # registers the environments
from llmsched_env import make_scenario
from llmsched_env.baselines import METHODS, entry
from llmsched_env.baselines.iteration import threshold
from llmsched_env.baselines.lagrangian import lagrangian, lagrangian_literal
from llmsched_env.baselines.registry import Entry
from llmsched_env.baselines.tuned import best_tuned
from llmsched_env.cases import has_plans
from llmsched_env.config import Scenario
from llmsched_env.evaluation import Evaluation, evaluate, mean_estimate
from llmsched_env.evaluation.report import PAPER
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid, replaced
from llmsched_env.studies.tables import Table

ROOT = Path(__file__).parents[1]
README, PAGE, DATA = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "data"
BAND = ("llama-65b-paper", "llama-65b-paper-mid", "llama-65b-paper-low")
COLUMNS = {"LLMSched/GSM8K-v0": "GSM8K", "LLMSched/GSM8K-Smooth-v0": "smooth"}

STEPS = (
    ("queues balanced by the MIP", "baseline", "offline"),
    ("+ sorted, with stealing", "offline", "offline_sorted"),
    ("+ the rule: the hybrid", "offline_sorted", "hybrid"),
    ("all three together", "baseline", "hybrid"),
    ("the rule alone, lengths unknown", "baseline", "baseline_lagrangian"),
    ("the rule on one sorted queue", "shared_lpt_prefill_first", "shared_lpt_lagrangian"),
    ("hybrid: LPT queues instead of the MIP's", "hybrid", "hybrid_lpt"),
    ("hybrid: one sorted queue instead of the MIP's", "hybrid", "shared_lpt_lagrangian"),
    ("hybrid: the literal reading instead of ours", "hybrid", "literal"),
    ("hybrid: λ = 0.3 instead of 1", "hybrid", "multiplier 0.3"),
    ("hybrid: λ = 0.1 instead of 1", "hybrid", "multiplier 0.1"),
    ("one sorted queue: threshold 14 instead of the rule", "shared_lpt_lagrangian", "shared threshold 14"),
)

PUBLISHED = {
    "baseline": "one queue, prefill first",
    "hybrid": "balanced by the MIP, sorted, stealing, Lagrangian rule",
}

CHANGE = "change of makespan, s"
FIRST_STEPS = 5
"""Steps that the page shows, besides those of the hybrid."""

RIVALS = (
    ("random", "a fair coin at each choice"),
    ("lagrangian", "the Lagrangian rule: the paper's hybrid"),
    ("", "the tuned rule that did best on training cases"),
    ("beam", "beam search, handed the future"),
    ("agent", "the pretrained agent"),
    ("joint", "the joint plan, on a queue of its own"),
)
"""Rows of the table of gaps; the empty name stands for the best tuned rule of each id."""


def contestants(scenario: Scenario) -> list[Entry]:
    """The methods (the joint plan where it is shipped), and the variants that the text speaks of."""
    hybrid, shared = entry("hybrid", scenario).scenario, entry("shared_lpt_lagrangian", scenario).scenario
    return [
        *(entry(name, scenario) for name in METHODS if name != "joint" or has_plans(scenario)),
        Entry("literal", "rule", lagrangian_literal(), hybrid),
        Entry("multiplier 0.3", "rule", lagrangian(0.3), hybrid),
        Entry("multiplier 0.1", "rule", lagrangian(0.1), hybrid),
        Entry("shared threshold 14", "rule", threshold(14), shared),
    ]


def measure(cases: int) -> dict[tuple[str, str], dict[str, Evaluation]]:
    """Evaluations by name, for every preset of the band and every id."""
    results: dict[tuple[str, str], dict[str, Evaluation]] = {}
    worlds = [(preset, scenario_id) for preset in BAND for scenario_id in COLUMNS]
    for preset, scenario_id in tqdm(worlds, unit="world"):
        scenario = default_scenario(scenario_id, preset)
        results[preset, scenario_id] = {
            item.name: evaluate(item.policy, item.scenario, cases) for item in contestants(scenario)
        }
    return results


def default_scenario(scenario_id: str, cost: str = BAND[0]) -> Scenario:
    """What the id stands for, on test cases."""
    return make_scenario(scenario_id, split="test", cost=cost)


def interval(values: NDArray[np.float64], scale: float = 1.0, digits: int = 2, sign: str = "") -> str:
    """Mean and half the width of its 95 % confidence interval."""
    estimate = mean_estimate(values * scale)
    text = f"{estimate.mean:{sign}.{digits}f}"
    return text if np.isnan(estimate.low) else f"{text} ± {estimate.high - estimate.mean:.{digits}f}"


def ablation(results: dict[tuple[str, str], dict[str, Evaluation]]) -> Table:
    """The methods on both ids, default preset, beside the paper."""
    runs = {title: results[BAND[0], scenario_id] for scenario_id, title in COLUMNS.items()}
    rows = []
    for name, method in METHODS.items():
        paper = PAPER.get(name)
        cells = []
        for run in runs.values():
            columns = run[name].columns
            cells += [interval(columns["makespan_s"]), interval(columns["utilization"], 100, 1)]
        clairvoyant = run[name].clairvoyant
        rows.append(
            [
                f"`{name}`",
                method.text,
                "lengths" if clairvoyant else "blind",
                *cells,
                f"{paper[0]:.2f} s, {paper[1] * 100:.1f} %" if paper else "",
            ]
        )
    bounds = [cell for run in runs.values() for cell in (interval(run["hybrid"].columns["lb1_s"]), "")]
    rows.append(["LB1", "lower bound: no schedule is faster", "", *bounds, "about 180 s"])
    header = ["method", "what it is", "knows", *(f"{title}: {x}" for title in runs for x in ("s", "util. %")), "paper"]
    return Table("methods", "the methods on both ids", header, rows)


def paper(results: dict[tuple[str, str], dict[str, Evaluation]], cases: int) -> str:
    """The two rows that the paper publishes, and the bound."""
    runs = results[BAND[0], "LLMSched/GSM8K-v0"]
    rows = []
    for name, text in PUBLISHED.items():
        columns, (seconds, share) = runs[name].columns, PAPER[name]
        cells = interval(columns["makespan_s"]), interval(columns["utilization"], 100, 1)
        rows.append([f"`{name}`: {text}", *cells, f"{seconds:.2f} s, {share * 100:.1f} %"])
    rows.append(["lower bound", interval(runs["hybrid"].columns["lb1_s"]), "", "about 180 s"])
    caption = f"{cases} cases of GSM8K lengths, 1,319 requests, 200 clients; mean, ± half of the 95 % interval.\n\n"
    return caption + grid(["method", "makespan, s", "utilization, %", "paper"], rows) + "\n"


def steps(results: dict[tuple[str, str], dict[str, Evaluation]]) -> Table:
    """Paired differences of makespans in s, each way of measuring a step, over the ids and the band."""
    rows = []
    for text, before, after in STEPS:
        cells = []
        for scenario_id in COLUMNS:
            for number, preset in enumerate(BAND):
                run = results[preset, scenario_id]
                change = run[after].columns["makespan_s"] - run[before].columns["makespan_s"]
                cells.append(interval(change, sign="+") if not number else f"{change.mean():+.1f}")
        rows.append([text, *cells])
    presets = ("", " mid", " low")
    header = [CHANGE, *(f"{title}{preset}" for title in COLUMNS.values() for preset in presets)]
    return Table("steps", "what each step is worth", header, rows)


def band(results: dict[tuple[str, str], dict[str, Evaluation]]) -> str:
    """What each preset reproduces and predicts on the paper's case."""
    rows = []
    for preset in BAND:
        run = results[preset, "LLMSched/GSM8K-v0"]
        model = run["hybrid"].scenario.cost_model
        hybrid = run["hybrid"].estimate("makespan_s").mean, run["hybrid"].estimate("utilization").mean * 100
        coefficients = (model.alpha_prefill_ns, model.beta_prefill_ns, model.alpha_decode_ns, model.beta_decode_ns)
        rows.append(
            [
                f"`{preset}`",
                *(f"{x / 1e6:.4g}" for x in coefficients),
                str(model.prefill_token_cap),
                f"{model.decode_ns(200) / 1e6:.1f}",
                f"{hybrid[0]:.2f} s, {hybrid[1]:.1f} %",
            ]
        )
    header = ["preset", "α_p ms", "β_p ms/token", "α_d ms", "β_d ms/client", "cap", "decode of 200, ms"]
    return grid([*header, "hybrid (predicted)"], rows)


def gaps(cases: int) -> str:
    """Gaps to the bound on the ids' own queues, default preset: a control, two rules and the search."""
    scenarios = [default_scenario(scenario_id) for scenario_id in COLUMNS]
    rows = []
    for rival, text in tqdm(RIVALS, unit="rival"):
        names = [rival or best_tuned(scenario) for scenario in scenarios]
        found = [entry(name, scenario) for name, scenario in zip(names, scenarios, strict=True)]
        runs = [evaluate(item.policy, item.scenario, cases) for item in found]
        titled = [f"`{name}` ({title})" for name, title in zip(names, COLUMNS.values(), strict=True)]
        rows.append(
            [
                ", ".join(titled) if len(set(names)) > 1 else f"`{names[0]}`",
                text,
                *(interval(run.columns["gap_to_bound"], 100) for run in runs),
            ]
        )
    return grid(["policy", "what it is", *(f"{title}: gap, %" for title in COLUMNS.values())], rows)


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100, help="test cases (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/results.md and README.md")
    options = parser.parse_args()
    results = measure(options.cases)
    methods, worth = ablation(results), steps(results)
    shown = [name for name in methods.header if name != "smooth: util. %"]
    first = {name for name, _, _ in STEPS[:FIRST_STEPS]}
    text = "\n".join(
        [
            f"Test cases 0 to {options.cases - 1}, 1,319 requests, 200 clients; mean ± half of the 95 % interval. "
            "*blind*: sees no output length. *lengths*: is given the true ones.\n",
            methods.picked(shown).markdown(),
            "\nWhat each step is worth, paired over the cases; negative is faster:\n",
            worth.picked(
                [CHANGE, *COLUMNS.values()], lambda row: row[CHANGE] in first or row[CHANGE].startswith("hybrid: ")
            ).markdown(),
            "\nIn full: [data/methods.csv](data/methods.csv) and, under all presets of the band, "
            "[data/steps.csv](data/steps.csv).",
            "\nThe band of cost presets, on GSM8K:\n",
            band(results),
            "",
        ]
    )
    caption = (
        "Gap to the bound on the queues of the ids (the MIP's, longest first, with stealing), same cases; `random` "
        "has seed 0, `joint` orders the requests itself:\n\n"
    )
    texts = {
        ("measured", PAGE): text,
        ("gaps", PAGE): caption + gaps(options.cases) + "\n",
        ("paper", README): paper(results, options.cases),
    }
    if not options.write:
        print("\n".join(texts.values()))
        return
    for table in (methods, worth):
        with write_whole(DATA / f"{table.name}.csv") as temporary:
            temporary.write_text(table.csv(), encoding="utf-8")
    for (name, page), part in texts.items():
        with write_whole(page) as temporary:
            temporary.write_text(replaced(page.read_text(encoding="utf-8"), name, part), encoding="utf-8")


if __name__ == "__main__":
    main()
