"""Pictures of serving, as PNG files: violations against requests/s, and how TTFT and TPOT are distributed.

As in `pictures`, each function writes one file, whole or not at all, and returns its path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.errors import ConfigError
from llmsched_env.evaluation.drawing import (
    FAINT,
    INK,
    LINES,
    MARKERS,
    RULE,
    label_at_right,
    new_figure,
    plain,
    save,
)
from llmsched_env.viewer.extras import viz_module

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LoadCurve", "goodput_against_load", "latency_distributions"]

COLOURS = (*LINES[:5], INK)
"""Of the curves that are told apart; the others are a grey band, so no colour is."""

STYLES = tuple((colour, line) for line in ("-", "--") for colour in COLOURS)
"""A dozen curves can be told apart."""

OTHERS = "#dde1e4"

LEAST_PERCENT = 0.01
"""Violations below are drawn there: a logarithm has no 0."""

CORNERS = 4000
"""Points that the line of a distribution is drawn with, at most."""


@dataclass(frozen=True)
class LoadCurve:
    """One policy in :func:`goodput_against_load`.

    Attributes:
        name: for its label.
        loads: (points,) rates of arrival as shares of the capacity, above 0; NaN, where ``requests_per_s`` is given,
            for a cost model that has none.
        mean: (points,) goodput as fractions: means over cases.
        low: (points,) lower end of the confidence interval; NaN where there is none.
        high: (points,) upper end.
        kind: "method", "rule", "planner" or "agent".
        worst_token_gap_s: (points,) the longest time between two tokens, in seconds, above 0; ``None`` to leave it out.
        requests_per_s: (points,) the rates themselves, above 0; ``None`` to draw against the load.
    """

    name: str
    loads: ArrayLike
    mean: ArrayLike
    low: ArrayLike
    high: ArrayLike
    kind: str
    worst_token_gap_s: ArrayLike | None = None
    requests_per_s: ArrayLike | None = None


@dataclass(frozen=True)
class _Line:
    """A `LoadCurve` that has been checked, in order of what it is drawn against, as violations in percent."""

    name: str
    marker: str
    x: NDArray[np.float64]
    loads: NDArray[np.float64]
    percent: NDArray[np.float64]  # (3, points): low, mean, high
    gaps_s: NDArray[np.float64] | None

    @classmethod
    def of(cls, curve: LoadCurve) -> _Line:
        if curve.kind not in MARKERS:
            raise ConfigError(f"curve {curve.name!r} has kind {curve.kind!r}: it is one of {', '.join(MARKERS)}.")
        gaps = curve.mean if curve.worst_token_gap_s is None else curve.worst_token_gap_s
        x = curve.loads if curve.requests_per_s is None else curve.requests_per_s
        given = (x, curve.low, curve.mean, curve.high, gaps, curve.loads)
        columns = [np.asarray(column, np.float64) for column in given]
        sizes = [column.shape for column in columns]
        if columns[0].ndim != 1 or not columns[0].size or len(set(sizes)) > 1:
            raise ConfigError(
                f"curve {curve.name!r} has columns of shapes {', '.join(map(str, sizes))}: "
                "give one value a load, and at least one load."
            )
        if not (np.isfinite(columns[0]).all() and columns[0].min() > 0 and np.isfinite(columns[2]).all()):
            what = "loads" if curve.requests_per_s is None else "rates"
            raise ConfigError(f"curve {curve.name!r} needs {what} above 0 and means that are finite.")
        if curve.worst_token_gap_s is not None and not (np.isfinite(columns[4]).all() and columns[4].min() > 0):
            raise ConfigError(
                f"curve {curve.name!r} has a token gap that is not a time above 0 s: their axis is logarithmic."
            )
        x, low, mean, high, gaps_s, loads = (column[np.argsort(columns[0])] for column in columns)
        percent = 100 * (1 - np.stack([high, mean, low]))
        marker = MARKERS[curve.kind]
        return cls(curve.name, marker, x, loads, percent, None if curve.worst_token_gap_s is None else gaps_s)

    def at(self, x: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values at other places, NaN beyond its ends."""
        return np.interp(x, self.x, values, np.nan, np.nan)


