"""Workloads by name."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

from llmsched_env.errors import ConfigError, LLMSchedError, UnknownNameError
from llmsched_env.workload.from_csv import CsvWorkload
from llmsched_env.workload.gsm8k import Gsm8kSmoothWorkload, Gsm8kWorkload
from llmsched_env.workload.protocol import Workload
from llmsched_env.workload.serving import AZURE_SYNTHETIC, ServingWorkload
from llmsched_env.workload.synthetic import GammaWorkload, LognormalWorkload, MixtureWorkload
from llmsched_env.workload.trace_formats import detect_format
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

PREFIXES = MappingProxyType({"azure": "azure", "burstgpt": "burstgpt", "mooncake": "mooncake", "trace": "auto"})
"""What may stand before a colon and a path -> format of the trace."""


def workload(source: str | os.PathLike[str] | Workload) -> Workload:
    """A workload by name, by the path of a file, or itself.

    A file is named by a ``Path``, a string that ends in ``.csv`` or ``.jsonl`` (or these and ``.gz``), or a string that
    begins with ``azure:``, ``burstgpt:``, ``mooncake:`` or ``trace:`` (any format). It may end in ``?unit=s`` or
    ``?unit=ms``, for timestamps in Mooncake's keys. Without a prefix the file's first line decides, where there is one
    to read: a published trace becomes a :class:`TraceWorkload`, all else a :class:`CsvWorkload`.
    Nothing more is read yet.

    Raises:
        UnknownNameError: a string that is neither a name nor a file.
        ConfigError: an object that is not a workload.
    """
    if isinstance(source, str):
        if source in WORKLOADS:
            return WORKLOADS[source]
        prefix, colon, path = source.partition(":")
        if colon and path and prefix in PREFIXES:
            path, _, unit = path.partition("?unit=")
            return TraceWorkload(Path(path), PREFIXES[prefix], unit=unit or None)  # type: ignore[arg-type]
        path, _, unit = source.partition("?unit=")
        if path.lower().removesuffix(".gz").endswith(TEXT_FILES + OTHER_FILES):
            return TraceWorkload(Path(path), unit=unit) if unit else _file(Path(path))  # type: ignore[arg-type]
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


def _file(path: Path) -> Workload:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".json")):
        return TraceWorkload(path, "mooncake" if name.endswith(".jsonl") else "auto")
    try:
        published = detect_format(path) != "csv"
    except LLMSchedError:  # for the reader of CSV files to explain, at the first use
        published = False
    return TraceWorkload(path) if published else CsvWorkload(path)
