"""Workloads by name."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.workload.from_csv import CsvWorkload
from llmsched_env.workload.gsm8k import Gsm8kSmoothWorkload, Gsm8kWorkload
from llmsched_env.workload.protocol import Workload
from llmsched_env.workload.synthetic import GammaWorkload, LognormalWorkload, MixtureWorkload

__all__ = ["WORKLOADS", "workload"]

_BUILT_IN: tuple[Workload, ...] = (
    Gsm8kWorkload(),
    Gsm8kSmoothWorkload(),
    LognormalWorkload(),
    GammaWorkload(),
    MixtureWorkload(),
)

WORKLOADS = MappingProxyType({item.name: item for item in _BUILT_IN})
"""Name -> workload with its default parameters."""


def workload(source: str | os.PathLike[str] | Workload) -> Workload:
    """A workload by name, by the path of a CSV file (a ``Path``, or a string that ends in ``.csv``), or itself.

    A path is not opened yet.

    Raises:
        UnknownNameError: a string that is neither a name nor ends in ``.csv``.
        ConfigError: an object that is not a workload.
    """
    if isinstance(source, str):
        if source in WORKLOADS:
            return WORKLOADS[source]
        if source.lower().endswith(".csv"):
            return CsvWorkload(Path(source))
        raise UnknownNameError("workload", source, [*WORKLOADS, "PATH.csv"])
    if isinstance(source, os.PathLike):
        return CsvWorkload(Path(source))
    if isinstance(source, type) or not isinstance(source, Workload):
        raise ConfigError(
            f"{source!r} is not a workload: pass a name ({', '.join(WORKLOADS)}), the path of a CSV file, or an object "
            f"with name, pool_size and requests."
        )
    return source
