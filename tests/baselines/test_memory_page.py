"""What docs/memory.md says of orders and admissions: the tables are those of the CSV, and the finding holds anew."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE, DATA = ROOT / "docs" / "memory.md", ROOT / "docs" / "data" / "memory_methods.csv"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("memory_benchmark", ROOT / "benchmarks" / "memory_methods.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def stored():
    with DATA.open(encoding="utf-8", newline="") as file:
        return {(row["place"], row["policy"], row["metric"]): row for row in csv.DictReader(file)}


def test_the_tables_are_those_of_the_csv(stored):
    text, compared = PAGE.read_text(encoding="utf-8"), 0
    for name in ("memory at once", "memory over time"):
        part = text.partition(f"<!-- {name}: begin -->")[2].partition(f"<!-- {name}: end -->")[0]
        places = [cell.strip() for cell in part.strip().splitlines()[0].strip("| ").split("|")][1:]
        for row in part.strip().splitlines()[2:]:
            policy, *cells = [cell.strip() for cell in row.strip("| ").split("|")]
            for place, cell in zip(places, cells, strict=True):
                found = stored[place, policy.strip("`"), "mean_latency_s"]
                shown, _, tail = cell.partition("; ")
                if policy == "`mc_sf`":
                    assert float(shown.removesuffix(" s")) == pytest.approx(float(found["mean"]), abs=0.06)
                else:
                    above = float(found["above_mc_sf_percent"])
                    assert float(shown.partition(" ")[0]) == pytest.approx(above, abs=0.06)
                if tail:
                    tail_s = float(stored[place, policy.strip("`"), "ttft_p99_s"]["mean"])
                    assert float(tail) == pytest.approx(tail_s, rel=1e-3, abs=0.51)
                compared += 1
    assert compared == 5 * 8 + 4 * 8


def test_what_methods_know_is_said(stored):
    knows = {policy: row["knows"] for (_, policy, _), row in stored.items()}
    assert {name for name, what in knows.items() if what == "nothing"} == {"prefill_first", "memory_aware"}
    assert {name for name, what in knows.items() if what == "predictions"} == {"svf_1bit", "a_max", "a_min"}


def test_volumes_win_where_prompts_vary(benchmark):
    """Three cases: SVF and Sorted-F are well below shortest first on Azure's prompts, and equal to it on GSM8K's."""
    names = ("mc_sf", "svf", "sorted_f")
    for place, least, most in (("Azure, 60,000", -23.0, -14.0), ("smooth, 60,000", -1.0, 1.0)):
        found = benchmark.measure(benchmark.place(benchmark.BATCHES[place]), names, 3)
        for name in names[1:]:
            assert least < benchmark.above(found, name, "mean_latency_s").mean() < most