def goodput_against_load(
    path: Path | str,
    curves: Sequence[LoadCurve],
    *,
    limits_s: tuple[float, float],
    named: Sequence[str] = (),
    best: int = 4,
    title: str = "SLO violations against the rate of requests",
) -> Path:
    """The share of requests that violate an SLO, 1 - goodput, against requests/s, with the load above.

    The axis of violations is logarithmic: between goodputs of 99 and 99.9 % lies a factor of ten. Below it, the worst
    token gap if it is given. The curves that are named and the best of the others have a colour and a label; the named
    and the best one have a 95 % band. The rest are one grey band from the least to the most. The best are those with
    the highest mean goodput over the rates that all curves reach.

    Args:
        path: the PNG file.
        curves: one a policy.
        limits_s: (TTFT, TPOT) limits in seconds, for the caption.
        named: names of curves that are to be seen whatever their rank, at most 12.
        best: how many others; fewer where there would be more than 12.
        title: above the picture.

    Raises:
        ConfigError: no curve, a name that is none's or too many of them, an unknown kind, columns that do not fit
            together, a value that cannot be drawn, or rates of some curves only.
        MissingExtraError: matplotlib is not installed.
        PathError: the file cannot be written.
    """
    lines = [_Line.of(curve) for curve in curves]
    if not lines:
        raise ConfigError("goodput_against_load needs at least one curve, and was given none.")
    by_rate = {curve.requests_per_s is not None for curve in curves}
    if len(by_rate) > 1:
        raise ConfigError("some curves have requests_per_s and some have not: they are drawn against one axis.")
    shown = _chosen(lines, named, best)
    style = dict(zip([line.name for line in shown], STYLES, strict=False))
    rest = [line for line in lines if line.name not in style]
    with_gaps = any(line.gaps_s is not None for line in lines)
    heights = [3.2, 2.0] if with_gaps else [3.2]
    figure = new_figure(7.6, 1.3 + sum(heights))
    panels = figure.subplots(len(heights), squeeze=False, sharex=True, height_ratios=heights)[:, 0]

    violations = panels[0]
    means = np.concatenate([line.percent[1] for line in lines])
    floor = max(LEAST_PERCENT, 0.6 * float(means[means > 0].min(initial=100.0)))
    _band(violations, rest, [np.maximum(line.percent[1], floor) for line in rest])
    for line in reversed(shown):  # the best on top
        low, mean, high = np.maximum(line.percent, floor)
        colour, dashes = style[line.name]
        if line.name in named or line is shown[0]:  # more bands could not be told apart
            violations.fill_between(line.x, low, high, color=colour, alpha=0.12, linewidth=0)
        violations.plot(
            line.x, mean, dashes, color=colour, linewidth=1.6, marker=line.marker, markersize=3.5, clip_on=False,
            zorder=3,
        )  # fmt: skip
    violations.set_yscale("log")
    violations.set_ylim(floor, 100)
    _log_ticks(violations, "y")
    violations.set_ylabel("requests that violate an SLO (%, log)", fontsize=9, color=INK)
    violations.set_title(title, loc="left", fontsize=11, color=INK, pad=54)
    ttft_s, tpot_s = limits_s
    caption = f"1 − goodput: TTFT > {_duration(ttft_s)} or TPOT > {_duration(tpot_s)}; mean and 95 % band"
    caption += f"\nat the lowest line {floor:.2g} % or less"
    caption += f"; grey: the range of {len(rest)} others" if rest else ""
    violations.annotate(
        caption, (0, 1), (0, 28), "axes fraction", "offset points", fontsize=7.5, color=FAINT, va="bottom"
    )
    if with_gaps:
        _draw_gaps(panels[1], lines, style)
    for axes, height in zip(panels, heights, strict=True):
        plain(axes)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(x=0.01)
        ends = [(line, np.maximum(line.percent[1], floor) if axes is violations else line.gaps_s) for line in shown]
        labels = [(line.name, style[line.name][0], line.x[-1], y[-1]) for line, y in ends if y is not None]
        if labels:
            label_at_right(axes, labels, height)
    panels[-1].set_xlabel(
        "requests/s" if by_rate == {True} else "load: rate of arrivals / capacity", fontsize=9, color=INK
    )
    if by_rate == {True}:
        _loads_above(violations, lines)
    return save(figure, path)


