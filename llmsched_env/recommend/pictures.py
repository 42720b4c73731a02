"""Three pictures of a recommendation: violations against the rate, latencies, and what the search tried."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmsched_env.evaluation.drawing import FAINT, INK, LINES, RULE, label_at_right, new_figure, plain, save
from llmsched_env.recommend.answer import Candidate, Recommendation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

FLOOR = 1e-4
"""Violations below are drawn here: a logarithm has no zero."""


def draw(answer: Recommendation, folder: Path) -> list[Path]:
    """Draw them as PNG files in a folder.

    Raises:
        MissingExtraError: matplotlib is not installed.
        PathError: a file cannot be written.
    """
    return [
        _violations(answer, folder / "violations.png"),
        _latencies(answer, folder / "latencies.png"),
        _search(answer, folder / "search.png"),
    ]


def _shown(answer: Recommendation) -> list[tuple[Candidate, str]]:
    return list(zip((answer.chosen, *answer.others), (LINES[2], LINES[1], LINES[0], LINES[3], LINES[4]), strict=False))


def _label(answer: Recommendation, one: Candidate) -> str:
    return "recommended" if one is answer.chosen else one.role


def _violations(answer: Recommendation, path: Path) -> Path:
    figure = new_figure(8.0, 4.2)
    axes = figure.subplots()
    plain(axes)
    labels = []
    for one, colour in _shown(answer):
        rates = np.array([rate for rate, _ in one.tried])
        mean, low, high = (np.maximum(FLOOR, 1 - np.array([x[i] for _, x in one.tried])) for i in (0, 2, 1))
        axes.plot(rates, mean, color=colour, linewidth=1.8)
        axes.fill_between(rates, low, high, color=colour, alpha=0.15, linewidth=0)
        labels.append((_label(answer, one), colour, rates[-1], mean[-1]))
    axes.set(xscale="log", yscale="log", ylim=(FLOOR * 0.8, 1.2))
    axes.axhline(max(FLOOR, 1 - answer.target), color=FAINT, linewidth=0.9, linestyle="--")
    axes.axvline(answer.rate_per_s, color=FAINT, linewidth=0.9, linestyle=":")
    low, high = axes.get_xlim()
    axes.text(low, max(FLOOR, 1 - answer.target), " target", color=FAINT, fontsize=8, va="bottom")
    axes.text(answer.rate_per_s, 0.9, " asked for", color=FAINT, fontsize=8, va="top")
    _plain_log(axes)
    axes.set_xlabel("requests per second", color=INK, fontsize=9)
    axes.set_ylabel("requests that miss an SLO (share)", color=INK, fontsize=9)
    chosen, stock = answer.chosen.capacity.mean, answer.stock.capacity.mean
    title = f"Up to {chosen:.3g} requests/s hold the SLOs"
    if answer.chosen is not answer.stock:
        title += f", with vLLM as it is {stock:.3g}" if stock > 0 else "; with vLLM as it is no rate that was tried"
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    label_at_right(axes, labels, 3.4)
    return save(figure, path)


def _plain_log(axes: Axes) -> None:
    """Numbers in place of powers of ten, with a 2 and a 5 between them."""
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "25" else "")
    axes.tick_params(which="minor", labelsize=8, labelcolor=INK, colors=RULE)


def _latencies(answer: Recommendation, path: Path) -> Path:
    figure = new_figure(8.0, 3.8)
    panels = figure.subplots(1, 2, sharey=True)
    limits = (answer.machine.ttft_s, answer.machine.tpot_s)
    for axes, name, limit, scale, label in zip(
        panels, ("ttft_s", "tpot_s"), limits, (1.0, 1e3), ("TTFT, s", "TPOT, ms"), strict=True
    ):
        plain(axes)
        for one, colour in _shown(answer)[:3]:
            values = np.sort(getattr(one.outcome, name))[::-1] * scale
            places = np.unique(np.geomspace(1, len(values), 400).astype(int)) - 1
            shown = np.maximum(values[places], values[values > 0].min() if (values > 0).any() else 1e-9)
            axes.plot(shown, (places + 1) / len(values), color=colour, linewidth=1.6, label=_label(answer, one))
        axes.axvline(limit * scale, color=FAINT, linewidth=0.9, linestyle="--")
        axes.set(xscale="log", yscale="log")
        _plain_log(axes)
        axes.set_xlabel(f"{label} (dashed: SLO)", color=INK, fontsize=9)
    panels[0].set_ylabel("share of requests above", color=INK, fontsize=9)
    panels[1].legend(frameon=False, fontsize=8, loc="lower left")
    figure.suptitle(f"Latencies at {answer.rate_per_s:.3g} requests/s", x=0.01, ha="left", color=INK, fontsize=10)
    return save(figure, path)


def _search(answer: Recommendation, path: Path) -> Path:
    """Value by token budget, a mark for each setting that was tried."""
    figure = new_figure(8.0, 4.0)
    axes = figure.subplots()
    plain(axes)
    kinds = {"chunked prefill": (True, LINES[0], "o"), "exclusive prefills": (False, LINES[1], "s")}
    values = answer.found.values
    worst = min(values.values())
    for name, (chunked, colour, marker) in kinds.items():
        points = [(one.tokens, value) for one, value in values.items() if one.chunked is chunked]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, color=colour, markersize=4, alpha=0.6, markeredgewidth=0, label=name)

    if answer.chosen.setting in values:
        top = values[answer.chosen.setting]
        axes.plot([answer.chosen.setting.tokens], [top], "*", color=LINES[2], markersize=13, label="recommended")
    if max(values.values()) > answer.target >= worst:
        axes.axhline(answer.target, color=FAINT, linewidth=0.9, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set_xlabel("tokens of an iteration", color=INK, fontsize=9)
    axes.set_ylabel("goodput; above the target: 2 − used share of the SLOs", color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(
        f"{len(values)} settings tried on the first part, at {answer.searched_at_per_s:.3g} requests/s",
        loc="left", color=INK, fontsize=10,
    )  # fmt: skip
    return save(figure, path)
