"""The user's own requests, from a CSV file."""

from __future__ import annotations

import csv
import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, Overflow
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import ConfigError, FileFormatError
from llmsched_env.workload.csv_table import EXACT, Cell, CsvTable, read_table
from llmsched_env.workload.draws import Stream, permutation, raw_words, with_replacement
from llmsched_env.workload.protocol import check_case, check_num_requests, check_split
from llmsched_env.workload.requests import MAX_TOKENS, Requests
from llmsched_env.workload.text_file import file_name, file_version
from llmsched_env.workload.times import MAX_CLOCK_S, check_gaps, since_first

__all__ = ["CsvWorkload", "read_requests_csv"]

FAMILY = "csv"
TOKENS = ("prompt_tokens", "output_tokens", "predicted_tokens")
NS_DIGITS = 9
SECONDS = "seconds of any clock, from 0 or since 1970 (milliseconds divided by 1000, nanoseconds by 10^9)"

CHUNK_ROWS = 2**16
"""Rows converted at a time: bounds the memory that Python strings take."""

Columns = dict[str, NDArray[np.int64]]


def read_requests_csv(path: Path | str) -> Requests:
    """Read requests from a CSV file with a header.

    Columns, in any order: ``prompt_tokens`` and ``output_tokens`` (whole numbers of at least 1), optionally
    ``arrival_s`` (seconds of any clock, decimal, never decreasing; kept to the nanosecond without passing through a
    float, and counted from the first row) and ``predicted_tokens`` (an estimate of ``output_tokens``, a whole number of
    at least 1). Other columns are ignored, unless their name must mean one of these. UTF-8, with or without byte order
    mark, any line ends, plain or compressed with gzip; blank lines are skipped.

    Raises:
        PathError: the file cannot be read.
        FileFormatError: it can, but a column is missing or misspelt, or a cell is not what its column asks for; names
            line, column and remedy.

    Warns:
        UnitWarning: arrivals so far apart that they may be in milliseconds.
    """
    table = read_table(path, required=TOKENS[:2], optional=("arrival_s", TOKENS[2]))
    columns = _read_fast(table)
    if columns is None:
        # Either something is wrong, and the careful pass says where, or a number is written in an unusual way.
        columns = _read_carefully(table)
    if "arrival_s" in columns:
        check_gaps(table.path, columns["arrival_s"], "arrival_s")
        columns["arrival_s"] = since_first(table.path, columns["arrival_s"])
    return Requests.of(
        columns["prompt_tokens"],
        columns["output_tokens"],
        release_ns=columns.get("arrival_s"),
        predicted_tokens=columns.get("predicted_tokens"),
    )


def _read_fast(table: CsvTable) -> Columns | None:
    """All known columns, a chunk at a time; ``None`` at the first sign of anything unusual."""
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in table.index}
    try:
        for chunk in chunks(table):
            cells = list(zip(*chunk, strict=True))
            if len(cells) != len(table.header):
                return None
            for name, i in table.index.items():
                values = fast_seconds(cells[i]) if name == "arrival_s" else fast_tokens(cells[i])
                if values is None:
                    return None
                parts[name].append(values)
    except (ValueError, OverflowError, InvalidOperation, Overflow, csv.Error):
        return None
    if not parts["prompt_tokens"]:
        return None
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    if "arrival_s" in columns and bool((np.diff(columns["arrival_s"]) < 0).any()):
        return None
    return columns


def chunks(table: CsvTable) -> Iterator[list[list[str]]]:
    """Data records, ``CHUNK_ROWS`` at a time, unchecked and without blank lines."""
    records = filter(None, table.records())
    while chunk := list(itertools.islice(records, CHUNK_ROWS)):
        yield chunk


def fast_tokens(cells: tuple[str, ...], least: int = 1) -> NDArray[np.int64] | None:
    """(n,) token counts of at least ``least``, or ``None`` where a cell is unusual.

    Raises:
        ValueError: a cell that is no integer.
    """
    # int() also takes underscores and other scripts' digits; the careful pass refuses both.
    joined = "".join(cells)
    if not joined.isascii() or "_" in joined:
        return None
    values = np.array(list(map(int, cells)), np.int64)
    return values if values.min() >= least and values.max() <= MAX_TOKENS else None