def _band(axes: Axes, rest: Sequence[_Line], values: Sequence[NDArray[np.float64]]) -> None:
    """From the least to the most of the lines that are not told apart."""
    if not rest:
        return
    x = np.unique(np.concatenate([line.x for line in rest]))
    drawn = np.stack([line.at(x, one) for line, one in zip(rest, values, strict=True)])
    axes.fill_between(x, np.nanmin(drawn, axis=0), np.nanmax(drawn, axis=0), color=OTHERS, linewidth=0, zorder=1)


def _draw_gaps(axes: Axes, lines: Sequence[_Line], style: Mapping[str, tuple[str, str]]) -> None:
    given = [(line, line.gaps_s) for line in lines if line.gaps_s is not None]
    rest = [(line, gaps_s) for line, gaps_s in given if line.name not in style]
    _band(axes, [line for line, _ in rest], [gaps_s for _, gaps_s in rest])
    for line, gaps_s in given:
        if line.name in style:
            colour, dashes = style[line.name]
            axes.plot(line.x, gaps_s, dashes, color=colour, linewidth=1.6, zorder=3)
    axes.set_yscale("log")
    _log_ticks(axes, "y")
    axes.set_ylabel("worst token gap (s, log)", fontsize=9, color=INK)


def _loads_above(axes: Axes, lines: Sequence[_Line]) -> None:
    """The load of each rate, on an axis above."""
    loads = {float(x): float(load) for line in lines for x, load in zip(line.x, line.loads, strict=True)}
    known = {x: load for x, load in sorted(loads.items()) if np.isfinite(load)}
    if not known:
        return
    above = axes.secondary_xaxis("top")
    above.set_xticks([*known], [f"{load:.3g}" for load in known.values()])
    above.tick_params(colors=FAINT, labelsize=7.5, labelcolor=FAINT, length=2)
    above.spines["top"].set_visible(False)
    axes.annotate("load", (0, 1), (-14, 5), "axes fraction", "offset points", fontsize=7.5, color=FAINT, ha="right")


def _chosen(lines: Sequence[_Line], named: Sequence[str], best: int) -> list[_Line]:
    """The lines to be told apart, the best first."""
    names = [line.name for line in lines]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"more than one curve is called {twice!r}: give each a name of its own.")
    unknown = [name for name in named if name not in names]
    if unknown or len(named) > len(STYLES):
        raise ConfigError(
            f"named = {list(named)}: "
            + (f"no curve is called {unknown[0]!r}." if unknown else f"{len(STYLES)} at most can be told apart.")
        )
    common = np.linspace(max(line.x[0] for line in lines), min(line.x[-1] for line in lines), 101)
    ranked = sorted(lines, key=lambda line: float(np.interp(common, line.x, line.percent[1]).mean()))
    others = [line for line in ranked if line.name not in named][: max(0, min(best, len(STYLES) - len(set(named))))]
    return [line for line in ranked if line.name in named or line in others]


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{1000 * seconds:g} ms"


def _log_ticks(axes: Axes, which: str) -> None:
    ticker = viz_module("matplotlib.ticker", "matplotlib", "Drawing a picture")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(ticker.LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=20))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(ticker.NullLocator())


