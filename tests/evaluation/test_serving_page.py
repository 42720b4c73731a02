"""docs/serving.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

DOC = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::llmsched_env.evaluation.CoverageWarning")  # the page says so
def test_code_runs_and_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    times = np.cumsum(np.random.default_rng(0).exponential(0.2, 3000))
    rows = "".join(f"{at:.6f},{50 + i % 100},{20 + i % 80}\n" for i, at in enumerate(times))
    Path("requests.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows, encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", DOC, flags=re.DOTALL)
    assert len(blocks) == 4
    printed = []
    for block in blocks:
        if "azure-synthetic" in block:
            block = block.replace("cases=8", "cases=1")  # noqa: PLW2901  # its table takes seconds
        exec(compile(block, "docs/serving.md", "exec", dont_inherit=True), {"__name__": "docs"})
        printed.append(capsys.readouterr().out)
    shown = re.search(r"# ([\d., ]+), and each twice", blocks[0])
    assert shown is not None
    goodputs = [line.split()[1:] for line in printed[0].splitlines()]
    wanted = [float(number) for number in shown[1].split(", ")]
    np.testing.assert_allclose([[float(x) for x in pair] for pair in goodputs], [[x, x] for x in wanted], rtol=1e-9)
