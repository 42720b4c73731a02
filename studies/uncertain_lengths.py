"""Study: what uncertain output lengths cost, and what a stochastic model of them is worth in the offline step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmsched_env.evaluation import mean_estimate
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, RULE, label_at_right, new_figure, plain, save
from llmsched_env.studies.study import Found, Job, Options, Study
from llmsched_env.studies.tables import Table, stacked
from llmsched_env.studies.two_stage import (
    MEAN_VALUE,
    OPTIMUM,
    OPTIMUM_TAIL,
    SAMPLES,
    TAIL,
    WAIT_AND_SEE,
    sample_name,
    two_stage,
)
from llmsched_env.studies.uncertain_runs import (
    CERTAINTIES,
    ERRORS,
    EXPECTED_LOAD,
    EXPECTED_MAX,
    HYBRID,
    KNOWN,
    KNOWN_MIP,
    LARGEST_LOAD,
    MEANS,
    NOTHING,
    QUEUES,
    WEIGHTS,
    Gaps,
    by_error,
    by_estimate,
    by_knowledge,
    weight_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["STUDY", "draw", "jobs", "short", "tables"]

WORKLOADS = ("gsm8k", "gsm8k-smooth")
DRAWS, LARGE_DRAWS = 10, 3
"""Of the predictions of a case, up to 200 clients and beyond; a case counts once, with their mean."""

CAREFUL = weight_name(WEIGHTS[-1])
SLOPE = 0.1
"""Relative error up to which the price of a percent is measured."""

Values = NDArray[np.float64]

TITLES = {
    "fixed": "fixed queues",
    "stealing": "queues with stealing",
    "shared": "one shared queue",
    HYBRID: "hybrid (MIP, stealing)",
}
COLUMNS = {
    EXPECTED_LOAD: "largest load, expected",
    LARGEST_LOAD: "largest load, true",
    "fixed, prefill_first": "fixed queues, prefill-first",
    **{f"{name}, lagrangian": TITLES[name] for name in QUEUES},
}


def jobs(options: Options) -> list[Job]:
    """Whole cases by draw of the predictions, and small instances one by one."""
    found = []
    for clients in options.clients:
        sizes = {"clients": clients, "cases": options.cases_at(clients)}
        for name in WORKLOADS:
            where = f"{clients}/{name}"
            said = {"workload_name": name, **sizes}
            found.append(Job(f"knowledge/{where}", by_knowledge, said))
            for certainty in CERTAINTIES:
                for draw in range(_draws(clients)):
                    arguments = {**said, "certainty": certainty, "seed": options.seed * DRAWS + draw}
                    found.append(Job(f"estimate/{where}/{certainty}/{draw}", by_estimate, arguments))
            for error in ERRORS:
                for draw in range(_draws(clients, error)):
                    arguments = {**said, "error": error, "seed": options.seed * DRAWS + draw}
                    found.append(Job(f"error/{where}/{error}/{draw}", by_error, arguments))
    for name in WORKLOADS:
        for certainty in CERTAINTIES:
            for number in range(options.cases):
                small = {"workload_name": name, "certainty": certainty, "number": number, "seed": options.seed}
                found.append(Job(f"small/{name}/{certainty}/{number}", two_stage, small))
    return found


def _draws(clients: int, error: float = 1.0) -> int:
    """How many predictions of a case there are: without an error there is one."""
    if error == 0:
        return 1
    return DRAWS if clients <= 200 else LARGE_DRAWS


def _clients(found: Found) -> list[int]:
    return list(dict.fromkeys(int(name.split("/")[1]) for name in found if name.startswith("knowledge/")))


def _gaps(found: Found, clients: int, workload: str, certainty: str) -> dict[str, dict[str, Values]]:
    """Gaps in percent by method and column, one a case: means over the draws."""
    where = f"{clients}/{workload}"
    drawn: list[Gaps] = [found[f"estimate/{where}/{certainty}/{draw}"] for draw in range(_draws(clients))]
    known: Gaps = found[f"knowledge/{where}"]
    return {
        **{
            name: {column: 100 * np.mean([one[name][column] for one in drawn], axis=0) for column in drawn[0][name]}
            for name in drawn[0]
        },
        **{name: {column: 100 * np.array(gaps) for column, gaps in row.items()} for name, row in known.items()},
    }


def _errors(found: Found, clients: int, workload: str) -> dict[str, list[Values]]:
    """Gaps in percent by queues at each of `ERRORS`, one a case: means over the draws."""
    gaps: dict[str, list[Values]] = {name: [] for name in TITLES}
    for error in ERRORS:
        drawn = [found[f"error/{clients}/{workload}/{error}/{draw}"] for draw in range(_draws(clients, error))]
        for queues, values in gaps.items():
            values.append(100 * np.mean([one[queues] for one in drawn], axis=0))
    return gaps


def _text(values: Values, sign: str = "", digits: int = 2) -> str:
    """Mean and half of its 95 % interval."""
    mean, low, _ = mean_estimate(values)
    text = f"{mean:{sign}.{digits}f}"
    return text if np.isnan(low) else f"{text} ± {mean - low:.{digits}f}"


def tables(found: Found) -> list[Table]:
    """Assignments at the first size and then at all, the price of errors, and the small instances."""
    sizes = _clients(found)
    return [_method_table(found, sizes[0]), _size_table(found, sizes), _error_table(found, sizes), _small_table(found)]


def short(found: Mapping[str, Table]) -> Table:
    """Where certainty differs: what the estimates are worth with each kind of queue."""
    estimates = (MEANS, CAREFUL, EXPECTED_MAX, KNOWN, NOTHING)
    picked = found["estimates"].picked(
        ["lengths", "estimate", *(TITLES[queues] for queues in QUEUES)],
        lambda row: row["certainty"] == "unequal" and row["estimate"] in estimates,
    )
    title = "Gap to LB1 with estimates by the mean, %, and changes by other estimates, points; unequal certainty."
    return picked._replace(title=title)


def _method_table(found: Found, clients: int) -> Table:
    header = ["estimate", *COLUMNS.values()]
    parts = {
        workload: stacked(
            "",
            "",
            "certainty",
            {kind: (header, _method_rows(_gaps(found, clients, workload, kind))) for kind in CERTAINTIES},
        )
        for workload in WORKLOADS
    }
    title = (
        f"{clients} clients: gap to LB1 with estimates by the mean, %, and changes by other estimates, points; "
        "Lagrangian rule unless named. Largest loads: of fixed queues, above the average, %."
    )
    return stacked("estimates", title, "lengths", {name: (part.header, part.rows) for name, part in parts.items()})


def _method_rows(gaps: Mapping[str, Mapping[str, Values]]) -> list[list[str]]:
    usual = gaps[MEANS]
    rows = [[MEANS, *(_text(usual[column]) for column in COLUMNS)]]
    for name in [*(weight_name(k) for k in WEIGHTS[1:]), EXPECTED_MAX, KNOWN, KNOWN_MIP, NOTHING]:
        if name in gaps:
            row = gaps[name]
            rows.append([name, *(_text(row[x] - usual[x], "+") if x in row else "–" for x in COLUMNS)])
    return rows


def _size_table(found: Found, sizes: Sequence[int]) -> Table:
    header = ["clients", "lengths", "certainty"]
    shown = {"fixed": (EXPECTED_MAX, CAREFUL, KNOWN), "stealing": (CAREFUL, KNOWN), "shared": (CAREFUL, KNOWN)}
    for queues, names in shown.items():
        header += [f"{TITLES[queues]}: {name}" for name in (MEANS, *names)]
    rows = []
    for clients in sizes:
        for workload in WORKLOADS:
            for certainty in CERTAINTIES:
                gaps = _gaps(found, clients, workload, certainty)
                row = [str(clients), workload, certainty]
                for queues, names in shown.items():
                    column = f"{queues}, lagrangian"
                    usual = gaps[MEANS][column]
                    row += [_text(usual), *(_text(gaps[name][column] - usual, "+") for name in names)]
                rows.append(row)
    return Table("sizes", "All sizes: gap with estimates by the mean, %, and changes, points.", header, rows)


def _error_table(found: Found, sizes: Sequence[int]) -> Table:
    last = ERRORS.index(SLOPE)
    rows = []
    for clients in sizes:
        for workload in WORKLOADS:
            for queues, values in _errors(found, clients, workload).items():
                cost = (values[last] - values[0]) / (100 * SLOPE)
                rows.append(
                    [
                        str(clients),
                        workload,
                        TITLES[queues],
                        *(_text(gaps) for gaps in values),
                        _text(cost, "+", 3),
                    ]
                )
    header = ["clients", "lengths", "queues", *(f"{100 * error:g} %" for error in ERRORS), "points per %"]
    title = (
        f"Gap by the relative error of the estimates, %, and points for each percent of error up to {100 * SLOPE:g} %."
    )
    return Table("errors", title, header, rows)


def _small(found: Found, workload: str, certainty: str) -> list[dict[str, dict[str, float]]]:
    return [one for name, one in found.items() if name.startswith(f"small/{workload}/{certainty}/")]


def _small_table(found: Found) -> Table:
    kinds = [(workload, certainty) for workload in WORKLOADS for certainty in CERTAINTIES]
    small = [_small(found, *kind) for kind in kinds]
    names = [
        *(f"LPT, {weight_name(k)}" for k in WEIGHTS),
        MEAN_VALUE,
        EXPECTED_MAX,
        *(sample_name(size, tail) for tail in (1.0, TAIL) for size in SAMPLES),
        OPTIMUM_TAIL,
        WAIT_AND_SEE,
    ]
    rows = []
    for name in names:
        objective = "cvar" if name.endswith("CVaR") else "mean"
        above = np.array([[_above(one, name, "mean", OPTIMUM) for one in kind] for kind in small])
        tails = np.array([[_above(one, name, "cvar", OPTIMUM_TAIL) for one in kind] for kind in small])
        hidden = [
            [100 * (one[name][objective] / one[name]["in_sample"] - 1) for one in kind]
            for kind in small
            if "in_sample" in kind[0][name]
        ]
        rows.append(
            [
                name,
                *(_text(row) for row in above),
                _text(tails.mean(axis=0)),
                _text(np.mean(hidden, axis=0), "+") if hidden else "–",
            ]
        )
    header = ["assignment", *(f"{workload}, {certainty}" for workload, certainty in kinds), "CVaR", "beyond the sample"]
    title = (
        "Small instances, no stealing: expected largest load above that of the best assignment, %; its CVaR above the "
        "best CVaR, mean of the four columns; the objective above what it was in the sample, %."
    )
    return Table("small", title, header, rows)


def _above(values: Mapping[str, Mapping[str, float]], name: str, measure: str, best: str) -> float:
    """By how many percent an assignment is above the optimum of a measure."""
    return 100 * (values[name][measure] / values[best][measure] - 1)


def draw(found: Found, path: Path) -> Path:
    """Left: gaps by what is known and how requests are queued. Right: gaps against the relative error."""
    clients = _clients(found)[0]
    figure = new_figure(11.0, 7.2)
    panels = figure.subplots(len(WORKLOADS), 2, sharey="row", width_ratios=(1.35, 1.0))
    for (bars, curves), workload in zip(panels, WORKLOADS, strict=True):
        _draw_methods(bars, found, clients, workload)
        _draw_errors(curves, found, clients, workload)
        bars.set_ylabel(f"{workload}\ngap to LB1 (%), logarithmic", fontsize=9, color=INK)
    panels[0, 0].set_title(
        f"What is known of lengths: unequal certainty (◇ equal), {clients} clients", loc="left", fontsize=10, color=INK
    )
    panels[0, 1].set_title("Known up to a relative error", loc="left", fontsize=10, color=INK)
    panels[-1, 1].set_xlabel("relative error of the estimates (%)", fontsize=9, color=INK)
    taken = {
        queues: [
            float(np.mean(usual["fixed, lagrangian"] - usual[f"{queues}, lagrangian"]))
            for usual in (_gaps(found, clients, *kind)[MEANS] for kind in product(WORKLOADS, CERTAINTIES))
        ]
        for queues in ("stealing", "shared")
    }
    said = [f"{min(points):.1f} to {max(points):.1f}" for points in taken.values()]
    figure.suptitle(
        f"Stealing takes {said[0]} points off the gap of fixed queues, one shared queue {said[1]}",
        fontsize=11,
        color=INK,
    )
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8.5)
    return save(figure, path)


SHOWN = {
    NOTHING: ("nothing: round robin, FCFS", "#b0b7bc"),
    MEANS: ("LPT or order by the mean", LINES[0]),
    CAREFUL: (f"by {CAREFUL}", LINES[2]),
    EXPECTED_MAX: ("least expected maximum", LINES[1]),
    KNOWN: ("the true length", "#4a545b"),
}
"""Text of the legend and colour."""

CURVES = (LINES[3], LINES[4], "#b0416b", INK)


def _draw_methods(axes: Axes, found: Found, clients: int, workload: str) -> None:
    gaps = {certainty: _gaps(found, clients, workload, certainty) for certainty in CERTAINTIES}
    width = 0.16
    labels = []
    for row, (name, (text, colour)) in enumerate(SHOWN.items()):
        for place, queues in enumerate(QUEUES):
            column = f"{queues}, lagrangian"
            if column not in gaps["unequal"][name]:
                continue
            at = place + (row - (len(SHOWN) - 1) / 2) * width
            mean, low, high = mean_estimate(gaps["unequal"][name][column])
            axes.bar(at, mean, 0.92 * width, color=colour, label=text if place == 0 else None)
            if np.isfinite(low):
                axes.plot([at, at], [low, high], color=INK, linewidth=0.9)
            if name in (MEANS, CAREFUL, EXPECTED_MAX):
                other = mean_estimate(gaps["equal"][name][column]).mean
                axes.plot(at, other, "D", color=INK, markerfacecolor="white", markersize=4.5)
            labels.append((at, mean, INK if name == NOTHING else "white"))
    floor = 0.4 * min(mean for _, mean, _ in labels)
    axes.set_yscale("log")
    axes.set_ylim(floor, 2.0 * max(mean for _, mean, _ in labels))
    for at, mean, ink in labels:
        axes.text(at, 1.06 * floor, f"{mean:.{int(mean < 9.95)}f}", ha="center", va="bottom", fontsize=8, color=ink)
    axes.set_xticks(range(len(QUEUES)), [TITLES[queues] for queues in QUEUES])
    _percent(axes)


def _draw_errors(axes: Axes, found: Found, clients: int, workload: str) -> None:
    nothing = 100 * np.mean(found[f"knowledge/{clients}/{workload}"][NOTHING]["shared, lagrangian"])
    at = [100 * error for error in ERRORS]
    labels = [("nothing known: FCFS", FAINT, at[-1], float(nothing))]
    axes.axhline(nothing, color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
    for (queues, values), colour in zip(_errors(found, clients, workload).items(), CURVES, strict=True):
        mean, low, high = np.array([mean_estimate(gaps) for gaps in values]).T
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(at, mean, color=colour, linewidth=1.6, marker=".", markersize=6)
        labels.append((TITLES[queues], colour, at[-1], float(mean[-1])))
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 10, 20, 50, 100])
    _percent(axes)
    label_at_right(axes, labels, 2.6)


def _percent(axes: Axes) -> None:
    from matplotlib import ticker

    axes.yaxis.set_major_locator(ticker.LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=20))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    plain(axes)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


STUDY = Study(
    "uncertain_lengths",
    "What do uncertain output lengths cost, and what is a stochastic model of them worth?",
    jobs,
    tables,
    short,
    draw,
)
