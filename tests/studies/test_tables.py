"""Tables in full and in a page: what a CSV makes of a cell, rows that are picked, tables that are stacked."""

from __future__ import annotations

import csv
import io

import pytest

from llmsched_env.studies.tables import Table, stacked


def read(table: Table) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table.csv())))


@pytest.mark.parametrize(
    ("cells", "columns"),
    [
        (["1.5", "-2"], [["x", "1.5", "-2"]]),
        (["1.5 ± 0.2", "–", "-2"], [["x", "1.5", "", "-2"], ["x, ±", "0.2", "", ""]]),
        (
            ["+0.1 (-0.2 to +0.4)", "*360*"],
            [["x", "+0.1", "360"], ["x, from", "-0.2", ""], ["x, to", "+0.4", ""]],
        ),
        (
            ["-4.7 ± 0.7 (α_d -20 %)", "none", ""],
            [["x", "-4.7", "none", ""], ["x, ±", "0.7", "", ""], ["x, of", "α_d -20 %", "", ""]],
        ),
        (["1,319", "1,000,000", "3,542.6"], [["x", "1319", "1000000", "3542.6"]]),
        (["12.7 / 21.1", "19 of 20, worst 2"], [["x", "12.7 / 21.1", "19 of 20, worst 2"]]),
        (["mean + 4 sd", "cap (2503.05248)"], [["x", "mean + 4 sd", "cap (2503.05248)"]]),
    ],
)
def test_a_cell_for_programs(cells, columns):
    rows = read(Table("t", "", ["x"], [[cell] for cell in cells]))
    assert [list(column) for column in zip(*rows, strict=True)] == columns


def test_columns_have_names_of_their_own():
    with pytest.raises(AssertionError, match="two columns have one name"):
        Table("t", "", ["gap", "gap"], []).csv()


def test_rows_and_columns_are_picked():
    whole = Table("t", "all", ["a", "b", "c"], [["1", "2", "3"], ["4", "5", "6"]])
    assert whole.picked(["c", "a"]) == Table("t", "all", ["c", "a"], [["3", "1"], ["6", "4"]])
    assert whole.picked({"b": "named"}, lambda row: row["a"] == "4").rows == [["5"]]
    assert whole.picked({"b": "named"}).header == ["named"]


def test_tables_are_stacked():
    parts = {"p": (["a"], [["1"], ["2"]]), "q": (["a"], [["3"]])}
    assert stacked("t", "", "of", parts) == Table("t", "", ["of", "a"], [["p", "1"], ["p", "2"], ["q", "3"]])
    with pytest.raises(AssertionError, match="the headers differ"):
        stacked("t", "", "of", {**parts, "q": (["b"], [])})