def fast_seconds(cells: tuple[str, ...]) -> NDArray[np.int64] | None:
    """(n,) seconds as ns, or ``None`` where a cell is unusual.

    Raises:
        decimal.InvalidOperation: a cell that is no number.
    """
    joined = "".join(cells)
    # An exponent could make a number of a million digits: left to the careful pass, which checks the range first.
    if not joined.isascii() or "_" in joined or "e" in joined or "E" in joined:
        return None
    seconds = list(map(Decimal, map(str.strip, cells)))
    if not all(0 <= value <= MAX_CLOCK_S for value in seconds):
        return None
    scaleb, whole = EXACT.scaleb, EXACT.to_integral_value
    return np.array([int(whole(scaleb(value, NS_DIGITS))) for value in seconds], np.int64)


def _read_carefully(table: CsvTable) -> Columns:
    """The same columns, cell by cell.

    Raises:
        FileFormatError: at the first cell in the order of the file that is wrong.
    """
    columns: dict[str, list[int]] = {name: [] for name in table.index}
    for line, cells in table.rows():
        for name, i in table.index.items():
            columns[name].append(_number(Cell(table, line, name, cells[i])))
        arrivals = columns.get("arrival_s", [])
        if len(arrivals) > 1 and arrivals[-1] < arrivals[-2]:
            problem = f"{cells[table.index['arrival_s']].strip()} is earlier than the row before: sort by arrival."
            raise FileFormatError(table.path, problem, line=line, column="arrival_s")
    return {name: np.array(values, np.int64) for name, values in columns.items()}


def _number(cell: Cell) -> int:
    if cell.column in TOKENS:
        return cell.whole_number(1, MAX_TOKENS)
    return cell.scaled_number(NS_DIGITS, 0, MAX_CLOCK_S, SECONDS)


@dataclass(frozen=True)
class CsvWorkload:
    """The requests of a CSV file (columns: :func:`read_requests_csv`).

    There is one recorded case, so splits mean nothing here: every split gives the same. Case 0 is the file as it
    stands; case k > 0 is its requests in another order, arrival times staying where they are. ``mean_output_tokens``
    is the mean of the file. A scaled case draws rows with replacement, for a file without arrival times.

    The file is read at the first use, and again when its size or time of modification has changed.

    Attributes:
        path: the file.

    Raises:
        ConfigError: a path that is not a path.
    """

    path: Path

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise ConfigError(f"path = {self.path!r} is not a path: pass a str or a Path.")
        object.__setattr__(self, "path", Path(self.path))

    @property
    def name(self) -> str:
        """What tables call it: the file's name without its ending."""
        return file_name(self.path)

    @property
    def num_requests(self) -> int:
        """Natural size of a case: the rows of the file, which is read for this."""
        return len(self._file())

    def pool_size(self, split: str) -> int | None:
        """Always 1: the file as it stands."""
        check_split(split)
        return 1

    def requests(self, split: str, number: int, *, num_requests: int | None = None) -> Requests:
        """The requests of one case; see :class:`~llmsched_env.workload.protocol.Workload`.

        Raises:
            PathError: the file cannot be read.
            FileFormatError: it can, but not understood.
            ConfigError: another size than the file's asked of a file with arrival times, beside the usual causes.
        """
        split, number = check_case(split, number)
        count = None if num_requests is None else check_num_requests(num_requests)
        file = self._file()
        if count is None or count == len(file):
            if number == 0:
                return file
            rows = permutation(raw_words(FAMILY, "train", number, Stream.ORDER, len(file)))
            return _take(file, rows, file.release_ns)
        if file.release_ns[-1] > 0:
            raise ConfigError(
                f"num_requests = {count} but {self.path} has {len(file)} requests with arrival times: how a trace is "
                f"stretched decides its load, so resample the file yourself, or leave out arrival_s."
            )
        rows = with_replacement(raw_words(FAMILY, "train", number, Stream.RESAMPLE, count), len(file))
        return _take(file, rows, np.zeros(count, np.int64))

    @property
    def version(self) -> tuple[int, int]:
        """Time of modification in ns and size in bytes: what tells one state of the file from another.

        Raises:
            PathError: the file cannot be read.
        """
        return file_version(self.path)

    def _file(self) -> Requests:
        return _read_once(self.path.absolute(), *self.version, self.path)


@functools.lru_cache(maxsize=8)
def _read_once(absolute: Path, modified_ns: int, size_bytes: int, shown: Path) -> Requests:
    return read_requests_csv(shown)


def _take(file: Requests, rows: NDArray[np.int64], release_ns: NDArray[np.int64]) -> Requests:
    predicted = None if file.predicted_tokens is None else file.predicted_tokens[rows]
    return Requests.of(
        file.prompt_tokens[rows],
        file.output_tokens[rows],
        release_ns=release_ns,
        predicted_tokens=predicted,
        mean_output_tokens=file.mean_output_tokens,
    )
