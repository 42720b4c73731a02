"""The pages of the studies: a short table in each, and the full ones as CSV beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from llmsched_env.errors import PathError
from llmsched_env.storage import write_whole
from llmsched_env.studies.markdown import replaced
from llmsched_env.studies.study import Study
from llmsched_env.studies.tables import MOST_ROWS, Table, csv_name, write_csv

__all__ = ["DOCS", "check_pages", "page_of", "publish"]

DOCS = Path(__file__).resolve().parents[1] / "docs"
"""Of a clone of the repository; what is installed has none."""


def page_of(study: str) -> Path:
    """The page of a study."""
    return DOCS / "studies" / f"{study}.md"


def check_pages(studies: Sequence[str]) -> None:
    """Complains of pages that are not there, or have no place for a table.

    Raises:
        PathError: there is none to write to.
    """
    for name in studies:
        page = page_of(name)
        if not page.is_file():
            raise PathError(f"{page} is not there: --write needs a clone of the repository, with its docs/ folder.")
        replaced(page.read_text(encoding="utf-8"), name, "")


def publish(study: Study, tables: Sequence[Table], picture: Path | None = None) -> None:
    """Write the short table into the page, the full ones to ``docs/studies/data``, the picture to ``docs/images``."""
    page = page_of(study.name)
    data = page.parent / "data"
    data.mkdir(exist_ok=True)
    short = study.short({table.name: table for table in tables})
    assert len(short.rows) <= MOST_ROWS, f"{study.name}: {len(short.rows)} rows in a page"
    links = "\n".join(f"- [{table.name}](data/{csv_name(study.name, table)}): {table.title}" for table in tables)
    shown = f"{short.title}\n\n{short.markdown()}\n\nFull tables:\n\n{links}\n"
    text = replaced(page.read_text(encoding="utf-8"), study.name, shown)
    for old in data.glob(f"{study.name}_*.csv"):
        old.unlink()
    write_csv(study.name, tables, data)
    with write_whole(page) as path:
        path.write_text(text, encoding="utf-8")
    if picture is not None:
        shutil.copyfile(picture, DOCS / "images" / f"study_{study.name}.png")