def latency_distributions(
    path: Path | str,
    named: Sequence[tuple[str, ArrayLike, ArrayLike]],
    *,
    ttft_s: float,
    tpot_s: float,
    title: str = "Time to first token, time per output token",
) -> Path:
    """Side by side, the share of requests whose TTFT, and whose TPOT, is at most so long, on logarithmic time.

    The vertical line is the SLO; the share that meets it is written at the height at which each curve crosses it.

    Args:
        path: the PNG file.
        named: (name, TTFT, TPOT), at most 6: two arrays of seconds, one entry a complete request each, as
            `llmsched_env.metrics.request_metrics` gives them. A TPOT of NaN, of a request with one token, is met.
        ttft_s: the TTFT limit in seconds.
        tpot_s: the TPOT limit in seconds.
        title: above the picture.

    Raises:
        ConfigError: nothing to draw or more than there are colours, arrays that are empty or do not fit together, a
            time that is not above 0, or a limit that is not.
        MissingExtraError: matplotlib is not installed.
        PathError: the file cannot be written.
    """
    if not 0 < len(named) <= len(COLOURS):
        raise ConfigError(f"latency_distributions draws 1 to {len(COLOURS)} policies, and was given {len(named)}.")
    for what, limit_s in (("ttft_s", ttft_s), ("tpot_s", tpot_s)):
        if not 0 < limit_s < np.inf:
            raise ConfigError(f"{what} = {limit_s} is out of range: a limit is a finite time above 0 s.")
    names = [name for name, _, _ in named]
    times = [_times(*entry) for entry in named]
    figure = new_figure(9.6, 3.7)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    left, right = figure.subplots(1, 2, sharey=True)
    _distributions(left, names, [ttft for ttft, _ in times], ttft_s, "TTFT (s)", 1)
    _distributions(right, names, [tpot for _, tpot in times], tpot_s, "TPOT (ms)", 1000)
    left.set_ylabel("requests with at most that time (%)", fontsize=9, color=INK)
    return save(figure, path)


def _times(name: str, ttft_s: ArrayLike, tpot_s: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both arrays, sorted; a request without a time per token comes first, with 0."""
    ttft, tpot = np.asarray(ttft_s, np.float64), np.asarray(tpot_s, np.float64)
    if ttft.ndim != 1 or not ttft.size or ttft.shape != tpot.shape:
        raise ConfigError(
            f"policy {name!r} has TTFT of shape {ttft.shape} and TPOT of shape {tpot.shape}: give both of each request."
        )
    if not (np.isfinite(ttft) & (ttft > 0)).all() or not (np.isnan(tpot) | np.isfinite(tpot) & (tpot > 0)).all():
        raise ConfigError(
            f"policy {name!r} has a time that is not above 0 s: leave out requests that are not complete."
        )
    return np.sort(ttft), np.sort(np.nan_to_num(tpot))


def _distributions(
    axes: Axes, names: Sequence[str], times_s: Sequence[NDArray[np.float64]], limit_s: float, label: str, scale: int
) -> None:
    drawn = np.concatenate([*times_s, [limit_s]])
    least, most = float(drawn[drawn > 0].min()), float(drawn.max())
    axes.set_xscale("log")
    axes.set_xlim(scale * least / 1.15, scale * most * 1.15)
    axes.set_ylim(0, 100)
    _log_ticks(axes, "x")
    labels = []
    for name, times, colour in zip(names, times_s, COLOURS, strict=False):
        upto = np.unique(np.linspace(1, len(times), min(CORNERS, len(times))).round().astype(np.int64))
        x, y = scale * times[upto - 1], 100 * upto / len(times)
        x = np.concatenate([[0.0], x, [scale * most * 2]]).clip(scale * least / 2)  # a logarithm has no 0
        y = np.concatenate([[0.0], y, [100.0]])
        axes.plot(x, y, drawstyle="steps-post", color=colour, linewidth=1.6)
        met = 100 * float(np.searchsorted(times, limit_s, side="right")) / len(times)
        axes.plot([scale * limit_s], [met], "o", color=colour, markersize=4.5, clip_on=False, zorder=4)
        labels.append((f"{met:.1f} %  {name}", colour, scale * limit_s, met))
    axes.axvline(scale * limit_s, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.text(
        scale * limit_s,
        1.02,
        f"SLO {_duration(limit_s)}",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=8,
        color=INK,
    )
    plain(axes)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, fontsize=9, color=INK)
    label_at_right(axes, labels, 2.7)
