"""Workloads by name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmsched_env.errors import ConfigError, LLMSchedError, UnknownNameError
from llmsched_env.workload.from_csv import CsvWorkload
from llmsched_env.workload.gsm8k import Gsm8kSmoothWorkload, Gsm8kWorkload
from llmsched_env.workload.protocol import Workload
from llmsched_env.workload.serving import AZURE_SYNTHETIC, ServingWorkload
from llmsched_env.workload.synthetic import GammaWorkload, LognormalWorkload, MixtureWorkload
from llmsched_env.workload.trace_formats import FORMATS, detect_format
from llmsched_env.workload.traces import TraceWorkload

__all__ = ["PREFIXES", "WORKLOADS", "workload"]

_BUILT_IN: tuple[Workload, ...] = (
    Gsm8kWorkload(),
    Gsm8kSmoothWorkload(),
    LognormalWorkload(),
    GammaWorkload(),
    MixtureWorkload(),
    ServingWorkload(),
    AZURE_SYNTHETIC,
)

WORKLOADS = MappingProxyType({item.name: item for item in _BUILT_IN})
"""Name -> workload with its default parameters."""

TEXT_FILES = (".csv", ".jsonl")
OTHER_FILES = (
    *(".zip", ".bz2", ".xz", ".zst"),
    *(".parquet", ".feather", ".arrow", ".xlsx", ".npy"),
    *(".json", ".tsv", ".txt"),
)
"""Other endings that tell a file from a name. The contents decide: CSV text under ".txt" and JSON lines under ".json"
are read; of the rest the reader says what to do."""

PREFIXES = MappingProxyType({**{name: name for name in FORMATS if name != "csv"}, "trace": "auto"})
"""What may stand before a colon and a path -> format of the trace."""

OPTIONS = re.compile(r"([^?]+)\?(\w+=[^?]*)")
OPTION_NAMES = ("unit", "tokenizer", "skip_failed")
ANSWERS = MappingProxyType({"yes": True, "no": False})


def workload(source: str | os.PathLike[str] | Workload) -> Workload:
    """A workload by name, by the path of a file, or itself.

    A file is named by a ``Path``, a string that ends in ``.csv`` or ``.jsonl`` (or these and ``.gz``), or a string that
    begins with the name of a trace format and a colon, or ``trace:`` (any format). It may end in options of
    :class:`TraceWorkload`: ``?unit=s`` or ``?unit=ms``, ``?tokenizer=NAME``, ``?skip_failed=yes``, joined by ``&``.
    Without a prefix the file's beginning decides, where there is one to read: a published trace becomes a
    :class:`TraceWorkload`, all else a :class:`CsvWorkload`. Nothing more is read yet.

    Raises:
        UnknownNameError: a string that is neither a name nor a file.
        ConfigError: an object that is not a workload.
    """
    if isinstance(source, str):
        if source in WORKLOADS:
            return WORKLOADS[source]
        prefix, colon, path = source.partition(":")
        if colon and path and prefix in PREFIXES:
            path, options = _options(path)
            return TraceWorkload(Path(path), PREFIXES[prefix], **options)
        path, options = _options(source)
        if path.lower().removesuffix(".gz").endswith(TEXT_FILES + OTHER_FILES):
            return TraceWorkload(Path(path), **options) if options else _file(Path(path))
        files = ("PATH.csv", "PATH.csv.gz", "PATH.jsonl", *(f"{prefix}:PATH" for prefix in PREFIXES))
        raise UnknownNameError("workload", source, [*WORKLOADS, *files])
    if isinstance(source, os.PathLike):
        return _file(Path(source))
    if isinstance(source, type) or not isinstance(source, Workload):
        raise ConfigError(
            f"{source!r} is not a workload: pass a name ({', '.join(WORKLOADS)}), the path of a CSV file or a trace, "
            f"or an object with name, pool_size and requests."
        )
    return source


def _options(source: str) -> tuple[str, dict[str, Any]]:
    """A path without the options at its end, and these.

    Raises:
        UnknownNameError: an option, or a value of one, that does not exist.
    """
    match = OPTIONS.fullmatch(source)
    if match is None:
        return source, {}
    options: dict[str, Any] = {}
    for part in match[2].split("&"):
        name, _, value = part.partition("=")
        if name not in OPTION_NAMES:
            raise UnknownNameError("option of a trace", name, OPTION_NAMES)
        if name == "skip_failed":
            if value not in ANSWERS:
                raise UnknownNameError("value of skip_failed", value, ANSWERS)
            options[name] = ANSWERS[value]
        elif value:
            options[name] = value
    return match[1], options


def _file(path: Path) -> Workload:
    if path.name.lower().removesuffix(".gz").endswith((".jsonl", ".json")):
        return TraceWorkload(path)
    try:
        published = detect_format(path) != "csv"
    except LLMSchedError:  # for the reader of CSV files to explain, at the first use
        published = False
    return TraceWorkload(path) if published else CsvWorkload(path)
