"""How fast this is, beside what users know: ``python benchmarks/speed.py [--quick] [--write] [--out PATH]``.

One run on one core. Each figure is the best of repeats that take turns with its reference, so that a busy machine slows
both; the ratio is what to read. ``--write`` puts all figures into docs/data/performance.csv, the headlines into
docs/performance.md, and draws its pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from environment_figures import environment_figures
from episode_figures import ScalingPoint, episode_figures, scaling_figures, scaling_points
from measuring import Figure, Headline, as_csv, as_json, pin, summary, table
from profile_figures import profile_figures
from serving_figures import serving_figures
from study_figures import large_figures, planner_figures, start_figures, study_figures
from tqdm import tqdm
from vector_figures import CopiesPoint, copies_points, learning_figures, size_points, vector_figures

from llmsched_env.storage import write_whole
from llmsched_env.studies.machine import machine

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the backend is chosen

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- begin: python benchmarks/speed.py --write -->", "<!-- end -->"

EPISODES, COPIES = "Whole episodes, threshold rule, GSM8K", "Many copies"
HEADLINES = (
    Headline("episode, shared queue", EPISODES, "shared queue, longest first, 16 cases", "plain Python"),
    Headline("... with observations", EPISODES, "shared queue, longest first, observation", "without"),
    Headline("episode, client queues with stealing", EPISODES, "client queues with stealing"),
    Headline("one environment", "One environment", "LLMSched/GSM8K-v0", "CartPole-v1, same actions"),
    Headline("64 copies", COPIES, "LLMSched/GSM8K-v0, 64 copies", "CartPole-v1, its own vector class"),
    Headline("1,024 copies", COPIES, "LLMSched/GSM8K-v0, 1,024 copies"),
    Headline("256 copies in `SB3VecEnv`", "Through stable-baselines3", "256 copies"),
    Headline("PPO: share of the environment", "Through stable-baselines3", "PPO, its defaults, 8 copies: share"),
    Headline("trace of 1,000,000 requests", "A trace of", "fcfs: the episode"),
    Headline("first step of a process", "A fresh process", "LLMSched/GSM8K-v0, one", "import gymnasium"),
)
"""The rows of docs/performance.md."""


@dataclass
class Curves:
    """What the pictures show; filled while the figures are taken."""

    scaling: list[ScalingPoint] = field(default_factory=list)
    copies: list[CopiesPoint] = field(default_factory=list)
    sizes: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def figures(*, quick: bool, curves: Curves) -> Iterator[Iterator[Figure]]:
    """The figures, group by group."""
    repeats = 5 if quick else 40
    yield episode_figures(cases=4 if quick else 16, repeats=repeats)
    yield profile_figures(cases=4 if quick else 16, repeats=5 if quick else 25)
    yield environment_figures(steps=5_000 if quick else 20_000, repeats=3 if quick else 12)
    budget, turns = (20_000, 3) if quick else (200_000, 12)
    curves.copies += copies_points(budget=budget, repeats=turns)
    yield vector_figures(curves.copies, budget=budget, repeats=turns)
    yield learning_figures(budget=budget, repeats=turns, timesteps=2_048 if quick else 32_768)
    curves.sizes.update(size_points(budget=budget, repeats=turns))
    curves.scaling += scaling_points(repeats=3 if quick else 12)
    yield scaling_figures(curves.scaling)
    yield large_figures()
    yield serving_figures(repeats=repeats)
    yield study_figures(cases=10 if quick else 100)
    yield planner_figures(cases=4 if quick else 20)
    yield start_figures()


def score(figures: Sequence[Figure]) -> str:
    """How many targets are met."""
    met = [figure.met for figure in figures if figure.met is not None]
    return f"{sum(met)} of {len(met)} targets met."


def section(heading: str, figures: Sequence[Figure]) -> str:
    """What stands between the markers of the page."""
    return (
        f"{heading}\nGSM8K lengths, 1,319 requests, 200 clients where nothing else is said.\n\n"
        f"{summary(figures, HEADLINES)}\n\n"
        f"All {len(figures)} figures are in [data/performance.csv](data/performance.csv). {score(figures)}"
    )


def written(document: str, text: str) -> str:
    """``document`` with ``text`` between the markers.

    Raises:
        ValueError: the markers are not there.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/performance.md lacks the lines {BEGIN!r} and {END!r}, between which the table goes.")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def draw_scaling(points: Sequence[ScalingPoint], path: Path) -> None:
    """Time of an iteration and of an event against clients."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharex=True, layout="constrained")
    for queues in dict.fromkeys(point.queues for point in points):
        of_kind = [point for point in points if point.queues == queues]
        clients = [point.clients for point in of_kind]
        for axis, values in ((axes[0], "iteration_ns"), (axes[1], "event_ns")):
            axis.plot(clients, [getattr(point, values) for point in of_kind], "o-", label=queues)
    axes[0].set(title="one iteration", ylabel="ns")
    axes[1].set(title="one event: iteration, start or end of a request")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="clients (7 requests each)", ylim=(4, None))
    axes[0].legend(frameon=False)
    _save(figure, axes, path)


def draw_copies(curves: Curves, path: Path) -> None:
    """Steps per second against copies, and of 64 copies against the size of a case."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True, layout="constrained")
    for number, identity in enumerate(dict.fromkeys(point.identity for point in curves.copies)):
        points = [point for point in curves.copies if point.identity == identity]
        copies, color = [point.copies for point in points], f"C{number}"
        axes[0].plot(copies, [point.ours for point in points], "o-", color=color, label=identity)
        axes[0].plot(copies, [point.ceiling for point in points], ":", color=color, label="the batch alone")
        if number == 0:
            axes[0].plot(copies, [point.cartpole for point in points], "s--", color="0.5", label="CartPole-v1, vector")
    axes[0].set(title="copies", xlabel="copies", ylabel="million environment steps/s")
    axes[0].legend(frameon=False, fontsize=8)
    for axis, (kind, measured), text in zip(
        axes[1:], curves.sizes.items(), ("clients, 7 requests each", "requests on 200 clients"), strict=True
    ):
        axis.plot(*zip(*measured, strict=True), "o-", color="C1")
        axis.set(title=f"{kind} (64 copies, the batch alone)", xlabel=text)
    for axis in axes:
        axis.set(xscale="log", yscale="log")
    _save(figure, axes, path)


