"""Does the rule's comparison of two costs say 'prefill' exactly when a prefill is what the best schedule needs?

**Small cases, exactly.** 20 requests on 4 clients and one shared queue, gamma lengths on a grid of mean and spread, at
both ends of the band of cost presets. At each choice of a rule, `llmsched_env.offline.QueueOptimum` has the shortest
makespan after a prefill now and after a decode now; the shorter one is right, and where they are equal, either is. What
a wrong one costs is the difference, and these sum up to the rule's distance from the optimum.

**Large cases, one step.** At each choice of a rule, take the other action once and go on by the rule: is the makespan
shorter, the same, or longer? What is gained by taking the better one each time? And on the way of a beam search's plan,
which is nearer to the optimum: does the rule say the same?

``Options.cases`` is the number of cases in each cell of the grid. ``Options.clients`` says the sizes of the second
part, and does not fit the first, which is small whatever it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import cost_model
from llmsched_env.evaluation import Estimate, mean_estimate
from llmsched_env.evaluation.drawing import FAINT, INK, new_figure, plain, save
from llmsched_env.studies.choices import (
    BETTER,
    CLIENTS,
    DECODE,
    EVEN,
    LEVEL,
    LOOKAHEAD_TUNED,
    PREFILL,
    REQUESTS,
    THRESHOLD_TUNED,
    TUNED,
    USUAL,
    exact,
    one_step,
)
from llmsched_env.studies.study import Found, Job, Options, Study
from llmsched_env.studies.tables import Rows, Table
from llmsched_env.workload import GammaWorkload

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["STUDY"]

MEANS = (4, 16, 64, 256)
"""Mean output tokens."""

SPREADS = (0.125, 0.25, 0.5, 1.0)
"""Standard deviation over mean of the output; 0.56 in the paper's case."""

COSTS = ("llama-65b-paper", "llama-65b-paper-low")
ORDERS = ("longest_first", "fcfs")
USUAL_PROMPT = GammaWorkload().prompt_mean_tokens
LONG_PROMPT = 1024.0
"""Mean prompt of one more grid: a prefill then holds about two, within the cap of 2048 tokens."""

GRIDS = (
    *((order, cost, USUAL_PROMPT) for order in ORDERS for cost in COSTS),
    (ORDERS[0], COSTS[0], LONG_PROMPT),
)
"""Order, cost preset, mean prompt tokens."""

SHOWN = (USUAL, TUNED, THRESHOLD_TUNED)
"""Rules of the table by cells; the picture has the first two."""

WORKLOADS = ("gsm8k", "gsm8k-smooth")


def jobs(options: Options) -> list[Job]:
    """A job for each cell, and for each set of lengths, size and order."""
    cells = [
        Job(
            f"exact {order} {cost} {prompt:g} {mean} {spread}",
            exact,
            {
                "order": order,
                "cost": cost,
                "prompt_mean_tokens": prompt,
                "output_mean_tokens": float(mean),
                "spread": spread,
                "cases": options.cases,
            },
        )
        for order, cost, prompt in GRIDS
        for mean in MEANS
        for spread in SPREADS
    ]
    sizes = [
        Job(
            f"one step {workload} {clients} {order}",
            one_step,
            {"workload": workload, "clients": clients, "order": order, "cases": options.cases_at(clients)},
        )
        for workload in WORKLOADS
        for clients in options.clients
        for order in ORDERS
    ]
    return [*cells, *sizes]


Results = list[dict[str, Any]]


def _cells(found: Found, **wanted: Any) -> Results:
    cells = [result for result in found.values() if "cell" in result]
    return [result for result in cells if all(result["cell"][key] == value for key, value in wanted.items())]


def _sum(results: Results, rule: str, key: str) -> NDArray[np.float64]:
    """(cases, ...): over cells, for each case number, of which all cells draw from the same chance."""
    total: NDArray[np.float64] = np.sum([result["rules"][rule][key] for result in results], axis=0, dtype=np.float64)
    return total


def _mean(results: Results, rule: str, key: str) -> NDArray[np.float64]:
    return _sum(results, rule, key) / len(results)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Estimate:
    """Mean over cases of a share in %; cases without any of the whole are left out."""
    there = whole > 0
    return mean_estimate(100.0 * part[there] / whole[there]) if there.any() else Estimate(*[float("nan")] * 3)


def _said(estimate: Estimate, digits: int = 1) -> str:
    if np.isnan(estimate.mean):
        return "–"
    half = "" if np.isnan(estimate.low) else f" ± {estimate.high - estimate.mean:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{half}"


def _pair(first: float, second: float, digits: int = 1) -> str:
    return f"{first:.{digits}f} / {second:.{digits}f}"


