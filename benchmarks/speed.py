"""How fast this is, beside what users know: ``python benchmarks/speed.py [--quick] [--write] [--out PATH]``.

One run on one core. Each figure is the best of repeats that take turns with its reference, so that a busy machine slows
both; the ratio is what to read. ``--write`` puts the table into docs/performance.md and draws docs/images/scaling.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from core_figures import ScalingPoint, episode_figures, scaling_figures, scaling_points
from environment_figures import environment_figures
from measuring import Figure, as_json, machine, pin, table
from profile_figures import profile_figures
from study_figures import large_figures, planner_figures, start_figures, study_figures
from tqdm import tqdm

from llmsched_env.storage import write_whole

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- begin: python benchmarks/speed.py --write -->", "<!-- end -->"


def figures(*, quick: bool, points: list[ScalingPoint]) -> Iterator[Iterator[Figure]]:
    """The figures, group by group; ``points`` is filled on the way."""
    repeats = 5 if quick else 40
    yield episode_figures(cases=4 if quick else 16, repeats=repeats)
    yield profile_figures(cases=4 if quick else 16, repeats=5 if quick else 25)
    yield environment_figures(steps=5_000 if quick else 20_000, repeats=3 if quick else 12)
    points += scaling_points(repeats=3 if quick else 12)
    yield scaling_figures(points)
    yield large_figures()
    yield study_figures(cases=10 if quick else 100)
    yield planner_figures(cases=4 if quick else 20)
    yield start_figures()


def written(document: str, section: str) -> str:
    """``document`` with everything between the markers replaced.

    Raises:
        ValueError: the markers are not there.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/performance.md lacks the lines {BEGIN!r} and {END!r}, between which the table goes.")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def draw(points: Sequence[ScalingPoint], path: Path) -> None:
    """Time of an iteration and of an event against clients."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

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
        axis.grid(visible=True, which="both", alpha=0.2)
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as whole:
        figure.savefig(whole, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats and cases: a look, not a result")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md, draw the picture")
    parser.add_argument("--out", type=Path, metavar="PATH", help="also write the figures there as JSON")
    options = parser.parse_args(argv)
    pinned = pin()
    points: list[ScalingPoint] = []
    found: list[Figure] = []
    for group in figures(quick=options.quick, points=points):
        for figure in tqdm(group, unit="figure", leave=False, disable=not sys.stderr.isatty()):
            found.append(figure)
            print(" | ".join(cell for cell in figure.row() if cell), flush=True)
    heading = f"{machine()}; {pinned}; best of repeats{', quick' if options.quick else ''}."
    section = f"{heading}\n\n{table(found)}"
    print(f"\n{section}")
    missed = sum(figure.met is False for figure in found)
    promised = sum(figure.met is not None for figure in found)
    print(f"\n{promised - missed} of {promised} targets met.")
    if options.out is not None:
        with write_whole(options.out) as path:
            path.write_text(json.dumps({"machine": heading, "figures": as_json(found)}, indent=1) + "\n")
    if options.write:
        document = DOCS / "performance.md"
        text = written(document.read_text(encoding="utf-8"), section)
        with write_whole(document) as path:
            path.write_text(text, encoding="utf-8")
        draw(points, DOCS / "images" / "scaling.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
