"""The pages of the studies: short, complete, and with figures that stand in the files beside them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from llmsched_env.studies.registry import STUDIES
from llmsched_env.studies.tables import MOST_ROWS

FOLDER = Path(__file__).parents[2] / "docs" / "studies"
MOST_WORDS = 400


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def written(name: str) -> str:
    """What ``--write`` writes."""
    (found,) = re.findall(rf"<!-- {name}: begin -->\n(.*)<!-- {name}: end -->\n", page(name), re.DOTALL)
    return str(found)


def files(name: str) -> list[Path]:
    return sorted((FOLDER / "data").glob(f"{name}_*.csv"))


def prose(text: str) -> list[str]:
    """Words beside tables, pictures, code, and the addresses of links."""
    text = re.sub(r"<!-- (\w+): begin -->.*<!-- \1: end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("    ", "|", "!["))]
    return [word for word in re.sub(r"\]\([^)]*\)", "]", "\n".join(lines)).split() if re.search(r"\w", word)]


def table(text: str) -> list[list[str]]:
    """Cells of the one table in a text."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


def figures(rows: list[list[str]]) -> set[str]:
    cells = [re.sub(r"(?<=\d),(?=\d{3})", "", cell) for row in rows for cell in row]
    return {figure for cell in cells for figure in re.findall(r"\d[\d.]*", cell)}


@pytest.mark.parametrize("name", STUDIES)
def test_a_page_is_short_and_whole(name):
    text = page(name)
    assert 100 < len(prose(text)) <= MOST_WORDS
    assert re.findall(r"!\[.+\]\((.*)\)", text) == [f"../images/study_{name}.png"]
    assert (FOLDER.parent / "images" / f"study_{name}.png").is_file()
    assert f"python -m studies {name} --write" in text
    header, _, *rows = table(text)
    assert len(header) > 1
    assert 0 < len(rows) <= MOST_ROWS
    assert table(text) == table(written(name)), "a table that the study does not write"


@pytest.mark.parametrize("name", STUDIES)
def test_full_tables_are_linked_and_hold_what_the_page_shows(name):
    assert sorted(re.findall(r"\]\(data/(.*?)\)", written(name))) == [file.name for file in files(name)] != []
    known: set[str] = set()
    for file in files(name):
        with file.open(encoding="utf-8", newline="") as lines:
            header, *rows = csv.reader(lines)
        assert rows
        assert len({*header}) == len(header)
        assert {len(row) for row in rows} == {len(header)}
        known |= figures(rows)
    shown = figures(table(written(name))[2:])
    assert len(shown) > 10
    assert shown - known == set()


def test_no_file_is_of_no_study():
    known = {file for name in STUDIES for file in files(name)}
    assert {*(FOLDER / "data").iterdir()} == known
    assert {file.stem for file in FOLDER.glob("*.md")} == {"index", *STUDIES}


def test_the_index_has_all_of_them():
    text = page("index")
    assert sorted(re.findall(r"^\| \[.*?\]\((\w+)\.md\)", text, re.MULTILINE)) == sorted(STUDIES)
    assert {len(row) for row in table(text)} == {3}, "study, question, answer"
