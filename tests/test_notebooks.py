"""The notebooks run, whatever the folder, and what is committed is what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
MOST_BYTES = 600_000
ABSOLUTE = re.compile(r"(?<![\w.~$}:/])/[a-z]\w*/|\b[A-Z]:\\")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")

for library in ("nbclient", "nbformat", "ipykernel", "matplotlib"):
    pytest.importorskip(library, reason=f"the notebooks need {library}: install the extras 'notebooks' and 'viz'")


def read(path: Path) -> Any:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def cells(notebook: Any, kind: str) -> list[Any]:
    found = [cell for cell in notebook.cells if cell.cell_type == kind]
    assert len(found) > 5, f"hardly any {kind} cell: nothing was tested"
    return found


def kinds(notebook: Any) -> list[list[tuple[str, ...]]]:
    """Of each code cell, what kinds of output it has."""
    return [
        [(out.output_type, *sorted(out.get("data", ()))) for out in cell.outputs] for cell in cells(notebook, "code")
    ]


def test_there_are_notebooks_and_the_readme_shows_each() -> None:
    assert len(NAMES) >= 2
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"(notebooks/{name}.ipynb)" not in readme] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_file_was_run_from_top_to_bottom_and_nothing_complained(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    notebook = read(path)
    code = cells(notebook, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run make notebooks"
    assert all(cell.outputs for cell in code), "a cell that shows nothing: join it to the next"
    outputs = [out for cell in code for out in cell.outputs]
    assert {out.output_type for out in outputs} <= {"stream", "display_data", "execute_result"}
    assert {out.name for out in outputs if out.output_type == "stream"} <= {"stdout"}
    assert any("image/png" in out.get("data", ()) for out in outputs)
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_sources_name_no_absolute_path_and_every_link_leads_somewhere(name: str) -> None:
    notebook = read(FOLDER / f"{name}.ipynb")
    sources = [cell.source for cell in cells(notebook, "code") + cells(notebook, "markdown")]
    assert [found for source in sources for found in ABSOLUTE.findall(source)] == []
    links = [link for source in sources for link in LINK.findall(source) if "://" not in link]
    assert links, "no link: nothing was tested"
    assert [link for link in links if not (FOLDER / link).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_few_cases_and_prints_the_kinds_of_output_that_are_committed(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLMSCHED_NOTEBOOK_CASES": "2"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--out", str(tmp_path), name],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    committed, small = read(FOLDER / f"{name}.ipynb"), read(tmp_path / f"{name}.ipynb")
    assert small.metadata == committed.metadata, "its code has changed since it was run: make notebooks"
    assert kinds(small) == kinds(committed)
    assert small.cells != committed.cells, "the number of cases changed nothing: it ran at full size"
