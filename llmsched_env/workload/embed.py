"""Make the data files of this package from the full tables of token counts: ``python -m llmsched_env.workload.embed``.

The full tables are ``gsm8k_test_lengths.csv`` and ``gsm8k_train_lengths.csv`` (see ``data/README.md``); of each, the
columns ``question_tokens`` and ``answer_tokens`` are kept, in the order of the rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llmsched_env.errors import FileFormatError, LLMSchedError
from llmsched_env.storage import write_whole
from llmsched_env.workload.csv_table import Cell, CsvTable, read_table
from llmsched_env.workload.requests import MAX_TOKENS

__all__ = ["embed", "main"]

NUM_ROWS = {"train": 7473, "test": 1319}
"""Rows of each part of GSM8K: splits are ranges of them."""


def embed(folder: Path, out: Path) -> list[Path]:
    """Write ``gsm8k_train_tokens.csv`` and ``gsm8k_test_tokens.csv`` into ``out`` from the full tables in ``folder``.

    Raises:
        FileFormatError: a table that lacks a column or a row, or has a bad cell.
        PathError: a table that cannot be read or a file that cannot be written.
    """
    written = []
    for part, num_rows in NUM_ROWS.items():
        table = read_table(folder / f"gsm8k_{part}_lengths.csv", required=("question_tokens", "answer_tokens"))
        lines = ["prompt_tokens,answer_tokens", *_rows(table)]
        if len(lines) != num_rows + 1:
            raise FileFormatError(table.path, f"has {len(lines) - 1} rows, GSM8K {part} has {num_rows}: use it whole.")
        target = out / f"gsm8k_{part}_tokens.csv"
        with write_whole(target) as temporary:
            temporary.write_bytes(("\n".join(lines) + "\n").encode("ascii"))
        written.append(target)
    return written


def _rows(table: CsvTable) -> list[str]:
    columns = ("question_tokens", "answer_tokens")
    return [
        ",".join(str(Cell(table, line, name, cells[table.index[name]]).whole_number(1, MAX_TOKENS)) for name in columns)
        for line, cells in table.rows()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m llmsched_env.workload.embed", description=embed.__doc__)
    parser.add_argument("folder", type=Path, help="folder with the two full tables")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="where to write")
    args = parser.parse_args(argv)
    try:
        for path in embed(args.folder, args.out):
            print(path)
    except LLMSchedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
