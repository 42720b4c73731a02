"""Pictures of a study, as PNG files: timelines, gap to the bound by policy, the effect of the multiplier.

Each function writes one file, whole or not at all, and returns its path. They need matplotlib (the extra ``viz``),
use no global state of it, and open no window. Those of serving are in `serving_pictures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, MARKERS, RULE, new_figure, plain, save
from llmsched_env.evaluation.statistics import Estimate
from llmsched_env.simulator import Simulator
from llmsched_env.viewer.cells import COLOURS, colours, kinds_of, shares
from llmsched_env.viewer.extras import viz_module

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "Line", "gap_by_correlation", "gap_by_policy", "multiplier_effect", "timelines"]

BLIND, CLAIRVOYANT = "#d55e00", "#2b6ca3"

COLUMNS = 1000
"""Cells along the time axis of the whole timeline; about as many as the picture has pixels there."""

LONG_TAIL = 8.0
"""The gap axis turns logarithmic where the largest gap that it shows is that many times the median one."""

FAR = 8.0
"""Policies so many times the median gap away do not stretch the axis, where they are few."""

MOST_FAR = 0.25
"""As a share of the policies."""


def timelines(path: Path | str, simulators: Sequence[tuple[str, Simulator]], *, title: str = "") -> Path:
    """Gantt timelines of several finished episodes, one over the other on the same time axis.

    Each line of pixels is a client (or a group of them), coloured by what it did; at the right the end of the episode
    is repeated, magnified. The dashed line is the lower bound of the case, the solid one the makespan.

    Args:
        path: the PNG file.
        simulators: (name, recorded episode) from top to bottom.
        title: above the picture: what scenario and case it shows.

    Raises:
        ConfigError: no episode, or one that was not recorded.
        MissingExtraError: matplotlib is not installed.
        PathError: the file cannot be written.
    """
    if not simulators:
        raise ConfigError("timelines needs at least one (title, simulator) pair, and was given none.")
    ends_ns = [float(simulator.view.clock_ns) for _, simulator in simulators]
    if not min(ends_ns) > 0:
        raise ConfigError("timelines needs episodes that have begun: run the simulators first.")
    last_ns = max(ends_ns)
    magnified_ns = _tail(simulators, last_ns)
    figure = new_figure(10.0, (1.2 if title else 0.95) + 2.2 * len(simulators))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    grid = figure.subplots(len(simulators), 2, squeeze=False, sharex="col", width_ratios=[3.2, 1.0])
    for (name, simulator), (whole, tail) in zip(simulators, grid, strict=True):
        _timeline(whole, simulator, (0.0, 1.02 * last_ns), COLUMNS)
        _timeline(tail, simulator, magnified_ns, COLUMNS // 3)
        whole.set_title(name, loc="left", fontsize=10, fontweight="bold", color=INK, pad=20)
        whole.annotate(
            _numbers(simulator), (0, 1), (0, 7), "axes fraction", "offset points", fontsize=9, color=INK, va="bottom"
        )
        whole.locator_params(axis="y", nbins=5)
        tail.locator_params(axis="y", nbins=5)
        whole.set_ylabel("client", fontsize=9, color=INK)
        whole.axvspan(*(t / 1e9 for t in magnified_ns), facecolor="none", edgecolor=INK, linewidth=0.6, linestyle=":")
        tail.set_yticklabels([])
        _mark(whole, simulator, labelled=False)
        _mark(tail, simulator, labelled=True)
    grid[0][1].set_title("the end, magnified", loc="left", fontsize=9, color=FAINT, pad=20)
    for axes in grid[-1]:
        axes.set_xlabel("time (s)", fontsize=9, color=INK)
    _legend_of_kinds(figure, max((kinds_of(simulator) for _, simulator in simulators), key=len))
    return save(figure, path)


def _tail(simulators: Sequence[tuple[str, Simulator]], last_ns: float) -> tuple[float, float]:
    """The stretch of time to magnify: the last tenth before the earliest end or bound, up to the latest end."""
    earliest = min(min(float(s.view.clock_ns), float(s.problem.bound_ns)) for _, s in simulators)
    return max(0.0, min(earliest, last_ns) - 0.08 * last_ns), 1.01 * last_ns


def _timeline(axes: Axes, simulator: Simulator, window_ns: tuple[float, float], columns: int) -> None:
    num_clients = simulator.problem.num_clients
    rows = min(num_clients, 400)
    cells = colours(shares(simulator, np.linspace(*window_ns, columns + 1), rows))
    begin, end = (t / 1e9 for t in window_ns)
    axes.imshow(
        cells, extent=(begin, end, num_clients, 0), aspect="auto", interpolation="nearest", interpolation_stage="rgba"
    )
    axes.set_xlim(begin, end)
    plain(axes)


def _numbers(simulator: Simulator) -> str:
    makespan_ns, num_clients = int(simulator.view.clock_ns), simulator.problem.num_clients
    utilization = float(simulator.totals.busy_client_ns) / (num_clients * makespan_ns)
    return (
        f"makespan {makespan_ns / 1e9:.2f} s   utilization {100 * utilization:.1f} %   "
        f"{int(simulator.view.prefills):,} prefills   {int(simulator.view.decodes):,} decodes"
    )


def _mark(axes: Axes, simulator: Simulator, *, labelled: bool) -> None:
    """Draw the makespan and the lower bound as lines, with their values above them if ``labelled``."""
    end_s, bound_s = float(simulator.view.clock_ns) / 1e9, simulator.problem.bound_ns / 1e9
    above = axes.get_xaxis_transform()
    first, last = axes.get_xlim()
    axes.axvline(end_s, color=INK, linewidth=1.2)
    axes.plot([end_s], [1.0], marker="v", markersize=5, color=INK, transform=above, clip_on=False)
    axes.axvline(bound_s, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_xlim(first, last)
    if not labelled:
        return
    style: dict[str, Any] = {"va": "bottom", "fontsize": 7.5, "color": INK, "transform": above}
    bound_shown = first < bound_s < last
    if bound_shown:
        axes.text(bound_s, 1.03, f"{bound_s:.1f} s", ha="right", **style)
    late = end_s > 0.7 * last + 0.3 * first
    apart = not bound_shown or end_s - bound_s > 0.3 * (last - first)  # or one value would be written over the other
    axes.text(end_s, 1.03, f"{end_s:.1f} s", ha="right" if late and apart else "left", **style)


def _legend_of_kinds(figure: Figure, kinds: Sequence[str]) -> None:
    patches = viz_module("matplotlib.patches", "matplotlib", "Drawing a picture")
    lines = viz_module("matplotlib.lines", "matplotlib", "Drawing a picture")
    shown: list[Any] = [
        patches.Patch(facecolor=np.array(COLOURS[kind]) / 255, edgecolor=FAINT, linewidth=0.5, label=kind)
        for kind in kinds
    ]
    shown.append(lines.Line2D([], [], color=INK, linewidth=1.2, marker="v", markersize=4, label="makespan"))
    shown.append(lines.Line2D([], [], color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="lower bound"))
    figure.legend(handles=shown, loc="outside lower center", ncols=len(shown), frameon=False, fontsize=9)


def gap_by_policy(path: Path | str, rows: Sequence[Any], *, title: str = "Gap to the lower bound") -> Path:
    """Mean gap to the bound of each policy with its confidence interval, best at the top.

    Filled marks are blind policies; hollow ones are clairvoyant, which know the output lengths. A few policies that are
    far behind do not stretch the axis: an arrow stands at its end, and their gap is written as that of all others. With
    many of them it is logarithmic.

    Args:
        path: the PNG file.
        rows: objects or mappings with ``name``, ``kind`` ("method", "rule", "planner", "agent"), ``clairvoyant``, and
            ``mean``, ``lo``, ``hi``: the gap as fractions.
        title: above the picture.

    Raises:
        ConfigError: no rows, an unknown kind, or a gap that is not finite.
        MissingExtraError: matplotlib is not installed.
        PathError: the file cannot be written.
    """
    lines = sorted((_GapRow.of(row) for row in rows), key=lambda row: row.mean)
    if not lines:
        raise ConfigError("gap_by_policy needs at least one row, and was given none.")
    figure = new_figure(8.0, 1.5 + 0.235 * len(lines))
    axes = figure.subplots()
    percent = 100 * np.array([(row.lo, row.mean, row.hi) for row in lines])  # (policies, 3)
    near = _near(percent)
    logarithmic = _gap_axis(axes, percent[near])
    floor, end = axes.get_xlim()
    for y, (row, shown, (lo, mean, hi)) in enumerate(zip(lines, near, percent, strict=True)):
        colour = CLAIRVOYANT if row.clairvoyant else BLIND
        face = "white" if row.clairvoyant else colour
        mark, x = (MARKERS[row.kind], mean) if shown else (">", end)
        if shown:
            axes.plot([max(lo, floor), hi], [y, y], color=colour, linewidth=2.0, alpha=0.45, solid_capstyle="butt")
        axes.plot([x], [y], mark, color=colour, markerfacecolor=face, markersize=5.5, clip_on=False)
        axes.text(
            1.02,
            y,
            f"{mean:.{2 if mean < 10 else 1}f} %",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks(range(len(lines)), [row.name for row in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    plain(axes)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "makespan / lower bound − 1 (%), mean and 95 % interval"
        + (", logarithmic axis" if logarithmic else "")
        + ("" if near.all() else "; arrows: off the axis"),
        fontsize=9,
        color=INK,
    )
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    _legend_of_policies(figure, lines)
    return save(figure, path)


@dataclass(frozen=True)
class _GapRow:
    name: str
    kind: str
    clairvoyant: bool
    mean: float
    lo: float
    hi: float

    @classmethod
    def of(cls, row: Any) -> _GapRow:
        fields = cls.__dataclass_fields__
        one = cls(**{name: row[name] if isinstance(row, Mapping) else getattr(row, name) for name in fields})
        if one.kind not in MARKERS:
            raise ConfigError(f"policy {one.name!r} has kind {one.kind!r}: it is one of {', '.join(MARKERS)}.")
        if not np.isfinite([one.mean, one.lo, one.hi]).all():
            raise ConfigError(f"policy {one.name!r} has a gap that is not finite: {one.mean} [{one.lo}, {one.hi}].")
        return one


def _near(percent: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(policies,) whether the axis is to reach them, of (policies, 3) percentages."""
    near = percent[:, 1] <= FAR * float(np.median(percent[:, 1]))
    few = len(percent) >= 4 and (~near).mean() <= MOST_FAR and percent[:, 1].min() >= 0
    return near if few else np.ones(len(percent), np.bool_)


