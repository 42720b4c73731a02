"""docs/performance.md and its CSV are what benchmarks/speed.py writes."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
DATA = ROOT / "docs" / "data" / "performance.csv"


@pytest.fixture
def speed(monkeypatch):
    folder = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    names = [file.stem for file in folder.glob("*.py")]
    for name in names:  # helpers of the tests may be called like one of these
        monkeypatch.delitem(sys.modules, name, raising=False)
    pytest.importorskip("matplotlib")
    yield pytest.importorskip("speed")
    for name in names:
        sys.modules.pop(name, None)


def figures(speed):
    with DATA.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            limit = re.fullmatch(r"([≥≤]) (\S+) (.+)", row["target"])
            yield speed.Figure(
                row["section"],
                row["figure"],
                float(row["value"]),
                row["unit"],
                float(row["reference"]) if row["reference"] else None,
                row["reference_name"],
                float(limit[2]) if limit else None,
                "ratio" if limit and limit[3] == "×" else "value",
                limit is None or limit[1] == "≥",
            )


def test_the_page_has_the_headlines_of_the_csv(speed):
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition(speed.BEGIN)[2].partition(speed.END)[0].strip()
    found = list(figures(speed))
    assert len(found) > 100
    heading = shown.partition("\n")[0]
    wanted = speed.section(heading, found)

    def without_ratios(page):  # ratios of rounded figures differ in the last digit
        return [[cell for cell in line.split(" | ") if not cell.endswith("×")] for line in page.splitlines()]

    assert without_ratios(shown) == without_ratios(wanted)
    assert speed.written(text, shown) == text


def test_a_csv_that_is_written_again_is_the_same(speed):
    with DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    again = list(csv.reader(speed.as_csv(list(figures(speed))).splitlines()))
    ratio = rows[0].index("ratio")
    assert [row[:ratio] + row[ratio + 1 :] for row in rows] == [row[:ratio] + row[ratio + 1 :] for row in again]
    for row, other in zip(rows[1:], again[1:], strict=True):
        assert (row[ratio] == "") == (other[ratio] == "")
        assert row[ratio] == "" or float(row[ratio]) == pytest.approx(float(other[ratio]), rel=0.02, abs=0.0005)


def test_a_headline_that_was_not_measured(speed):
    with pytest.raises(ValueError, match="no figure 'shared queue, longest first, 16 cases' in a section"):
        speed.summary([], speed.HEADLINES)
    with pytest.raises(ValueError, match="lacks the lines"):
        speed.written("no markers", "")
