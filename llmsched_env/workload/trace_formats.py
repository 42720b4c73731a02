"""Formats of recorded traces: which one a file is in, by its names of columns or keys, and reading it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from llmsched_env.errors import ConfigError, FileFormatError, UnknownNameError, WorkloadError
from llmsched_env.workload.csv_table import other_separator
from llmsched_env.workload.headers import means
from llmsched_env.workload.json_text import first_keys
from llmsched_env.workload.text_file import read_start
from llmsched_env.workload.times import UNITS, TimeUnit, since_first
from llmsched_env.workload.trace import Trace
from llmsched_env.workload.trace_csv import CSV_COLUMNS, MAY_LACK_TIMES, read_own, read_published
from llmsched_env.workload.trace_json import RECORD_KEYS, RESULT_KEYS, SAME, read_records, read_result
from llmsched_env.workload.trace_text import CUSTOM_KEYS, SHAREGPT_KEYS, read_custom, read_sharegpt

__all__ = ["COLUMNS", "FORMATS", "TraceFormat", "detect_format", "read_trace"]

TraceFormat = Literal[
    "azure", "burstgpt", "csv", "vidur", "servegen", "mooncake", "qwen", "vllm", "vllm-custom", "sharegpt"
]
FORMATS: tuple[TraceFormat, ...] = get_args(TraceFormat)

JSON_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mooncake": RECORD_KEYS,
        "qwen": ("chat_id", *RECORD_KEYS),
        "vllm": RESULT_KEYS,
        "vllm-custom": CUSTOM_KEYS,
        "sharegpt": SHAREGPT_KEYS,
    }
)

COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType({**CSV_COLUMNS, **JSON_KEYS})
"""Format -> names of the columns (keys, for JSON) that it is known by and that are read."""

SUMMARY_KEYS = ("total_input_tokens", "request_throughput", "num_prompts", "mean_ttft_ms")
"""Keys of a result of vLLM's benchmark, also of one without requests."""

OPTIONAL = {"vllm": ("start_times",), **{name: CSV_COLUMNS[name][:1] for name in MAY_LACK_TIMES}}
"""Format -> columns that it need not have."""

WHOLE_ONLY = ("servegen",)
"""Formats whose names any table may have: only all of them together tell."""

SKIP_FAILED = ("burstgpt", "vllm", "sharegpt")
"""Formats in which rows without output are requests that failed, and are left out unless the user says otherwise."""

TWO_UNITS = ("mooncake", "qwen")
TEXTS = ("vllm-custom", "sharegpt")

SNIFFED_BYTES = 2**16


def read_trace(
    path: Path | str,
    format: Literal["auto"] | TraceFormat | None = None,  # noqa: A002  # as TraceWorkload's field
    *,
    skip_failed: bool | None = None,
    unit: TimeUnit | None = None,
    tokenizer: str | None = None,
) -> Trace:
    """Read a recording, in the order of arrival.

    Args:
        path: the file, plain or compressed with gzip.
        format: one of ``FORMATS``; ``None`` or ``"auto"``: by its names of columns or keys.
        skip_failed: leave out rows with 0 output tokens, and count them; ``False``: they are an error; ``None``: leave
            them out in BurstGPT's files, results of vLLM's benchmark and ShareGPT, where they are requests that failed.
        unit: of the timestamps of "mooncake" and "qwen", the formats for which two are in use; ``None``: as the file
            shows.
        tokenizer: for "vllm-custom" and "sharegpt", which have texts: a ``tokenizer.json`` file, or the name or folder
            of a model on this machine; ``None``: UTF-8 bytes over 4.

    Returns:
        The trace; its ``notes`` say what was assumed, estimated or left out.

    Raises:
        UnknownNameError: no such format or unit.
        PathError: the file cannot be read.
        FileFormatError: it can, but not understood: no known format (with the nearest ones), or a wrong value (with
            line, column and remedy).
        WorkloadError: no row has output.
        ConfigError: a unit or a tokenizer for another format, or a tokenizer that is not on this machine.
        MissingExtraError: the tokenizer's library is not installed.

    Warns:
        UnitWarning: times so far apart that they may be in milliseconds.
        ApproximationWarning: token counts are estimated from texts.
    """
    path = Path(path)
    if format not in (None, "auto", *FORMATS):
        raise UnknownNameError("trace format", format, ("auto", *FORMATS))
    if unit is not None and unit not in UNITS:
        raise UnknownNameError("unit", unit, UNITS)
    kind = detect_format(path) if format is None or format == "auto" else format
    if unit is not None and kind not in TWO_UNITS:
        raise ConfigError(f"unit = {unit!r} for {path}, of format {kind!r}, whose times are in one unit: leave it out.")
    if tokenizer is not None and kind not in TEXTS:
        raise ConfigError(
            f"tokenizer = {tokenizer!r} for {path}, of format {kind!r}, which has numbers of tokens: leave it out."
        )
    trace = _read(path, kind, kind in SKIP_FAILED if skip_failed is None else skip_failed, unit, tokenizer)
    has_output = trace.output_tokens > 0
    trace = dataclasses.replace(trace, release_ns=since_first(path, trace.release_ns))
    if has_output.all():
        return trace
    if not has_output.any():
        raise WorkloadError(f"{path} has {len(trace)} rows and none of them has output tokens: nothing can be served.")
    skipped = int(len(trace) - has_output.sum())
    note = f"{skipped} of {len(trace)} rows have no output and are left out."
    kept = trace.take(np.flatnonzero(has_output))
    return dataclasses.replace(kept, skipped=skipped, notes=(*kept.notes, note))