def _gap_axis(axes: Axes, percent: NDArray[np.float64]) -> bool:
    """Set the limits from (policies, 3) percentages; whether the axis is logarithmic."""
    least, most = float(percent[:, 1].min()), float(percent.max())
    logarithmic = least > 0 and most > LONG_TAIL * float(np.median(percent[:, 1]))
    if not logarithmic:
        low = 0.0 if least >= 0 else 1.05 * float(percent.min())  # a true gap is not negative, an interval may be
        axes.set_xlim(low, 1.05 * most if most > 0 else 1.0)
        return False
    ticker = viz_module("matplotlib.ticker", "matplotlib", "Drawing a picture")
    axes.set_xscale("log")
    axes.set_xlim(0.8 * max(float(percent[:, 0].min()), 0.5 * least), 1.25 * most)
    axes.xaxis.set_major_locator(ticker.LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=20))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    return True


def _legend_of_policies(figure: Figure, rows: Sequence[_GapRow]) -> None:
    lines = viz_module("matplotlib.lines", "matplotlib", "Drawing a picture")
    present = [(kind, seen) for kind in MARKERS for seen in (False, True) if (kind, seen) in _present(rows)]
    shown = []
    for kind, clairvoyant in present:
        colour = CLAIRVOYANT if clairvoyant else BLIND
        face = "white" if clairvoyant else colour
        label = f"{kind}, {'knows lengths' if clairvoyant else 'blind'}"
        shown.append(
            lines.Line2D([], [], linestyle="", marker=MARKERS[kind], color=colour, markerfacecolor=face, label=label)
        )
    figure.legend(handles=shown, loc="outside lower center", ncols=min(4, len(shown)), frameon=False, fontsize=8)


