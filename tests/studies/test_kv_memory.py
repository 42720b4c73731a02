"""The study of the KV cache, at a size of seconds."""

from __future__ import annotations

import numpy as np
import pytest

from llmsched_env.cases import build_problem
from llmsched_env.studies import kv_memory
from llmsched_env.studies.kv_memory import BUDGETS, METHODS, batch, measure_batch, serving
from llmsched_env.studies.rates import AtRateFor
from llmsched_env.studies.study import Options, run
from llmsched_env.workload import workload


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(kv_memory, "FIXED", (100, 200))
    monkeypatch.setattr(kv_memory, "SERVED_LOADS", (0.9,))
    monkeypatch.setattr(kv_memory, "LENGTHS", {"gsm8k": "GSM8K"})
    served = kv_memory.serving
    monkeypatch.setattr(kv_memory, "serving", lambda *given, **more: served(*given, **more).replace(num_requests=300))


def test_sizes_are_in_proportion():
    usual, large = (batch("gsm8k", clients, 170_000, "test") for clients in (200, 1000))
    assert (usual.num_clients, usual.kv_budget_tokens, build_problem(usual, 0).num_requests) == (1024, 170_000, 1319)
    assert (large.num_clients, large.kv_budget_tokens, large.num_requests) == (5120, 850_000, 6595)
    assert (usual.lengths, usual.order) == ("hidden", "fcfs")


def test_the_rate_does_not_depend_on_who_serves():
    base = workload("serving").requests("test", 0)
    found = AtRateFor("serving", 0.9, 200, "llama-65b-paper").requests("test", 0)
    assert found.release_ns[-1] != base.release_ns[-1]
    for clients in (100, 1024):
        made = build_problem(serving(0.9, 60_000, "test", num_clients=clients), 0)
        assert (made.release_ns == found.release_ns).all()
    usual = build_problem(serving(0.9, 60_000, "test", num_clients=200).replace(workload="serving", load=0.9), 0)
    assert (usual.release_ns == found.release_ns).all(), "at 200 clients it is what the scenario's load gives"


def test_every_method_keeps_within_the_budget(brief):
    said = measure_batch("gsm8k", 20, BUDGETS["8 x 40 GB"], 2)
    assert said["best"] in (100, 200)
    for name in METHODS:
        assert np.max(said[name]["kv_peak"]) <= 1
        assert np.isfinite(said[name]["makespan_s"]).all()
    for name in ("reserve all", "MC-SF, lengths known", "MC-SF's check, longest first, lengths known"):
        assert np.max(said[name]["preemptions"]) == 0, name
    assert np.min(said["whoever fits"]["preemptions"]) > 0
    assert np.mean(said["whoever fits"]["preemptions"]) >= np.mean(said["watermark 10 %"]["preemptions"])


def test_table_and_picture(brief, tmp_path, figures):
    found = run(kv_memory.STUDY, Options(2, (20,)), tmp_path, workers=1, progress=False)
    assert list(found) == [
        "gsm8k, 20 clients, 8 x 80 GB", "gsm8k, 20 clients, 8 x 40 GB", "load 0.9, 8 x 80 GB", "load 0.9, 8 x 40 GB",
    ]  # fmt: skip
    text = (tmp_path / "kv_memory.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f"| {name} |" in text
    assert sum(line.startswith("| --- |") for line in text.splitlines()) == 3
    short = kv_memory.STUDY.short({table.name: table for table in kv_memory.STUDY.tables(found)})
    assert len(short.rows) == 6
    assert (tmp_path / "kv_memory.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["gsm8k, 8 x 80 GB", "gsm8k, 8 x 40 GB"]
    for axes, said in zip(figure.axes, found.values(), strict=False):
        fixed, *methods = axes.lines
        assert fixed.get_xdata().tolist() == [100, 200]
        assert fixed.get_ydata() == pytest.approx([np.mean(said["fixed"][count]) for count in said["fixed"]])
        assert {line.get_label(): line.get_ydata()[0] for line in methods} == pytest.approx(
            {name: np.mean(said[name]["makespan_s"]) for name in kv_memory.PICTURED}
        )
