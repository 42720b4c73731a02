"""Readers of recorded traces in their published formats: whole columns, every complaint with its line and column."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation, Overflow
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import ConfigError, FileFormatError, UnknownNameError, WorkloadError
from llmsched_env.workload import from_csv
from llmsched_env.workload.csv_table import EXACT, Cell, CsvTable, read_table
from llmsched_env.workload.headers import means
from llmsched_env.workload.requests import MAX_TOKENS
from llmsched_env.workload.text_file import read_start, read_text
from llmsched_env.workload.times import (
    FACTORS,
    MAX_CLOCK_S,
    QWEN_KEY,
    TimeUnit,
    check_gaps,
    json_unit,
    mooncake_blocks,
    since_first,
)

__all__ = ["FORMATS", "Trace", "TraceFormat", "detect_format", "read_trace"]

TraceFormat = Literal["azure", "burstgpt", "mooncake", "csv"]
FORMATS: tuple[TraceFormat, ...] = get_args(TraceFormat)

COLUMNS: dict[str, tuple[str, str, str]] = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "csv": ("arrival_s", "prompt_tokens", "output_tokens"),
    "mooncake": ("timestamp", "input_length", "output_length"),
}
"""Format -> names of the columns (keys, for Mooncake) that hold time, prompt and output."""

SAME = {"timestamp": "arrival_s", "input_length": "prompt_tokens", "output_length": "output_tokens"}
"""Mooncake's key -> this project's name for the same."""

SNIFFED_BYTES = 2**16

DATE = re.compile(
    r"(19[7-9][0-9]|20[0-9][0-9])-([0-9]{2})-([0-9]{2})[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)
DATE_MEANING = "a time such as 2023-11-16 18:17:03.9799600, with a zone (+00:00) or without (UTC)"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

NO_OUTPUT = "0 output tokens: remove the row, or read the file with skip_failed=True, which counts such rows."

Column = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trace:
    """A recording.

    Attributes:
        release_ns: (n,) since the first row of the file, never decreasing.
        prompt_tokens: (n,) at least 1.
        output_tokens: (n,) at least 1.
        predicted_tokens: (n,) at least 1, or ``None`` where the file has none.
        skipped: rows left out because they have no output.
    """

    release_ns: Column
    prompt_tokens: Column
    output_tokens: Column
    predicted_tokens: Column | None
    skipped: int


def detect_format(path: Path) -> TraceFormat:
    """The format of a trace, from its first line alone.

    Raises:
        PathError: the file cannot be read.
        FileFormatError: empty, or the beginning of no known format.
    """
    start = read_start(path, SNIFFED_BYTES)
    if not start:
        raise FileFormatError(path, f"is empty: {_known_formats()}", line=1)
    if start.startswith("{"):
        return "mooncake"
    if start.startswith("["):
        raise FileFormatError(path, "is one JSON array: write one object a line (jq -c '.[]').", line=1)
    cells = [cell.strip().strip('"') for cell in start.splitlines()[0].split(",")]
    header = {cell.casefold() for cell in cells}
    # Azure and BurstGPT share the name of their time, which therefore tells nothing.
    hits = {
        name: sum(column.casefold() in header for column in COLUMNS[name] if column.casefold() != "timestamp")
        for name in ("azure", "burstgpt", "csv")
    }
    best = max(hits, key=lambda name: hits[name])
    if hits[best] == 0 and any(means(name, cell) for name in COLUMNS["csv"][1:] for cell in cells):
        return "csv"  # by another name, which its reader explains
    if hits[best] == 0:
        shown = start.splitlines()[0][:80]
        raise FileFormatError(path, f"begins with {shown!r}, which is no known format: {_known_formats()}", line=1)
    return best  # type: ignore[return-value]


def read_trace(path: Path, kind: TraceFormat, *, skip_failed: bool, unit: TimeUnit | None = None) -> Trace:
    """Read a trace in one of :data:`FORMATS`.

    Args:
        path: the file.
        kind: its format.
        unit: of the timestamps of "mooncake", the one format for which two are in use; ``None``: as the file shows.
        skip_failed: leave out rows with 0 output tokens, and count them; else they are an error.

    Raises:
        UnknownNameError: no such format.
        PathError: the file cannot be read.
        FileFormatError: it can, but not understood; names line, column and remedy.
        WorkloadError: no row has output.
        ConfigError: a unit for another format.
    """
    if kind not in FORMATS:
        raise UnknownNameError("trace format", kind, FORMATS)
    if unit is not None and kind != "mooncake":
        raise ConfigError(f"unit = {unit!r} for {path}, of format {kind!r}, whose times are in one unit: leave it out.")
    predicted = None
    if kind == "mooncake":
        time, prompt, output = _read_mooncake(path, skip_failed, unit)
    elif kind == "csv":
        read_table(path, required=COLUMNS["csv"])  # a trace has times, where other files may do without
        file = from_csv.read_requests_csv(path)
        time, prompt, output = file.release_ns, file.prompt_tokens.astype(np.int64), file.output_tokens.astype(np.int64)
        predicted = None if file.predicted_tokens is None else file.predicted_tokens.astype(np.int64)
    else:
        table = read_table(path, required=COLUMNS[kind])
        columns = _read_fast(table, kind, skip_failed)
        if columns is None:
            columns = _read_carefully(table, kind, skip_failed)
        time, prompt, output = columns
        if kind == "burstgpt":
            check_gaps(path, time, COLUMNS[kind][0])
    has_output = output > 0
    if not has_output.any():
        raise WorkloadError(f"{path} has {len(output)} rows and none of them has output tokens: nothing can be served.")
    skipped = int(len(has_output) - has_output.sum())
    return Trace(since_first(path, time)[has_output], prompt[has_output], output[has_output], predicted, skipped)


def _known_formats() -> str:
    lists = "; ".join(f"{name}: {', '.join(COLUMNS[name])}" for name in FORMATS)
    return f"start it with a header (JSON objects for mooncake) that names the columns of one format ({lists})."


def _read_fast(table: CsvTable, kind: str, skip_failed: bool) -> tuple[Column, Column, Column] | None:
    """Time, prompt, output, a chunk at a time; ``None`` at the first sign of anything unusual."""
    where = [table.index[name] for name in COLUMNS[kind]]
    seconds = _fast_dates if kind == "azure" else from_csv.fast_seconds
    least = 0 if skip_failed else 1
    parts: list[tuple[Column, Column, Column]] = []
    try:
        for chunk in from_csv.chunks(table):
            cells = list(zip(*chunk, strict=True))
            if len(cells) != len(table.header):
                return None
            time, prompt, output = (
                seconds(cells[where[0]]),
                from_csv.fast_tokens(cells[where[1]], least),
                from_csv.fast_tokens(cells[where[2]], least),
            )
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
    if texts[0].endswith("+00:00"):
        if not all(text.endswith("+00:00") for text in texts):
            return None
        texts = [text[:-6] for text in texts]
    match = DATE.fullmatch
    for text in texts:
        parts = match(text)
        if parts is None or parts[8] is not None:
            return None
    return np.array(texts, "datetime64[ns]").astype(np.int64)  # ValueError for a 31st of April


def _read_carefully(table: CsvTable, kind: str, skip_failed: bool) -> tuple[Column, Column, Column]:
    """The same columns, cell by cell.

    Raises:
        FileFormatError: at the first cell in the order of the file that is wrong.
    """
    names = COLUMNS[kind]
    read_time: Callable[[Cell], int] = _date if kind == "azure" else _seconds
    times: list[int] = []
    prompts: list[int] = []
    outputs: list[int] = []
    for line, cells in table.rows():
        time, prompt, output = (Cell(table, line, name, cells[table.index[name]]) for name in names)
        times.append(read_time(time))
        if len(times) > 1 and times[-1] < times[-2]:
            raise time.error(f"{time.text.strip()} is earlier than the row before: sort by time.")
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


def _read_mooncake(path: Path, skip_failed: bool, unit: TimeUnit | None) -> tuple[Column, Column, Column]:
    """Time, prompt, output of one JSON object a line.

    Raises:
        PathError, FileFormatError: as :func:`read_trace`.
    """
    text = read_text(path, "JSONL")
    decode = json.JSONDecoder(parse_float=Decimal, parse_constant=Decimal).decode
    time_key, prompt_key, output_key = COLUMNS["mooncake"]
    least = 0 if skip_failed else 1
    times: list[int | Decimal] = []
    prompts: list[int] = []
    outputs: list[int] = []
    most = MAX_CLOCK_S * 1000
    before: int | Decimal = 0
    qwen, mooncake = False, True
    for line, record in enumerate(text.split("\n"), start=1):
        if not record or record.isspace():
            continue
        try:
            entry = decode(record)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise FileFormatError(path, f"is not JSON ({error}): write one object a line.", line=line) from None
        if not isinstance(entry, dict):
            raise FileFormatError(path, f"is not a JSON object: write {_mooncake_example()}", line=line)
        try:
            time, prompt, output = entry[time_key], entry[prompt_key], entry[output_key]
        except KeyError as error:
            key = str(error.args[0])
            keys = ", ".join(map(repr, list(entry)[:10]))
            close = next((other for other in entry if other not in SAME and means(SAME[key], other)), None)
            hint = "" if close is None else f"Did you mean {close!r}? "
            problem = f"is missing: the object has {keys or 'no keys'}. {hint}Write {_mooncake_example()}"
            raise FileFormatError(path, problem, line=line, column=key) from None
        if not (type(time) is int and 0 <= time <= most):
            time = _json_number(path, line, time_key, time, 0, most, "milliseconds or seconds from 0 or since 1970")
        if time < before:
            problem = f"{time} is earlier than the row before: sort by time."
            raise FileFormatError(path, problem, line=line, column=time_key)
        before = time
        qwen = qwen or QWEN_KEY in entry
        if not (type(output) is int and least <= output <= MAX_TOKENS):
            output = _json_tokens(path, line, output_key, output, 0)
            if output < least:
                raise FileFormatError(path, NO_OUTPUT, line=line, column=output_key)
        if not (type(prompt) is int and 1 <= prompt <= MAX_TOKENS):
            prompt = _json_tokens(path, line, prompt_key, prompt, 1 if output else 0)
        mooncake = mooncake and mooncake_blocks(entry.get("hash_ids"), prompt)
        times.append(time)
        prompts.append(prompt)
        outputs.append(output)
    if not times:
        raise FileFormatError(path, f"is empty: write {_mooncake_example()}", line=1)
    unit_given = unit is not None
    unit = unit or json_unit(path, float(times[-1] - times[0]), len(times), qwen=qwen, mooncake=mooncake)
    if unit == "s" and times[-1] > MAX_CLOCK_S:
        problem = f"{times[-1]} is out of range: write seconds, in [0, {MAX_CLOCK_S}], or say unit='ms'."
        raise FileFormatError(path, problem, column=time_key)
    times_ns = _ns(times, FACTORS[unit])
    if unit == "s" and not unit_given:
        check_gaps(path, times_ns, time_key)
    return times_ns, np.array(prompts, np.int64), np.array(outputs, np.int64)


def _ns(times: list[int | Decimal], factor: int) -> Column:
    """(n,) times in ns, rounded half to even, from times in units of ``factor`` ns."""
    multiply, whole = EXACT.multiply, EXACT.to_integral_value
    exact = (time * factor if type(time) is int else int(whole(multiply(time, factor))) for time in times)
    return np.fromiter(exact, np.int64, len(times))


def _mooncake_example() -> str:
    return '{"timestamp": 27482, "input_length": 6955, "output_length": 52}, one object a line.'


def _json_tokens(path: Path, line: int, key: str, value: Any, least: int) -> int:
    meaning = "a whole number of tokens"
    number = _json_number(path, line, key, value, least, MAX_TOKENS, meaning)
    if number != int(number):
        raise FileFormatError(path, f"{str(value)[:40]} is not whole: write {meaning}.", line=line, column=key)
    return int(number)


def _json_number(path: Path, line: int, key: str, value: Any, least: int, most: int, meaning: str) -> int | Decimal:
    shown = repr(value) if isinstance(value, str) else str(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not Decimal(value).is_finite():
        problem = f"{shown} is not a finite number: write {meaning}, in [{least}, {most}]."
    elif not least <= value <= most:
        problem = f"{shown} is out of range: write {meaning}, in [{least}, {most}]."
    else:
        return value
    raise FileFormatError(path, problem, line=line, column=key)
