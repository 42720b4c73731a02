"""What all pictures share: colours, an empty figure, plain axes, labels that do not overlap, a file that is whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmsched_env.storage import write_whole
from llmsched_env.viewer.extras import viz_module

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FAINT",
    "INK",
    "LINES",
    "MARKERS",
    "RULE",
    "check_drawing",
    "label_at_right",
    "new_figure",
    "plain",
    "save",
    "spread",
]

DPI = 150
INK, FAINT, RULE = "#263238", "#69757d", "#d6dbdf"
MARKERS = {"method": "o", "rule": "s", "planner": "D", "agent": "^"}
LINES = ("#2b6ca3", "#d55e00", "#00866a", "#8a5a9e", "#a07800", "#555555")

LABEL_SIZE = 8.0
LINE_HEIGHT = 1.3 * LABEL_SIZE / 72
"""Inches that one line of a label takes."""


def check_drawing() -> Any:
    """Whether pictures can be drawn: for commands to ask before the long work. Returns ``matplotlib.figure``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return viz_module("matplotlib.figure", "matplotlib", "Drawing a picture")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    module = check_drawing()
    return module.Figure(figsize=(width, height), dpi=DPI, layout="constrained")  # type: ignore[no-any-return]  # by name


def save(figure: Figure, path: Path | str) -> Path:
    """Write a PNG file, whole or not at all.

    Raises:
        PathError: the file cannot be written.
    """
    with write_whole(path) as temporary:
        # No software version in the file: the same data give the same bytes.
        figure.savefig(temporary, format="png", metadata={"Software": None}, facecolor="white")
    return Path(path)


def plain(axes: Axes) -> None:
    """Fewer lines: no box, faint ticks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=FAINT, labelsize=8, labelcolor=INK)


def spread(wanted: ArrayLike, distance: float, low: float, high: float) -> NDArray[np.float64]:
    """(n,) places in the order given, as near as may be to the wanted ones and no closer than ``distance``.

    All lie in [low, high] where there is room for them. Neighbours that want the same place share it evenly.
    """
    at = np.asarray(wanted, np.float64)
    order = np.argsort(at, kind="stable")
    steps = distance * np.arange(len(at))
    # With the steps taken off, places only need to be in order: the means of blocks that are not (pool adjacent).
    blocks: list[tuple[float, int]] = []
    for value in at[order] - steps:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] >= mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    level = np.repeat([mean for mean, _ in blocks], [size for _, size in blocks])
    out = np.empty(len(at))
    out[order] = np.maximum(np.minimum(level, high - steps[-1:]), low) + steps
    return out


def label_at_right(axes: Axes, labels: Sequence[tuple[str, str, float, float]], height: float) -> None:
    """Write (text, colour, x, y) beside the axes, at the height of its point and joined to it by a thin line.

    Args:
        axes: with their limits and scales set.
        labels: text, its colour, the point in data units.
        height: of the axes, in inches, about.
    """
    to_axes = axes.transScale + axes.transLimits
    points = to_axes.transform([(x, y) for _, _, x, y in labels])
    places = spread(points[:, 1], LINE_HEIGHT / height, 0.0, 1.0)
    for (text, colour, x, y), place in zip(labels, places, strict=True):
        axes.annotate(
            text,
            (x, y),
            (1.035, place),
            textcoords="axes fraction",
            va="center",
            fontsize=LABEL_SIZE,
            color=colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )
