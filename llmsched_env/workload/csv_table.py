"""CSV files as users write them: read whole, checked cell by cell, every complaint with its line and column."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation, Overflow
from pathlib import Path

from llmsched_env.errors import FileFormatError
from llmsched_env.workload.headers import guesses, others, remedy, values
from llmsched_env.workload.text_file import read_text

__all__ = ["Cell", "CsvTable", "other_separator", "read_table"]

EXACT = Context(prec=60, traps=[InvalidOperation, Overflow])
"""Decimal arithmetic that no user's context changes; rounds half to even."""

SAMPLED_ROWS = 1000
"""Rows among which a cell is looked for that tells what a column holds."""


@dataclass(frozen=True)
class CsvTable:
    """A CSV file that has a sound header and at least the required columns.

    Attributes:
        path: the file.
        text: its contents, without a byte order mark.
        header: its column names, surrounding blanks removed.
        index: position of each known column that it has.
    """

    path: Path
    text: str
    header: tuple[str, ...]
    index: dict[str, int]

    def records(self) -> Iterator[list[str]]:
        """Data records as the csv module splits them, unchecked; blank lines come as empty lists.

        Raises:
            csv.Error: quotes that do not close, or a cell of absurd length.
        """
        reader = csv.reader(io.StringIO(self.text, newline=""), strict=True)
        for record in reader:
            if record:  # the header; blank lines may stand before it
                break
        return reader

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Data records with the number of the line on which each ends; blank lines are skipped.

        Raises:
            FileFormatError: a record with another number of cells than the header, bad quotes, or no record at all.
        """
        reader = csv.reader(io.StringIO(self.text, newline=""), strict=True)
        width, seen = len(self.header), -1
        try:
            for record in reader:
                if not record:
                    continue
                seen += 1
                if seen == 0:
                    continue
                if len(record) != width:
                    raise FileFormatError(
                        self.path,
                        f"has {len(record)} cells but the header names {width} columns: write one cell for each.",
                        line=reader.line_num,
                    )
                yield reader.line_num, record
        except csv.Error as error:
            raise _bad_quotes(self.path, error, reader.line_num) from error
        if seen == 0:
            raise FileFormatError(self.path, "has a header but no rows: add one line for each row.", line=1)


def read_table(path: Path | str, *, required: Sequence[str], optional: Sequence[str] = ()) -> CsvTable:
    """Read a UTF-8 CSV file, plain or compressed with gzip, and check its header.

    Columns may stand in any order. Unknown ones are ignored, unless the name must mean a known column that the file
    lacks: a typo, other letters, another unit, what another system calls it, or a word for a time above numbers or
    dates where it has no ``arrival_s``.

    Raises:
        PathError: no such file, a folder, or no permission.
        FileFormatError: not UTF-8, damaged, empty, a column that is missing, doubled or misspelt.
    """
    path = Path(path)
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        first = next((record for record in reader if record), None)
    except csv.Error as error:
        raise _bad_quotes(path, error, reader.line_num) from error
    wanted = ", ".join(required)
    if first is None:
        raise FileFormatError(path, f"is empty: start it with a header that names the columns {wanted}.", line=1)
    header, line = tuple(cell.strip() for cell in first), reader.line_num
    known = (*required, *optional)
    for name in known:
        if header.count(name) > 1:
            raise FileFormatError(path, "appears more than once in the header: keep one.", line=line, column=name)
    kinds = {} if set(known) <= set(header) else {name: values(cell) for name, cell in _samples(reader, header)}
    dates = {name for name, kind in kinds.items() if kind == "dates"}
    guessed = guesses(header, required, optional, text={name for name, kind in kinds.items() if kind == "text"})
    for name in required:
        if name not in header:
            raise FileFormatError(path, _missing(header, name, guessed, wanted, dates), line=line, column=name)
    for name, close in guessed.items():
        raise FileFormatError(
            path,
            f"is not a known column. Did you mean {name!r}? {remedy(name, close, dates)} "
            f"Remove it if it is something else.",
            line=line,
            column=close,
        )
    return CsvTable(path, text, header, {name: header.index(name) for name in known if name in header})


@dataclass(frozen=True, slots=True)
class Cell:
    """The text of one cell, and where it stands."""

    table: CsvTable
    line: int
    column: str
    text: str

    def error(self, problem: str) -> FileFormatError:
        """An error that names file, line and column."""
        return FileFormatError(self.table.path, problem, line=self.line, column=self.column)

    def whole_number(self, least: int, most: int) -> int:
        """A whole number in ``[least, most]``; ``12.0`` is taken for 12.

        Raises:
            FileFormatError: anything else.
        """
        meaning = f"a whole number in [{least}, {most}]"
        value = self._decimal(meaning)
        if not least <= value <= most:
            raise self.error(f"{_shown(self.text)} is out of range: write {meaning}.")
        if value != value.to_integral_value():
            raise self.error(f"{_shown(self.text)} is not whole: write {meaning}.")
        return int(value)

    def scaled_number(self, digits: int, least: int, most: int, meaning: str) -> int:
        """A decimal number in ``[least, most]``, times ``10**digits``, rounded half to even: no float in between.

        Args:
            digits: decimal places kept.
            least: smallest value allowed.
            most: largest value allowed.
            meaning: what the number is, for messages ("seconds since the first request").

        Raises:
            FileFormatError: not a finite number, or out of range.
        """
        value = self._decimal(meaning)
        if not least <= value <= most:
            raise self.error(f"{_shown(self.text)} is out of range: write {meaning}, in [{least}, {most}].")
        return int(EXACT.to_integral_value(EXACT.scaleb(value, digits)))

    def _decimal(self, meaning: str) -> Decimal:
        text = self.text.strip()
        if not text:
            raise self.error(f"is blank: write {meaning}.")
        value = None
        # Decimal also takes underscores and other scripts' digits, which no other reader of the file would.
        if text.isascii() and "_" not in text:
            with contextlib.suppress(InvalidOperation, Overflow):
                value = EXACT.create_decimal(text)
        if value is None or not value.is_finite():
            raise self.error(f"{_shown(self.text)} is not a finite number: write {meaning}.")
        return value


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _samples(records: Iterator[list[str]], header: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(column, cell) of the first cells that are not blank, among the first rows; blank where there are none."""
    seen = dict.fromkeys(header, "")
    with contextlib.suppress(csv.Error):  # for the reader of the rows to explain
        for cells in itertools.islice(records, SAMPLED_ROWS):
            seen.update((name, cell.strip()) for name, cell in zip(header, cells, strict=False) if not seen[name])
    yield from seen.items()


def other_separator(header: Sequence[str]) -> str | None:
    """What is said of a header whose cells are not separated by commas; ``None`` where they are, or it has one cell."""
    for separator, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and separator in header[0]:
            return f"the header is separated by {called}. Separate cells by commas."
    return None


def _missing(header: tuple[str, ...], name: str, guessed: dict[str, str], wanted: str, dates: Collection[str]) -> str:
    problem = other_separator(header)
    if problem is not None:
        return f"is missing: {problem}"
    if name in guessed:
        close = guessed[name]
        return (
            f"is missing, but there is {close!r}. Did you mean that? "
            f"{remedy(name, close, dates)}{others(guessed, name, dates)}"
        )
    shown = ", ".join(_shown(cell) for cell in header[:10])
    return f"is missing: the header has {shown}. Columns needed: {wanted}."


def _bad_quotes(path: Path, error: csv.Error, line: int) -> FileFormatError:
    return FileFormatError(path, f"cannot be split into cells ({error}): close or remove its quotes.", line=line)