def _present(rows: Sequence[_GapRow]) -> set[tuple[str, bool]]:
    return {(row.kind, row.clairvoyant) for row in rows}


@dataclass(frozen=True)
class Curve:
    """One line of :func:`multiplier_effect`.

    Attributes:
        name: for the legend.
        multipliers: (points,) values of λ, above 0.
        mean: (points,) gaps as fractions, or makespans in seconds.
        lo: (points,) lower end of the confidence interval.
        hi: (points,) upper end.
    """

    name: str
    multipliers: ArrayLike
    mean: ArrayLike
    lo: ArrayLike
    hi: ArrayLike


def multiplier_effect(
    path: Path | str, series: Sequence[Curve], *, value: str = "gap", title: str = "The effect of the multiplier λ"
) -> Path:
    """What a policy achieves against its multiplier λ, on a logarithmic axis, with confidence bands.

    Args:
        path: the PNG file.
        series: one or more curves.
        value: "gap" (fractions, shown in percent) or "makespan" (seconds).
        title: above the picture.

    Raises:
        ConfigError: no curve, an unknown value, or a multiplier that is not above 0.
        MissingExtraError: matplotlib is not installed.
        PathError: the file cannot be written.
    """
    if not series or value not in ("gap", "makespan"):
        raise ConfigError(
            f"multiplier_effect was given {len(series)} curves of {value!r}: it draws 'gap' or 'makespan'."
        )
    factor, label = (100.0, "gap to the lower bound (%)") if value == "gap" else (1.0, "makespan (s)")
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    for i, curve in enumerate(series):
        at = np.asarray(curve.multipliers, np.float64)
        if not at.size or not at.min() > 0:
            raise ConfigError(f"curve {curve.name!r} has a multiplier that is not above 0: the axis is logarithmic.")
        lo, mean, hi = (factor * np.asarray(y, np.float64)[np.argsort(at)] for y in (curve.lo, curve.mean, curve.hi))
        at, colour = np.sort(at), LINES[i % len(LINES)]
        axes.fill_between(at, lo, hi, color=colour, alpha=0.18, linewidth=0)
        axes.plot(at, mean, color=colour, linewidth=1.6, marker=".", markersize=5, label=curve.name)
        best = int(np.argmin(mean))
        axes.plot(at[best], mean[best], marker="o", markersize=8, markerfacecolor="none", color=colour)
    axes.set_xscale("log")
    ticker = viz_module("matplotlib.ticker", "matplotlib", "Drawing a picture")
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    if value == "gap" and axes.get_ylim()[0] < 0 <= min(float(np.min(curve.mean)) for curve in series):
        axes.set_ylim(bottom=0.0)
    axes.axvline(1.0, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.annotate(
        "λ = 1: the rule as it is derived", (1.0, 1.0), (3, -2), axes.get_xaxis_transform(), "offset points",
        fontsize=8, color=FAINT, va="top",
    )  # fmt: skip
    plain(axes)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        "multiplier λ on the price of a prefill; means with 95 % bands, the best of each ringed", fontsize=9, color=INK
    )
    axes.set_ylabel(label, fontsize=9, color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(facecolor="white", edgecolor="none", framealpha=0.9, fontsize=9)
    return save(figure, path)


@dataclass(frozen=True)
class Line:
    """One line of :func:`gap_by_correlation`.

    Attributes:
        name: for the legend.
        correlations: (points,) on the horizontal axis.
        gaps: (points,) gaps as fractions.
    """

    name: str
    correlations: Sequence[float]
    gaps: Sequence[Estimate]


def gap_by_correlation(
    path: Path | str, panels: Mapping[str, Sequence[Line]], reference: tuple[str, Estimate], *, title: str
) -> Path:
    """Mean gap to the bound against the quality of a prediction, one panel beside the other on one gap axis.

    Args:
        path: the PNG file.
        panels: what the horizontal axis of each panel is -> its lines.
        reference: name and gap of what knows nothing, drawn across.
        title: above the picture.

    Raises:
        ConfigError: no panel.
        MissingExtraError: matplotlib is not installed.
        PathError: the file cannot be written.
    """
    if not panels:
        raise ConfigError("gap_by_correlation needs at least one panel, and was given none.")
    figure = new_figure(1.2 + 4.2 * len(panels), 4.0)
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    name, (mean, low, high) = reference[0], (100 * value for value in reference[1])
    for axes, (label, lines) in zip(row, panels.items(), strict=True):
        axes.axhspan(low, high, color=INK, alpha=0.12, linewidth=0)
        axes.axhline(mean, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=name)
        for i, line in enumerate(lines):
            lo, middle, hi = 100 * np.array([(gap.low, gap.mean, gap.high) for gap in line.gaps]).T
            colour = LINES[i % len(LINES)]
            axes.fill_between(line.correlations, lo, hi, color=colour, alpha=0.15, linewidth=0)
            axes.plot(line.correlations, middle, color=colour, linewidth=1.6, marker=".", markersize=5, label=line.name)
        plain(axes)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel(label, fontsize=9, color=INK)
    row[0].set_ylabel("gap to the lower bound (%), 95 % bands", fontsize=9, color=INK)
    row[0].set_title(title, loc="left", fontsize=11, color=INK)
    handles, names = row[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    return save(figure, path)
