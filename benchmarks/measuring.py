"""How figures are taken and told: repeats on one core, one table; llmsched_env.studies.machine has the rest."""

from __future__ import annotations

import csv
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

__all__ = ["Figure", "Headline", "Timing", "as_csv", "as_json", "pin", "repeat", "summary", "table"]

HEADER = ["ours", "reference (same run)", "ratio", "target", "met?"]


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        section: what it belongs to.
        name: what was measured.
        value: ours.
        unit: its unit.
        reference: the figure of the same run that it stands beside.
        reference_name: what that is.
        target: limit that it was to keep; ``None`` where there is none.
        target_on: "value" or "ratio" (value / reference).
        at_least: whether the target is a floor, not a ceiling.
    """

    section: str
    name: str
    value: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    target: float | None = None
    target_on: str = "value"
    at_least: bool = True

    @property
    def ratio(self) -> float | None:
        """Ours against the reference."""
        return self.value / self.reference if self.reference else None

    @property
    def met(self) -> bool | None:
        """Whether the target is kept; ``None`` without one."""
        measured = self.value if self.target_on == "value" else self.ratio
        if self.target is None or measured is None:
            return None
        return measured >= self.target if self.at_least else measured <= self.target

    @property
    def limit(self) -> str:
        """The target in words; empty without one."""
        if self.target is None:
            return ""
        unit = self.unit if self.target_on == "value" else "×"
        return f"{'≥' if self.at_least else '≤'} {self.target:g} {unit}"

    def row(self) -> list[str]:
        """The cells of its line."""
        return [
            self.name,
            f"{_digits(self.value)} {self.unit}",
            f"{_digits(self.reference)} {self.unit}: {self.reference_name}" if self.reference else "",
            f"{_digits(self.ratio)}×" if self.ratio else "",
            self.limit,
            {None: "", True: "yes", False: "**no**"}[self.met],
        ]


def _digits(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


class Headline(NamedTuple):
    """A figure that stands on the page.

    Attributes:
        label: what the page calls it.
        section: how its section begins.
        name: how its name begins.
        reference_name: of its reference; empty for the figure without one.
    """

    label: str
    section: str
    name: str
    reference_name: str = ""

    def among(self, figures: Sequence[Figure]) -> Figure:
        """The figure that it is.

        Raises:
            ValueError: there is none.
        """
        for figure in figures:
            begins = figure.section.startswith(self.section) and figure.name.startswith(self.name)
            if begins and figure.reference_name == self.reference_name:
                return figure
        raise ValueError(f"no figure {self.name!r} in a section {self.section!r} beside {self.reference_name!r}.")


class Timing(NamedTuple):
    """Seconds of one call over its repeats."""

    best_s: float
    median_s: float


def repeat(*calls: Callable[[], Any], repeats: int) -> list[Timing]:
    """Time calls in turn, so that a disturbance of the machine falls on all of them; each is run once before."""
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [Timing(min(times), statistics.median(times)) for times in taken]


def pin() -> str:
    """Keep this process and its children on one core, where the system can; says what was done."""
    if not hasattr(os, "sched_setaffinity"):
        return "not pinned"
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return "pinned to one core"


def _head(first: str) -> str:
    columns = [first, *HEADER]
    return f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"


def summary(figures: Sequence[Figure], headlines: Sequence[Headline]) -> str:
    """The Markdown of the figures that stand on the page."""
    rows = [[headline.label, *headline.among(figures).row()[1:]] for headline in headlines]
    return "\n".join([_head("what"), *(f"| {' | '.join(row)} |" for row in rows)])


def as_csv(figures: Sequence[Figure]) -> str:
    """All figures, a line each, as the tables round them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["section", "figure", "value", "unit", "reference", "reference_name", "ratio", "target", "met"])
    for figure in figures:
        numbers = (_digits(number).replace(",", "") for number in (figure.value, figure.reference, figure.ratio))
        value, reference, ratio = numbers
        met = {None: "", True: "yes", False: "no"}[figure.met]
        writer.writerow(
            [
                figure.section,
                figure.name,
                value,
                figure.unit,
                reference,
                figure.reference_name,
                ratio,
                figure.limit,
                met,
            ]
        )
    return text.getvalue()


def table(figures: Sequence[Figure]) -> str:
    """The Markdown of all figures, by section."""
    header = _head("figure")
    sections = list(dict.fromkeys(figure.section for figure in figures))
    parts = []
    for section in sections:
        rows = ["| " + " | ".join(f.row()) + " |" for f in figures if f.section == section]
        parts.append(f"### {section}\n\n{header}\n" + "\n".join(rows))
    return "\n\n".join(parts)


def as_json(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The figures as plain values."""
    return [{**asdict(figure), "ratio": figure.ratio, "met": figure.met} for figure in figures]
