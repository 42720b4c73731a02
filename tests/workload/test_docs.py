"""docs/workloads.md says what the code does."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from llmsched_env.errors import FileFormatError
from llmsched_env.workload import POOL_SIZES, SPLITS, WORKLOADS, Gsm8kWorkload, predictor, read_requests_csv, workload
from llmsched_env.workload.gsm8k import ROWS
from llmsched_env.workload.registry import PREFIXES
from llmsched_env.workload.trace_formats import COLUMNS, FORMATS
from llmsched_env.workload.traces import STRETCHES, TraceWorkload

DOCS = Path(__file__).parents[2] / "docs"
DOC = (DOCS / "workloads.md").read_text(encoding="utf-8")
TEXT = " ".join(DOC.split())


def rows_after(heading: str) -> list[list[str]]:
    """Cells of the first table after a piece of text, without its two head lines."""
    lines = DOC[DOC.index(heading) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return table[2:]


def test_table_of_workloads():
    table = [[re.findall(r"[\w.:-]+", cell) for cell in (row[0], row[-1])] for row in rows_after("mine = workload")]
    named = {name: classes[i % len(classes)] for names, classes in table for i, name in enumerate(names)}
    assert named.pop("PATH.csv") == type(workload("PATH.csv")).__name__
    for prefix in PREFIXES:
        assert named.pop(f"{prefix}:PATH") == type(workload(f"{prefix}:PATH")).__name__
    assert named == {name: type(item).__name__ for name, item in WORKLOADS.items()}


def test_table_of_splits():
    table = {row[0]: row[1:] for row in rows_after("## Splits and cases")}
    assert tuple(table) == SPLITS
    for split, (pool, rows, *_) in table.items():
        assert int(pool.split()[0]) == POOL_SIZES[split]
        _, first, last = ROWS[split]
        found = re.search(r"(\d+)–(\d+)", rows)
        assert (found is None) == (split == "test")
        assert found is None or (int(found[1]), int(found[2])) == (first, last - 1)


def test_table_of_moments():
    table = rows_after("Moments of the outputs")
    assert [row[0] for row in table] == list(SPLITS)
    for split, mean, sd in table:
        assert (float(mean), float(sd)) == tuple(round(value, 2) for value in Gsm8kWorkload().output_moments(split))


def test_quantiles_of_the_smooth_law():
    table = workload("gsm8k-smooth").output_law.thresholds() / 2.0**53
    found = re.search(
        r"median is (\d+), one output in a hundred is longer than (\d+), one in a thousand longer than (\d+)", TEXT
    )
    assert found is not None
    for length, share in zip(map(int, found.groups()), (0.5, 0.99, 0.999), strict=True):
        assert table[length - 2] < share <= table[length - 1]


def test_table_of_azure_synthetic():
    table = {row[0]: row[1:] for row in rows_after("### `azure-synthetic`")}
    lengths = workload("azure-synthetic").lengths
    for key, law in (("prompt", lengths.prompt_law), ("output", lengths.output_law)):
        shown = [float(number) for number in table[f"{key} tokens: mean, sd"][1].split(",")]
        assert shown == [round(value, 2) for value in law.moments()]
        assert f"{len(law.tokens)} quantiles" in TEXT


def test_table_of_formats_and_stretches():
    table = {row[0]: row[1] for row in rows_after("## Recorded traces")}
    assert set(table) == set(FORMATS)
    for name, cells in table.items():
        assert all(f"`{column}`" in f"`{cells}`" for column in COLUMNS[name])
    percents = re.search(r"first (\d+) %, `validation` the next (\d+) %, `test` the last (\d+) %", TEXT)
    assert percents is not None
    assert [int(part) for part in percents.groups()] == [high - low for low, high in STRETCHES.values()]
    assert f"({TraceWorkload('x').num_requests} by default)" in TEXT


def test_error_shown(tmp_path):
    path = tmp_path / "requests.csv"
    path.write_text("prompt_tokens,output_tokens\n1,2\n3,five\n")
    with pytest.raises(FileFormatError) as caught:
        read_requests_csv(path)
    assert str(caught.value).removeprefix(f"{tmp_path}/") in DOC


def test_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("requests.csv").write_text("prompt_tokens,output_tokens\n1,2\n", encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", DOC, flags=re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, "docs/workloads.md", "exec", dont_inherit=True), names)
    assert len(names["larger"]) == 100_000
    assert names["busy"].rate_per_s == pytest.approx(0.9 * names["capacity"])
    own = workload(names["Constant"]())
    assert len(own.requests("test", 0)) == 100


def test_table_of_predictors():
    for make, names, *_ in rows_after("## What is known of lengths"):
        assert type(predictor(names.split(",")[0].strip("` "))).__name__ == make.partition("(")[0]


def test_what_predictors_reach():
    """Rank correlation with the truth, root mean square error, and how uncertain they say they are."""
    with (DOCS / "data" / "predictors.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))[1:]
    assert len(table) > 5
    for name, *shown in table:
        measured: list[str] = []
        for source in ("gsm8k", "gsm8k-smooth"):
            cases = [workload(source).requests("test", number) for number in range(20)]
            said = [predictor(name).predict(workload(source), "test", i, case) for i, case in enumerate(cases)]
            pairs = [(one.mean_tokens, case.output_tokens) for one, case in zip(said, cases, strict=True)]
            known = np.ptp(said[0].mean_tokens) > 0
            rank = np.mean([spearmanr(*pair)[0] for pair in pairs]) if known else 0.0
            error = np.sqrt(np.mean([(true - mean) ** 2 for mean, true in pairs]))
            sd = np.sqrt(np.mean([one.sd_tokens**2 for one in said]))
            measured += [f"{rank:.2f}".replace("-0.00", "0.00") if known else "", f"{error:.0f}", f"{sd:.0f}"]
        assert shown == measured, name
    error = {name: shown[1] for name, *shown in table}
    for part in (
        f"{error['noisy:0.6']} tokens with r = 0.6",
        f"{error['noisy:0.95']} with r = 0.95",
        f"{error['prompt']} with `prompt`",
    ):
        assert part in TEXT
    assert error["prompt"] == error["population"]
