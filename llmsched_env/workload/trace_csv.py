"""Readers of traces in CSV: whole columns, every complaint with its line and column."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import InvalidOperation, Overflow
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from llmsched_env.workload import from_csv
from llmsched_env.workload.csv_table import Cell, CsvTable, read_table
from llmsched_env.workload.requests import MAX_TOKENS
from llmsched_env.workload.times import MAX_CLOCK_S, check_gaps
from llmsched_env.workload.trace import Trace
from llmsched_env.workload.trace_json import NO_OUTPUT

__all__ = ["CSV_COLUMNS", "read_carefully", "read_fast", "read_own", "read_published"]

CSV_COLUMNS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
        "csv": ("arrival_s", "prompt_tokens", "output_tokens"),
        "vidur": ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
        "servegen": ("timestamp", "input_tokens", "output_tokens"),
    }
)
"""Format -> names of the columns that hold time, prompt and output."""

MAY_LACK_TIMES = ("vidur",)
"""Formats that also come as lengths alone."""

SESSIONS: Mapping[str, str] = MappingProxyType({"burstgpt": "Session ID", "vidur": "session_id"})
"""Format -> the column that names the conversation, in some of its files."""

IMAGES = "NumImages"

DATE = re.compile(
    r"(19[7-9][0-9]|20[0-9][0-9])-([0-9]{2})-([0-9]{2})[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)
DATE_MEANING = "a time such as 2023-11-16 18:17:03.9799600, with a zone (+00:00) or without (UTC)"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UTC_ENDINGS = ("+00:00", "Z")

Column = NDArray[np.int64]


def read_own(path: Path) -> Trace:
    """A CSV file of this package's own columns, with times.

    Raises:
        PathError, FileFormatError: as :func:`~llmsched_env.workload.read_trace`.
    """
    read_table(path, required=CSV_COLUMNS["csv"])  # a trace has times, where other files may do without
    file = from_csv.read_requests_csv(path)
    predicted = None if file.predicted_tokens is None else file.predicted_tokens.astype(np.int64)
    prompt, output = file.prompt_tokens.astype(np.int64), file.output_tokens.astype(np.int64)
    return Trace("csv", file.release_ns, prompt, output, predicted)


def read_published(path: Path, kind: str, skip_failed: bool) -> Trace:
    """A CSV file in one of the published formats.

    Raises:
        PathError, FileFormatError: as :func:`~llmsched_env.workload.read_trace`.
    """
    time_name, *lengths = CSV_COLUMNS[kind]
    optional = (time_name,) if kind in MAY_LACK_TIMES else ()
    table = read_table(path, required=lengths if optional else CSV_COLUMNS[kind], optional=optional)
    columns = read_fast(table, kind, skip_failed)
    if columns is None:
        # Either something is wrong, and the careful pass says where, or a number is written in an unusual way.
        columns = read_carefully(table, kind, skip_failed)
    notes: list[str] = []
    timed = time_name in table.index
    if kind == "azure":
        if IMAGES in table.header:
            notes.append(f"{IMAGES} is not read: an image costs what ContextTokens counts of it.")
    elif timed:
        notes.append(f"{time_name} is read as seconds.")
        check_gaps(path, columns[0], time_name)
    else:
        notes.append(f"the file has no {time_name}: all requests arrive at 0.")
    sessions = _sessions(table, SESSIONS[kind]) if SESSIONS.get(kind) in table.header else None
    return Trace(kind, *columns, has_times=timed, notes=tuple(notes), session_ids=sessions)


def _sessions(table: CsvTable, name: str) -> Column:
    """(n,) a number for each name, in the order of appearance; -1 for a blank."""
    at = table.header.index(name)
    number = {"": -1}
    found = [number.setdefault(cells[at].strip(), len(number) - 1) for cells in filter(None, table.records())]
    return np.array(found, np.int64)


def read_fast(table: CsvTable, kind: str, skip_failed: bool) -> tuple[Column, Column, Column] | None:
    """Time, prompt, output, a chunk at a time; ``None`` at the first sign of anything unusual."""
    time_name, *names = CSV_COLUMNS[kind]
    times = table.index.get(time_name)
    prompts, outputs = (table.index[name] for name in names)
    seconds = _fast_dates if kind == "azure" else from_csv.fast_seconds
    least = 0 if skip_failed else 1
    parts: list[tuple[Column, Column, Column]] = []
    try:
        for chunk in from_csv.chunks(table):
            cells = list(zip(*chunk, strict=True))
            if len(cells) != len(table.header):
                return None
            prompt, output = (from_csv.fast_tokens(cells[i], least) for i in (prompts, outputs))
            time = np.zeros(len(chunk), np.int64) if times is None else seconds(cells[times])
            if time is None or prompt is None or output is None or bool((prompt[output > 0] == 0).any()):
                return None
            parts.append((time, prompt, output))
    except (ValueError, OverflowError, InvalidOperation, Overflow, csv.Error):
        return None
    if not parts:
        return None
    time, prompt, output = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return None if bool((np.diff(time) < 0).any()) else (time, prompt, output)


def _fast_dates(cells: tuple[str, ...]) -> Column | None:
    """(n,) ns since 1970 from dates in UTC; ``None`` where a cell is unusual."""
    texts = [cell.strip() for cell in cells]
    for ending in UTC_ENDINGS:
        if texts[0].endswith(ending):
            if not all(text.endswith(ending) for text in texts):
                return None
            texts = [text.removesuffix(ending) for text in texts]
    match = DATE.fullmatch
    for text in texts:
        parts = match(text)
        if parts is None or parts[8] is not None:
            return None
    return np.array(texts, "datetime64[ns]").astype(np.int64)  # ValueError for a 31st of April


def read_carefully(table: CsvTable, kind: str, skip_failed: bool) -> tuple[Column, Column, Column]:
    """The same columns, cell by cell.

    Raises:
        FileFormatError: at the first cell in the order of the file that is wrong.
    """
    names = CSV_COLUMNS[kind]
    timed = names[0] in table.index
    read_time: Callable[[Cell], int] = _date if kind == "azure" else _seconds
    times: list[int] = []
    prompts: list[int] = []
    outputs: list[int] = []
    for line, cells in table.rows():
        *time, prompt, output = (Cell(table, line, name, cells[table.index[name]]) for name in names[not timed :])
        times.append(read_time(time[0]) if timed else 0)
        if len(times) > 1 and times[-1] < times[-2]:
            raise time[0].error(f"{time[0].text.strip()} is earlier than the row before: sort by time.")
        outputs.append(output.whole_number(0, MAX_TOKENS))
        if outputs[-1] == 0 and not skip_failed:
            raise output.error(NO_OUTPUT)
        prompts.append(prompt.whole_number(1 if outputs[-1] else 0, MAX_TOKENS))
    return np.array(times, np.int64), np.array(prompts, np.int64), np.array(outputs, np.int64)


def _seconds(cell: Cell) -> int:
    return cell.scaled_number(from_csv.NS_DIGITS, 0, MAX_CLOCK_S, from_csv.SECONDS)


def _date(cell: Cell) -> int:
    match = DATE.fullmatch(cell.text.strip())
    shown = repr(cell.text.strip()[:40])
    if match is None:
        raise cell.error(f"{shown} is not a time: write {DATE_MEANING}.")
    *numbers, fraction, zone = match.groups()
    try:
        moment = datetime(*map(int, numbers), tzinfo=UTC) - EPOCH  # type: ignore[arg-type, misc]
    except ValueError as error:
        raise cell.error(f"{shown} is not in the calendar ({error}): write {DATE_MEANING}.") from None
    if zone is not None and zone != "Z":
        ahead = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
        moment -= -ahead if zone[0] == "-" else ahead
    return (moment.days * 86400 + moment.seconds) * 10**9 + int((fraction or "").ljust(9, "0"))