def _read(path: Path, kind: TraceFormat, skip_failed: bool, unit: TimeUnit | None, tokenizer: str | None) -> Trace:
    if kind in TWO_UNITS:
        return read_records(path, skip_failed, unit)
    if kind == "vllm":
        return read_result(path, skip_failed)
    if kind == "vllm-custom":
        return read_custom(path, skip_failed, tokenizer)
    if kind == "sharegpt":
        return read_sharegpt(path, tokenizer)
    return read_own(path) if kind == "csv" else read_published(path, kind, skip_failed)


def detect_format(path: Path) -> TraceFormat:
    """The format of a trace, from its beginning alone.

    Raises:
        PathError: the file cannot be read.
        FileFormatError: empty, or the beginning of no known format; names the nearest ones.
    """
    start = read_start(path, SNIFFED_BYTES)
    if not start:
        raise FileFormatError(path, f"is empty: {_own_format()}", line=1)
    if start[0] in "{[":
        return _detect_json(path, start)
    cells = [cell.strip().strip('"') for cell in start.splitlines()[0].split(",")]
    header = {cell.casefold() for cell in cells}
    best = _best(CSV_COLUMNS, header)
    if best is not None:
        return best
    if any(means(name, cell) for name in CSV_COLUMNS["csv"][1:] for cell in cells):
        return "csv"  # by another name, which its reader explains
    separated = other_separator(cells)
    if separated is not None:
        raise FileFormatError(path, separated, line=1)
    shown = start.splitlines()[0][:80]
    raise FileFormatError(
        path, f"begins with {shown!r}, which is no known format. {_nearest(CSV_COLUMNS, cells)}", line=1
    )


def _detect_json(path: Path, start: str) -> TraceFormat:
    keys = first_keys(start)
    known = set(map(str.casefold, keys))
    best = _best(JSON_KEYS, known)
    if start[0] == "[":
        if best == "sharegpt":
            return best
        raise FileFormatError(
            path,
            f"is one JSON array: write one object a line (jq -c '.[]'). {_nearest(JSON_KEYS, keys)}",
            line=1,
        )
    if best is not None:
        return best
    if known & set(SUMMARY_KEYS):
        return "vllm"  # without its requests, which its reader explains
    if not known or any(means(SAME[key], name) for name in keys for key in RECORD_KEYS[1:]):
        return "mooncake"  # by another name, likewise
    shown = ", ".join(map(repr, keys[:10]))
    raise FileFormatError(path, f"has the keys {shown}: no known format. {_nearest(JSON_KEYS, keys)}", line=1)


def _best(formats: Mapping[str, tuple[str, ...]], found: set[str]) -> TraceFormat | None:
    """The format with all of its names among ``found``, else with the most; ``None`` where none has any.

    Formats share their names of times, which therefore tell nothing unless all others are there.
    """

    def rank(name: str) -> tuple[bool, int, int]:
        names = [column for column in formats[name] if column not in OPTIONAL.get(name, ())]
        complete = all(column.casefold() in found for column in names)
        if not complete and name in WHOLE_ONLY:
            return False, 0, 0
        telling = sum(column.casefold() in found for column in formats[name] if column.casefold() != "timestamp")
        return complete, telling, len(names) if complete else 0

    best = max(formats, key=rank)
    return best if rank(best) > (False, 0, 0) else None  # type: ignore[return-value]


def _nearest(formats: Mapping[str, tuple[str, ...]], found: list[str]) -> str:
    """The formats that share a name with a file, with what it has of them and what it lacks."""
    small = set(map(str.casefold, found))
    parts = []
    for name, columns in formats.items():
        has = [column for column in columns if column.casefold() in small]
        lacks = [column for column in columns if column not in has]
        if has:
            parts.append((-len(has), f"{name} (has {', '.join(has)}; lacks {', '.join(lacks)})"))
    if not parts:
        return f"It has no column or key of {', '.join(FORMATS)}: {_own_format()}"
    return f"Nearest: {'; '.join(text for _, text in sorted(parts)[:3])}. Else {_own_format()}"


def _own_format() -> str:
    return f"start it with a header, {','.join(CSV_COLUMNS['csv'])}, or see docs/workloads.md for formats in JSON."
