"""What an engine did beside what the simulator expects: figures, a page, and pictures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.cost import MeasuredCost
from llmsched_env.engines.fitting import predicted_ns
from llmsched_env.engines.recording import Recording, latencies_s
from llmsched_env.engines.replay import ENGINES_OWN
from llmsched_env.errors import MissingExtraError
from llmsched_env.evaluation.drawing import FAINT, INK, LINES, new_figure, plain, save
from llmsched_env.storage import output_folder, write_whole

__all__ = ["EngineComparison", "KindErrors", "compare_recordings", "draw_fit", "write_comparison"]

SHOWN = {
    "makespan_s": "makespan",
    "ttft_s": "TTFT, mean",
    "ttft_p99_s": "TTFT, p99",
    "tpot_s": "TPOT, mean",
    "tpot_p99_s": "TPOT, p99",
}
KINDS = ("prefill", "decode", "mixed")
JUDGED = ("makespan_s", "ttft_s")
"""What ``within`` is about."""

MOST_POINTS = 4000


@dataclass(frozen=True)
class KindErrors:
    """How far the cost model is off recorded iterations of one kind.

    Attributes:
        kind: "prefill", "decode" or "mixed".
        rows: how many were recorded.
        measured_ms: their median.
        error: median of |measured - predicted| / predicted.
        error_p90: 90th percentile of the same.
        sum_error: predicted over measured time in sum, less 1.
    """

    kind: str
    rows: int
    measured_ms: float
    error: float
    error_p90: float
    sum_error: float


@dataclass(frozen=True)
class EngineComparison:
    """A recording beside its replay.

    Attributes:
        measured: what the engine did.
        simulated: the same requests in the simulator.
        model: the cost model of both.
        figures: name -> (measured, simulated), in seconds (`llmsched_env.engines.recording.latencies_s`).
        kinds: errors of recorded iterations under the model.
        same: first iterations that are equal in prompt tokens and decoding requests.
    """

    measured: Recording
    simulated: Recording
    model: MeasuredCost
    figures: dict[str, tuple[float, float]]
    kinds: tuple[KindErrors, ...]
    same: int

    def error(self, name: str) -> float:
        """Simulated over measured, less 1; NaN where nothing was measured."""
        measured, simulated = self.figures[name]
        return simulated / measured - 1 if measured else math.nan

    def within(self, share: float) -> bool:
        """Whether makespan and mean TTFT are off by at most this share."""
        return all(abs(self.error(name)) <= share for name in JUDGED)

    def as_json(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "recording": self.measured.name,
            "engine": f"{self.measured.engine} {self.measured.version}",
            "decided_by": {"measured": self.measured.decided_by, "simulated": self.simulated.decided_by},
            "cost_model": self.model.name,
            "requests": len(self.measured.requests),
            "iterations": {
                "measured": len(self.measured.iterations),
                "simulated": len(self.simulated.iterations),
                "first_equal": self.same,
            },
            "figures": {
                name: {
                    "measured": a,
                    "simulated": b,
                    "error": None if math.isnan(self.error(name)) else self.error(name),
                }
                for name, (a, b) in self.figures.items()
                if not math.isnan(a)
            },
            "iteration_errors": [vars(kind) for kind in self.kinds],
        }

    def page(self) -> str:
        """The comparison in Markdown."""
        measured, simulated = self.measured, self.simulated
        rows = [
            f"| {shown} | {self.figures[name][0]:.4f} s | {self.figures[name][1]:.4f} s | {self.error(name):+.1%} |"
            for name, shown in SHOWN.items()
            if not math.isnan(self.figures[name][0])
        ]
        kinds = [
            f"| {kind.kind} | {kind.rows} | {kind.measured_ms:.3g} ms | {kind.error:.1%} | {kind.error_p90:.1%} "
            f"| {kind.sum_error:+.1%} |"
            for kind in self.kinds
        ]
        return "\n".join(
            [
                f"# {self.finding()}",
                "",
                f"Recording `{measured.name}`: {measured.engine} {measured.version}, {measured.decided_by} decided, "
                f"{len(measured.requests)} requests. Simulated with cost model `{self.model.name}`, "
                f"{_who(simulated.decided_by)} decided.",
                "",
                "| | measured | simulated | difference |",
                "| --- | --- | --- | --- |",
                *rows,
                f"| iterations | {len(measured.iterations)} | {len(simulated.iterations)} "
                f"| first {self.same} of the same sizes |",
                "",
                "Recorded iterations against the cost model:",
                "",
                "| kind | iterations | median | error, median | error, p90 | time in sum |",
                "| --- | --- | --- | --- | --- | --- |",
                *kinds,
                "",
                "Errors are |measured - predicted| / predicted; times run to the next iteration's start.",
                "",
            ]
        )

    def finding(self) -> str:
        """One line."""
        makespan, ttft = self.error("makespan_s"), self.error("ttft_s")
        if max(abs(makespan), abs(ttft)) < 0.0005:
            return "The simulated makespan and mean TTFT are the engine's, within 0.05%"
        return f"The simulated makespan differs from the engine's by {makespan:+.1%}, the mean TTFT by {ttft:+.1%}"


def _who(name: str) -> str:
    """Who decided, in words."""
    return "the engine's own scheduler" if name == ENGINES_OWN else name


def compare_recordings(measured: Recording, simulated: Recording, model: MeasuredCost) -> EngineComparison:
    """A recording beside its replay.

    Args:
        measured: what the engine did.
        simulated: what `llmsched_env.engines.replay.replay` made of it.
        model: the cost model of the replay.
    """
    first, second = latencies_s(measured), latencies_s(simulated)
    names = ("prefill_tokens", "decode_requests")
    common = min(len(measured.iterations), len(simulated.iterations))
    equal = np.logical_and(*(measured.iterations[n][:common] == simulated.iterations[n][:common] for n in names))
    different = np.flatnonzero(~equal)
    return EngineComparison(
        measured,
        simulated,
        model,
        {name: (first[name], second[name]) for name in first},
        _kind_errors(measured, predicted_ns(measured, model)),
        int(different[0]) if len(different) else common,
    )


def _kind_errors(recording: Recording, expected: NDArray[np.float64]) -> tuple[KindErrors, ...]:
    errors = []
    for kind, chosen in zip(KINDS, _by_kind(recording), strict=True):
        if not chosen.any():
            continue
        measured, predicted = recording.busy_ns[chosen].astype(np.float64), expected[chosen]
        off = np.abs(measured - predicted) / predicted
        errors.append(
            KindErrors(
                kind,
                int(chosen.sum()),
                float(np.median(measured)) / 1e6,
                float(np.median(off)),
                float(np.quantile(off, 0.9)),
                float(predicted.sum() / measured.sum() - 1),
            )
        )
    return tuple(errors)


def _by_kind(recording: Recording) -> tuple[NDArray[np.bool_], ...]:
    reads, decodes = recording.iterations["prefill_tokens"] > 0, recording.iterations["decode_requests"] > 0
    return reads & ~decodes, decodes & ~reads, reads & decodes


def write_comparison(comparison: EngineComparison, folder: Path) -> list[Path]:
    """``compare.md``, ``compare.json`` and, where matplotlib is installed, ``compare.png``.

    Raises:
        PathError: the folder cannot be written.
    """
    output_folder(folder)
    page, numbers, picture = (folder / f"compare.{ending}" for ending in ("md", "json", "png"))
    text = comparison.page()
    written = [page, numbers]
    try:
        figure = _drawn(comparison)
        written.append(save(figure, picture))
        text += f"\n![{comparison.finding()}]({picture.name})\n"
    except MissingExtraError:
        pass
    for path, content in ((page, text), (numbers, json.dumps(comparison.as_json(), indent=1) + "\n")):
        with write_whole(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return written


def _drawn(comparison: EngineComparison) -> Any:
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    _scatter(left, comparison.measured, comparison.model)
    for recording, colour, name in (
        (comparison.measured, INK, "measured"),
        (comparison.simulated, LINES[1], "simulated"),
    ):
        done = np.sort(recording.requests["finished_ns"] - recording.requests["arrival_ns"].min()) / 1e9
        right.step(done, np.arange(1, len(done) + 1), where="post", color=colour, label=name)
    right.set_xlabel("time (s)")
    right.set_ylabel("requests finished")
    right.legend(frameon=False, fontsize=8)
    plain(right)
    figure.suptitle(comparison.finding(), fontsize=10, color=INK)
    return figure


def draw_fit(recording: Recording, model: MeasuredCost, excess: float, path: Path) -> Path:
    """Measured against fitted durations.

    Args:
        recording: what was fitted.
        model: the fit.
        excess: what iterations last beyond it in sum, as a share.
        path: of the PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        PathError: the file cannot be written.
    """
    figure = new_figure(4.8, 4.2)
    axes = figure.subplots()
    _scatter(axes, recording, model)
    axes.set_title(
        f"Iterations last {abs(excess):.1%} {'longer' if excess > 0 else 'shorter'} than modelled, in sum",
        fontsize=10,
        color=INK,
    )
    return save(figure, path)


def _scatter(axes: Any, recording: Recording, model: MeasuredCost) -> None:
    expected, measured = predicted_ns(recording, model) / 1e6, recording.busy_ns / 1e6
    for kind, chosen, colour in zip(KINDS, _by_kind(recording), LINES, strict=False):
        shown = np.flatnonzero(chosen)[:: max(1, int(chosen.sum()) // MOST_POINTS)]
        if len(shown):
            axes.scatter(expected[shown], measured[shown], s=5, color=colour, alpha=0.5, linewidths=0, label=kind)
    ends = [float(min(expected.min(), measured.min())), float(max(expected.max(), measured.max()))]
    axes.plot(ends, ends, color=FAINT, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    steps = [step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5)]
    ticks = [step for step in steps if ends[0] <= step <= ends[1]]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set_xlabel("iteration under the cost model (ms)")
    axes.set_ylabel("measured (ms)")
    axes.legend(frameon=False, fontsize=8)
    plain(axes)
