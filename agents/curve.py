"""A run's learning curve where it can be looked at: in TensorBoard while it trains, as a picture at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from llmsched_env.agents.runs import writing
from llmsched_env.errors import MissingExtraError
from llmsched_env.evaluation.comparison import Comparison
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, label_at_right, new_figure, plain, save
from llmsched_env.viewer.extras import viz_module

__all__ = ["Board", "draw"]


LEAST_GAP = 1e-3
"""In percent: the axis of gaps is logarithmic, and a schedule may be as short as the bound."""


class Board:
    """Writes rows of numbers for TensorBoard, each to disk before it returns.

    TensorBoard's own writer does so in a thread of its own, where a full disk is found out too late.

    Args:
        folder: where.
        after: the last timestep of a run that is gone on with: what was written for later ones does not count.

    Raises:
        MissingExtraError: the extra `agents` is not installed.
        PathError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, after: int | None = None) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise MissingExtraError(
                f"logs need tensorboard ({error}): install the extra 'agents', pip install -e '.[agents]' from "
                "the clone."
            ) from error
        self._folder, self._event, self._summary = folder, Event, Summary
        with writing(folder):
            folder.mkdir(exist_ok=True)
            number = len(list(folder.iterdir()))  # TensorBoard reads the files of a folder by name
            self._file = (folder / f"events.out.tfevents.{number:06d}").open("xb")
            self._records: Any = RecordWriter(self._file)
            self._write(file_version="brain.Event:2")
            if after is not None:
                self._write(step=after + 1, session_log=SessionLog(status=SessionLog.START))
            self._file.flush()

    def _write(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())

    def add(self, row: Mapping[str, float]) -> None:
        """Write the row of its ``timesteps``.

        Raises:
            PathError: it cannot be written.
        """
        values = [
            self._summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "timesteps"
        ]
        with writing(self._folder):
            self._write(step=int(row["timesteps"]), summary=self._summary(value=values))
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        with writing(self._folder):
            self._file.close()


def draw(path: Path, rows: Sequence[Mapping[str, float]], comparison: Comparison) -> bool:
    """Draw validation against timesteps, with what scores 0 and 1; whether matplotlib is there to do it.

    Args:
        path: the PNG file.
        rows: of the curve.
        comparison: at the end.

    Raises:
        PathError: the file cannot be written.
    """
    serving = comparison.scenario.serving
    least = 0.0 if serving else LEAST_GAP
    metric, label = ("goodput", "goodput, %") if serving else ("gap_to_bound", "gap to the lower bound, %")
    try:
        figure = new_figure(8.0, 4.0)
    except MissingExtraError:
        return False
    axes = figure.subplots()
    plain(axes)
    ticker = viz_module("matplotlib.ticker", "matplotlib", "Drawing a picture")
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    if not serving:
        axes.set_yscale("log")
    labels = []
    names = [row.name for row in comparison.rows if f"{row.name}/{metric}" in rows[-1]]
    for name, colour in zip(names, LINES, strict=False):
        values = [max(100 * row[f"{name}/{metric}"], least) for row in rows]
        axes.plot([row["timesteps"] for row in rows], values, color=colour, linewidth=1.5, marker="o", markersize=2.5)
        labels.append((name, colour, rows[-1]["timesteps"], values[-1]))
    for end in dict.fromkeys((comparison.reference, comparison.planner)):
        shown = [row for row in comparison.rows if row.name == end]
        for row in shown:
            value = max(100 * row.estimate(metric).mean, least)
            axes.axhline(value, color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
            labels.append((row.name, FAINT, rows[-1]["timesteps"], value))
    if not serving:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high > 10 * low else range(1, 10)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("timesteps", fontsize=9, color=INK)
    axes.set_ylabel(f"{label}, {len(comparison.cases)} validation cases", fontsize=9, color=INK)
    label_at_right(axes, labels, 3.4)
    with writing(path):
        save(figure, path)
    return True