SMALL = f"{REQUESTS} requests, {CLIENTS} clients, one queue"
LATER = "prefills later than need be, % of them"


def tables(found: Found) -> list[Table]:
    """What is right and what was said, what wrong choices cost, where, and one step at full size."""
    return [
        Table(
            "choices",
            "the rule's own choices, in %. Recall: where only one action is right, how often the rule takes it.",
            *_confusion(found),
        ),
        Table("costs", "what wrong choices cost, in % of the shortest makespan.", *_costs(found)),
        Table("cells", "makespan above the shortest one, %, by mean output tokens.", *_by_cell(found)),
        Table(
            "full_size",
            "full size: the other action once, in % of the choices; what is saved, in % of the makespan; the rule "
            "along the beam search's plan.",
            *_full_size(found),
        ),
    ]


SHORT = (USUAL, TUNED, LOOKAHEAD_TUNED, THRESHOLD_TUNED, "prefill-first")


def short(found: Mapping[str, Table]) -> Table:
    """What wrong choices cost the rules that differ most."""
    columns = ["order", "rule", "all wrong choices", "prefills too late", "prefills too early"]
    picked = found["costs"].picked(columns, lambda row: row["rule"] in SHORT)
    means = [[*row[:3], *(cell.partition(" ± ")[0] for cell in row[3:])] for row in picked.rows]
    return picked._replace(title=f"What wrong choices cost, in % of the shortest makespan ({SMALL}).", rows=means)


def _by_order(found: Found) -> Iterator[tuple[str, str, Results]]:
    """Order, rule and cells, of the grids with usual prompts."""
    for order in ORDERS:
        results = _cells(found, order=order, prompt=USUAL_PROMPT)
        for rule in results[0]["rules"] if results else ():
            yield order, rule, results


def _confusion(found: Found) -> Rows:
    rows = []
    for order, rule, results in _by_order(found):
        counts, best_way = _sum(results, rule, "counts"), _sum(results, rule, "best_way")
        shares = 100.0 * counts.sum(axis=0) / max(1.0, counts.sum())
        recalls = [
            _share(count[:, right, right], count[:, right].sum(axis=1))
            for count in (counts, best_way)
            for right in (PREFILL, DECODE)
        ]
        rows.append(
            [
                order.replace("_", " "),
                rule,
                *(_pair(*shares[right]) for right in (PREFILL, DECODE, LEVEL)),
                *(_said(recall) for recall in recalls[:2]),
                _pair(recalls[2].mean, recalls[3].mean),
            ]
        )
    header = [
        "order",
        "rule",
        "prefill is right: said prefill / decode",
        "decode is right: said prefill / decode",
        "level: said prefill / decode",
        "recall of prefills",
        "recall of decodes",
        "both recalls on a best way",
    ]
    return header, rows


def _costs(found: Found) -> Rows:
    rows = []
    for order, rule, results in _by_order(found):
        loss, prefills = _mean(results, rule, "loss"), _sum(results, rule, "prefills")
        rows.append(
            [
                order.replace("_", " "),
                rule,
                _said(mean_estimate(loss.sum(axis=1)), 2),
                *(_said(mean_estimate(loss[:, said]), 2) for said in (DECODE, PREFILL)),
                _said(mean_estimate(_mean(results, rule, "first")), 2),
                _said(_share(prefills[:, 1], prefills[:, 0])),
            ]
        )
    header = [
        "order",
        "rule",
        "all wrong choices",
        "prefills too late",
        "prefills too early",
        "the first wrong choice",
        LATER,
    ]
    return header, rows


def _by_cell(found: Found) -> Rows:
    rows = []
    for order, cost, prompt in GRIDS:
        for rule in SHOWN:
            cells = [_cells(found, order=order, cost=cost, prompt=prompt, mean=float(mean)) for mean in MEANS]
            losses = [_mean(results, rule, "loss").sum(axis=1) for results in cells if results]
            if losses:
                prompts = f"{prompt:.0f}"
                said = [_said(mean_estimate(loss)) for loss in losses]
                rows.append([order.replace("_", " "), cost, f"{_ratio(cost):.2f}", prompts, rule, *said])
    means = [str(mean) for mean in MEANS if _cells(found, mean=float(mean))]
    return ["order", "costs", "α_p / α_d", "mean prompt", "rule", *means], rows


def _ratio(cost: str) -> float:
    return cost_model(cost).alpha_prefill_ns / cost_model(cost).alpha_decode_ns


