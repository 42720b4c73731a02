"""docs/serving.md says what the code does."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

DOCS = Path(__file__).parents[2] / "docs"
DOC = (DOCS / "serving.md").read_text(encoding="utf-8")


def test_code_runs_and_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    times = np.cumsum(np.random.default_rng(0).exponential(0.2, 3000))
    rows = "".join(f"{at:.6f},{50 + i % 100},{20 + i % 80}\n" for i, at in enumerate(times))
    Path("requests.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows, encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", DOC, flags=re.DOTALL)
    assert len(blocks) == 2
    printed = []
    for block in blocks:
        exec(compile(block, "docs/serving.md", "exec", dont_inherit=True), {"__name__": "docs"})
        printed.append(capsys.readouterr().out)
    shown = re.search(r"# ([\d., ]+), and each twice", blocks[0])
    assert shown is not None
    goodputs = [line.split()[1:] for line in printed[0].splitlines()]
    wanted = [float(number) for number in shown[1].split(", ")]
    np.testing.assert_allclose([[float(x) for x in pair] for pair in goodputs], [[x, x] for x in wanted], rtol=1e-9)


def test_the_table_is_that_of_the_csv():
    with (DOCS / "data" / "serving.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    written = DOC.partition("<!-- serving results: begin -->")[2].partition("<!-- serving results: end -->")[0]
    shown = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in written.splitlines() if "|" in line]
    assert len(shown) == 2 + 7
    for what, *goodputs, ttft_p99_s, longest_wait_s in shown[2:]:
        for load, cell in zip(("0.9", "0.97"), goodputs, strict=True):
            row = next(row for row in rows if (row["load"], row["what"]) == (load, what.replace("`", "")))
            assert cell == f"{row['goodput_percent']} ± {row['goodput_percent_half_interval']}"
        assert (ttft_p99_s, longest_wait_s) == (row["ttft_p99_s"], row["longest_wait_s"])
