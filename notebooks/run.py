"""Run the notebooks of this folder and keep what they print: ``make notebooks``.

    python notebooks/run.py                          all of them, in place
    python notebooks/run.py --out DIR 1_first_steps  some, written to another folder

Nothing of the machine is kept: no times, no paths, no version of Python. A notebook that fails is not written.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent
TIMEOUT_S = 1800
NOTICE = "llmsched_env: "
"""Begins the line on stderr that says how the engine runs."""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def code_digest(notebook: nbformat.NotebookNode) -> str:
    """Of the code cells: the outputs of a notebook are those of the code with this digest."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def execute(source: Path, target: Path) -> None:
    """Run every cell of ``source`` in a fresh kernel, and write ``target`` when all have ended well.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(source, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        # The user's start-up files and the backend of the calling process change what is drawn and printed.
        environment = {
            **os.environ,
            "IPYTHONDIR": scratch,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }
        # Files instead of ports: nobody else on the machine can listen, and runs side by side do not meet.
        connection = {
            "transport": "ipc" if os.name == "posix" else "tcp",
            "connection_file": str(Path(scratch, "kernel.json")),
        }
        client = NotebookClient(
            notebook,
            config=Config({"KernelManager": connection}),
            kernel_name="python3",
            timeout=TIMEOUT_S,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": scratch}},
        )
        client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_without_notices, cell.outputs) if output]
    notebook.metadata = {**METADATA, "code_sha256": code_digest(notebook)}
    target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def _without_notices(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """An output but for the line that says how the engine runs; ``None`` if that is all."""
    if output.output_type == "stream" and output.name == "stderr":
        output.text = "".join(line for line in output.text.splitlines(True) if not line.startswith(NOTICE))
        return output if output.text else None
    return output


def main() -> int:
    """Run what is named; 1 if a notebook fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: in place)")
    options = parser.parse_args()
    for name in options.names:
        if name not in names:
            parser.error(f"there is no notebook {name!r}: there are {', '.join(names)}.")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: {error.strerror}; name a folder that can be written to.")
    for name in options.names or names:
        print(name, flush=True)
        try:
            execute(FOLDER / f"{name}.ipynb", options.out / f"{name}.ipynb")
        except CellExecutionError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
