"""Tables in files: CSV, or Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import ConfigError
from llmsched_env.storage import user_path, write_whole
from llmsched_env.viewer.extras import extra_module

__all__ = ["check_table_path", "write_table"]


def check_table_path(path: Path | str, what: str = "path") -> Path:
    """The path of a table: for commands to ask before the long work.

    Args:
        path: ends in ``.csv`` or ``.parquet``.
        what: the argument that it is.

    Raises:
        ConfigError: another ending.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
        PathError: it begins with a home folder that is not known.
    """
    path = user_path(path)
    if path.suffix == ".parquet":
        _parquet()
    elif path.suffix != ".csv":
        raise ConfigError(f"{what} = {str(path)!r}: a table is CSV or Parquet. End its name in .csv or .parquet.")
    return path


def write_table(columns: Mapping[str, NDArray[Any]], path: Path | str) -> Path:
    """Write columns of equal length, whole or not at all; NaN is an empty cell, in Parquet a null.

    Args:
        columns: by name.
        path: ends in ``.csv`` or ``.parquet``.

    Raises:
        ConfigError: another ending.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
        PathError: the file cannot be written.
    """
    path = check_table_path(path)
    if path.suffix == ".parquet":
        arrow, parquet = extra_module("pyarrow", "pyarrow", PURPOSE, "parquet"), _parquet()
        table = arrow.table({name: arrow.array(column, from_pandas=True) for name, column in columns.items()})
        with write_whole(path) as temporary:
            parquet.write_table(table, temporary)
        return path
    with write_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(_cells(column) for column in columns.values()), strict=True))
    return path


PURPOSE = "Writing a Parquet file"


def _parquet() -> Any:
    return extra_module("pyarrow.parquet", "pyarrow", PURPOSE, "parquet")


def _cells(column: NDArray[Any]) -> list[Any]:
    """Shortest decimals that give the same number again; nothing for NaN."""
    cells: list[Any] = column.tolist()
    if not np.issubdtype(column.dtype, np.floating):
        return cells
    return ["" if cell != cell else cell for cell in cells]  # noqa: PLR0124  # NaN
