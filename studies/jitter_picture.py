"""Panels of the picture of jitter: methods by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmsched_env.evaluation import Estimate
from llmsched_env.evaluation.drawing import FAINT, LINES, RULE, plain

__all__ = ["dots", "finding", "ranges"]


def finding(place: str, lost: Mapping[str, float], planner: str) -> str:
    """What noise costs the planner, and the rule that it costs most, in points of goodput: the picture's title."""
    rule = min(points for name, points in lost.items() if name != planner)
    most = f"{max(0.0, -rule):.1f}"
    return f"{place}: {planner} loses {-lost[planner]:.1f} points of goodput, no rule drawn more than {most}"


def dots(axes: Any, columns: Mapping[str, Mapping[str, Estimate]], names: Sequence[str]) -> None:
    """The mean of each method in up to three worlds."""
    for mark, (colour, (world, column)) in zip("os^", zip(LINES, columns.items(), strict=False), strict=True):
        xs = [column[name].mean for name in names]
        axes.plot(xs, range(len(names)), mark, color=colour, markersize=5, label=world)
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=3, handletextpad=0.1)
    _named(axes, names)


def ranges(axes: Any, columns: Mapping[str, Mapping[str, Estimate]]) -> None:
    """From the least to the greatest mean over the wrong models, and a mark for each of them."""
    names = [*next(iter(columns.values()))]
    for row, name in enumerate(names):
        means = [column[name].mean for column in columns.values()]
        axes.plot([min(means), max(means)], [row, row], "-", color=FAINT, linewidth=2)
        axes.plot(means, [row] * len(means), "|", color=LINES[0], markersize=9)
    axes.axvline(0, color=RULE, linewidth=1, zorder=0)
    _named(axes, names)


def _named(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    plain(axes)
    axes.tick_params(axis="y", labelsize=7)