def _save(figure: Any, axes: Any, path: Path) -> None:
    for axis in axes:
        axis.grid(visible=True, which="both", alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as whole:
        figure.savefig(whole, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats and cases: a look, not a result")
    parser.add_argument(
        "--write", action="store_true", help="put the figures into docs/performance.md and its CSV, draw the pictures"
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help="also write the figures there as JSON")
    options = parser.parse_args(argv)
    pinned = pin()
    curves = Curves()
    found: list[Figure] = []
    for group in figures(quick=options.quick, curves=curves):
        for figure in tqdm(group, unit="figure", leave=False, disable=not sys.stderr.isatty()):
            found.append(figure)
            print(" | ".join(cell for cell in figure.row() if cell), flush=True)
    heading = f"{machine()}; {pinned}; best of repeats{', quick' if options.quick else ''}."
    print(f"\n{heading}\n\n{table(found)}\n\n{score(found)}")
    if options.out is not None:
        with write_whole(options.out) as path:
            path.write_text(json.dumps({"machine": heading, "figures": as_json(found)}, indent=1) + "\n")
    if options.write:
        document = DOCS / "performance.md"
        text = written(document.read_text(encoding="utf-8"), section(heading, found))
        for target, content in ((document, text), (DOCS / "data" / "performance.csv", as_csv(found))):
            with write_whole(target) as path:
                path.write_text(content, encoding="utf-8")
        draw_scaling(curves.scaling, DOCS / "images" / "scaling.png")
        draw_copies(curves, DOCS / "images" / "copies.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
