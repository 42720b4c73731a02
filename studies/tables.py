"""Tables of a study: what was found in full, as CSV, and the few rows of it that stand in a page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import grid

__all__ = ["MOST_ROWS", "Rows", "Table", "csv_name", "stacked", "write_csv"]

Rows = tuple[list[str], list[list[str]]]
"""Header and rows."""

MOST_ROWS = 12
"""Of a table in a page; what is longer is a file beside it."""

_NUMBER = r"[-+]?[\d.]+"
_CELL = re.compile(rf"({_NUMBER})(?: ± ({_NUMBER}))?(?: \(([^()]+)\))?")
_RANGE = re.compile(rf"({_NUMBER}) to ({_NUMBER})")
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")


class Table(NamedTuple):
    """One table.

    Attributes:
        name: of its file, after that of the study.
        title: what it holds, in one line.
        header: one text a column, no two alike.
        rows: (rows, columns) cells as a page shows them.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As a page shows it."""
        return grid(self.header, self.rows)

    def csv(self) -> str:
        """For programs: ``a ± b`` is two columns, ``a (b to c)`` three, and what else is in brackets one more."""
        assert len({*self.header}) == len(self.header), f"{self.name}: two columns have one name"
        columns = []
        for place, title in enumerate(self.header):
            columns += _split(title, [row[place] for row in self.rows])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(zip(*columns, strict=True))
        return text.getvalue()

    def picked(
        self, columns: Sequence[str] | Mapping[str, str], where: Callable[[Mapping[str, str]], bool] = bool
    ) -> Table:
        """Some columns, by other names if ``columns`` maps them, of the rows for which ``where`` holds."""
        renamed = columns if isinstance(columns, Mapping) else dict(zip(columns, columns, strict=True))
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        chosen = [[row[column] for column in renamed] for row in rows if where(row)]
        return self._replace(header=[*renamed.values()], rows=chosen)


def stacked(name: str, title: str, key: str, parts: Mapping[str, Rows]) -> Table:
    """Tables of one header, one below the other, with a column in front that says which a row is of."""
    header = next(iter(parts.values()))[0]
    assert all([*header] == [*other] for other, _ in parts.values()), f"{name}: the headers differ"
    return Table(name, title, [key, *header], [[part, *row] for part, (_, rows) in parts.items() for row in rows])


def csv_name(study: str, table: Table) -> str:
    """Of the file that has a table in full."""
    return f"{study}_{table.name}.csv"


def write_csv(study: str, tables: Sequence[Table], folder: Path) -> None:
    """One file a table."""
    for table in tables:
        with write_whole(folder / csv_name(study, table)) as path:
            path.write_text(table.csv(), encoding="utf-8")


def _split(title: str, cells: Sequence[str]) -> list[list[str]]:
    """Columns of a CSV for one of a page."""
    plain = [_plain(cell) for cell in cells]
    found = [_CELL.fullmatch(cell) for cell in plain]
    values, halves, notes = [], [], []
    for cell, match in zip(plain, found, strict=True):
        value, half, note = match.groups() if match else (cell, None, None)
        values.append(value)
        halves.append(half or "")
        notes.append(note or "")
    columns = [[title, *values]]
    if any(halves):
        columns.append([f"{title}, ±", *halves])
    ranges = [_RANGE.fullmatch(note) for note in notes]
    if any(ranges):
        columns.append([f"{title}, from", *(match[1] if match else "" for match in ranges)])
        columns.append([f"{title}, to", *(match[2] if match else "" for match in ranges)])
        notes = ["" if match else note for note, match in zip(notes, ranges, strict=True)]
    if any(notes):
        columns.append([f"{title}, of", *notes])
    return columns


def _plain(cell: str) -> str:
    """Without emphasis, dashes for nothing, and commas of thousands."""
    cell = cell.strip("*")
    if _THOUSANDS.fullmatch(cell):
        return cell.replace(",", "")
    return "" if cell == "–" else cell
