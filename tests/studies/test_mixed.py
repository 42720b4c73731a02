"""The study of mixed iterations: what its pieces measure, its table and its picture at a tiny size."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from llmsched_env import make_scenario
from llmsched_env.baselines.iteration import threshold
from llmsched_env.baselines.registry import entry
from llmsched_env.cost import MIXED_FITS, PRESETS, mixed_cost
from llmsched_env.evaluation import CoverageWarning, evaluate, play
from llmsched_env.studies import mixed
from llmsched_env.studies.study import Options, run


@pytest.mark.parametrize("cost", MIXED_FITS)
def test_an_engine_that_is_always_mixed_prices_a_decode_as_a_mixed_iteration_that_reads_nothing(cost):
    changed = mixed.always_mixed(cost)
    law = mixed_cost("fitted", PRESETS[cost])
    assert changed["mixed_cost"] == law
    for active in (1, 7, 512):
        expected = law.alpha_ns + law.beta_active_ns * active + law.interference_ns * active * active // (active + 0)
        assert changed["cost"].decode_ns(active) == expected


def test_throughput_is_that_of_the_middle():
    """One client, each request alone: the time between two completions is what a request takes."""
    place = mixed.saturated("qwen3-8b-h200", "balanced", 1, num_requests=11)
    found = mixed.steady_requests_per_s("prefill_first", place, 0)
    item = entry("prefill_first", place)
    done_s = np.sort(play(item.policy, item.scenario, 0, record=True).served["completion_ns"]) / 1e9
    assert found == pytest.approx(6 / (done_s[8] - done_s[2]))


def test_crossover_is_seen_where_it_is_far():
    """The published fit, decode-heavy: mixed is far above with few clients and far below with many."""
    few, many = (mixed.measure_crossover("qwen3-8b-h200", "decode-heavy", clients, 1) for clients in (16, 1024))
    for said, sign in ((few, 1), (many, -1)):
        gain = said["MB"][0] / said["EB"][0] - 1
        assert sign * gain > 0.1
        assert sign * said["expected"] > 0.1
        assert sign * said["delta_ns"] < 0
        assert gain == pytest.approx(said["expected"], rel=0.25)


def test_the_best_chunk_is_chosen_on_training_cases():
    where = mixed.batch("gsm8k", 20, "overlap", "fcfs, lengths hidden", num_requests=60)
    chunk, chosen = mixed._best_chunk(where, "makespan_s", 2)
    assert chosen == where.replace(mixed_tokens=chunk)
    policy, train = entry("mixed_first", where).policy, where.replace(split="train")
    means = {
        tokens: mixed._columns(policy, train.replace(mixed_tokens=tokens), 2, False)["makespan_s"].mean()
        for tokens in mixed.CHUNKS
    }
    assert means[chunk] == min(means.values())


def test_table_and_picture(tmp_path, monkeypatch, figures):
    monkeypatch.setattr(mixed, "CONCURRENCY", (8,))
    monkeypatch.setattr(mixed, "MEANS", {"balanced": (32, 32), "prefill-heavy": (64, 8)})
    monkeypatch.setattr(mixed, "SERVED", {name: {"num_requests": 60} for name in mixed.SERVED})
    monkeypatch.setattr(mixed, "CHUNKS", (64, 512))
    found = run(mixed.STUDY, Options(cases=2, clients=(8,)), tmp_path, workers=1, progress=False)
    text = (tmp_path / "mixed.md").read_text(encoding="utf-8")
    assert len(found) == 4 + 4 + 6
    assert text.count("| qwen3-8b-h200 |") == 2
    assert "of 4 places" in text
    for part in (*mixed.ORDERS, *mixed.SERVED):
        assert text.count(f"| {part} | sarathi_serve |") == 1
    short = mixed.STUDY.short({table.name: table for table in mixed.STUDY.tables(found)})
    assert [row[1] for row in short.rows] == 2 * [*mixed.SHORT]
    assert (tmp_path / "mixed.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    crossover, goodput = figure.axes
    assert crossover.get_title() == "Crossover of arXiv 2606.00516"
    points = [xy for line in crossover.lines if line.get_linestyle() == "None" for xy in line.get_xydata().tolist()]
    said = [one for name, one in found.items() if "expected" in one]
    assert len(points) == len(said) == 4
    assert sorted(x for x, _ in points) == pytest.approx(sorted(100 * one["expected"] for one in said))
    assert sorted(y for _, y in points) == pytest.approx(
        sorted(100 * np.mean(np.array(one["MB"]) / one["EB"] - 1) for one in said)
    )
    named = {str(line.get_label()) for line in goodput.lines}
    assert {name for name in named if not name.startswith("_")} == {*mixed.PICTURED}
    loads = [float(name.rsplit(" ", 1)[1]) for name in found if name.startswith("azure-synthetic, load")]
    for line in goodput.lines:
        assert line.get_xdata().tolist() == loads
        assert 0 <= min(line.get_ydata()) <= max(line.get_ydata()) <= 100


def test_why_the_threshold_rises_with_load():
    """At light load everything that waits fits, so its number changes nothing; at high load it decides."""
    prefills = {}
    for load in (0.6, 0.97):
        for k in (1, 20):
            found = measured_threshold(k, load)
            prefills[load, k] = found["prefills"]
            if load == 0.97:
                assert (found["tpot_s"] < 0.05) == (k == 20)
    assert prefills[0.6, 1] == prefills[0.6, 20], "the number of the threshold mattered at light load"
    assert prefills[0.97, 20] < prefills[0.97, 1] / 3


def measured_threshold(k, load):
    where = make_scenario(
        "LLMSched/Mixed-v0", workload="azure-synthetic", order="late_last", num_requests=3000, load=load, split="test",
        cost="qwen3-30b-a3b-h200", prefill_token_cap=16_384, ttft_s=1.0, tpot_s=0.05, mixed_tokens=None,
        mixed_counts_active=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        found = evaluate(threshold(k), where, 1).columns
    return {name: float(found[name][0]) for name in ("prefills", "tpot_s")}