def _full_size(found: Found) -> Rows:
    rows = []
    for result in found.values():
        if "size" not in result:
            continue
        size = result["size"]
        for rule, measured in result["rules"].items():
            counts, plan, prefills = (np.array(measured[key], np.float64) for key in ("counts", "plan", "prefills"))
            choices = counts.sum(axis=(1, 2))
            rows.append(
                [
                    size["workload"],
                    str(size["clients"]),
                    size["order"].replace("_", " "),
                    rule if rule == USUAL else f"λ = {result['multiplier']:g}, tuned",
                    _said(_share(counts[:, 1, BETTER], choices)),
                    _said(_share(counts[:, 0, BETTER], choices)),
                    _said(_share(counts[:, :, EVEN].sum(axis=1), choices)),
                    *(_said(mean_estimate(measured[key]), 2) for key in ("single", "rollout", "planned")),
                    *(_said(_share(plan[:, does, does], plan[:, does].sum(axis=1))) for does in range(2)),
                    _said(_share(prefills[:, 1], prefills[:, 0])),
                ]
            )
    header = [
        "lengths",
        "clients",
        "order",
        "rule",
        "said decode, a prefill is better",
        "said prefill, a decode is better",
        "level",
        "saved by the best single change",
        "by the better one each time (`rollout`)",
        "by a plan (`beam`)",
        "said prefill where the plan has one, %",
        "said decode where the plan has one, %",
        LATER,
    ]
    return header, rows


PANELS = (
    ("prefill too late, % of the choices", "Oranges"),
    ("prefill too early, % of the choices", "Blues"),
    ("makespan above the optimum, %", "Purples"),
)


def draw(found: Found, path: Path) -> Path:
    """Heat maps over the grid, one shared queue, longest first: prefills too late, too early, and the loss."""
    shown = {rule: _maps(found, rule) for rule in SHOWN[:2]}
    figure = new_figure(13.0, 9.0)
    figure.suptitle(
        f"Where the Lagrangian rule is wrong: {REQUESTS} requests, {CLIENTS} clients, one queue, longest first",
        color=INK,
        fontsize=12,
    )
    all_axes = figure.subplots(len(PANELS), len(shown), squeeze=False)
    for row, (title, colours) in enumerate(PANELS):
        top = max(float(np.nanmax(maps[row], initial=0.0)) for maps in shown.values()) or 1.0
        for axes, (rule, maps) in zip(all_axes[row], shown.items(), strict=True):
            values = maps[row]
            axes.imshow(values, cmap=colours, vmin=0.0, vmax=1.15 * top, aspect="auto")
            for (y, x), value in np.ndenumerate(values):
                text = "–" if np.isnan(value) else f"{value:.0f}" if row < 2 or value >= 10 else f"{value:.1f}"
                dark = value > 0.7 * top
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
            axes.set_title(f"{rule}: {title}", fontsize=10, color=INK, loc="left")
            _label(axes)
    return save(figure, path)


def _label(axes: Axes) -> None:
    plain(axes)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(SPREADS)), [f"{spread:g}" for spread in SPREADS])
    axes.set_ylabel("sd / mean of the output", fontsize=8, color=FAINT)
    axes.set_xticks(range(len(MEANS) * len(COSTS)), [str(mean) for _ in COSTS for mean in MEANS])
    for group, cost in enumerate(COSTS):
        left = group * len(MEANS) - 0.5
        if group:
            axes.axvline(left, color="white", linewidth=3)
        middle = left + len(MEANS) / 2
        label = f"mean output tokens, α_p / α_d = {_ratio(cost):.2f}"
        axes.annotate(
            label, (middle, -0.14), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8, color=FAINT
        )


def _maps(found: Found, rule: str) -> NDArray[np.float64]:
    """(3, spreads, costs and means): what the panels show; NaN where there is nothing."""
    maps = np.full((len(PANELS), len(SPREADS), len(COSTS) * len(MEANS)), np.nan)
    for result in _cells(found, order=ORDERS[0], prompt=USUAL_PROMPT):
        cell = result["cell"]
        place = SPREADS.index(cell["spread"]), COSTS.index(cell["cost"]) * len(MEANS) + MEANS.index(int(cell["mean"]))
        counts = _sum([result], rule, "counts").sum(axis=0)
        if counts.sum():
            maps[0][place] = 100.0 * counts[PREFILL, 1] / counts.sum()
            maps[1][place] = 100.0 * counts[DECODE, 0] / counts.sum()
        maps[2][place] = _mean([result], rule, "loss").sum(axis=1).mean()
    return maps


STUDY = Study(
    "cost_check",
    "Does the Lagrangian rule say prefill exactly when a prefill shortens the optimum?",
    jobs,
    tables,
    short,
    draw,
)
