"""The study of moving requests, at a size of seconds."""

from __future__ import annotations

import numpy as np
import pytest

from llmsched_env.cases import build_problem
from llmsched_env.studies import migration
from llmsched_env.studies.migration import (
    BYTES,
    CHAIN,
    FREE,
    LINKS,
    RULES,
    STEALS,
    VARIANTS,
    LongPrompts,
    break_even_gb_per_s,
    gain,
    measure,
    place,
    surviving,
    worth,
)
from llmsched_env.studies.study import Options, run
from llmsched_env.workload import workload


def test_long_prompts_change_nothing_else():
    base, long = workload("gsm8k"), LongPrompts("gsm8k", 10)
    mine, theirs = long.requests("test", 3), base.requests("test", 3)
    assert (mine.prompt_tokens == 10 * theirs.prompt_tokens).all()
    assert (mine.output_tokens == theirs.output_tokens).all()
    assert mine.mean_output_tokens == theirs.mean_output_tokens
    assert long.pool_size("test") == base.pool_size("test")


def test_sizes_are_in_proportion():
    usual, large = (place("gsm8k", "known", clients, 0.5) for clients in (200, 1000))
    assert (usual.assignment, large.assignment, large.num_requests) == ("mip", "lpt", 6595)
    assert build_problem(usual, 0).num_requests == 1319
    blind = place("gsm8k", "predicted, long prompts", 200, 0.5)
    assert (blind.assignment, blind.lengths, blind.predictor) == ("lpt", "predicted", "noisy")
    assert blind.source == LongPrompts("gsm8k", 10)


@pytest.fixture(scope="module")
def said():
    return measure("gsm8k-smooth", "predicted, long prompts", 20, 0.9, 3)


def test_what_is_measured(said):
    names = [f"{rule}, {steal}, {link}" for rule in RULES for steal, links in STEALS.items() for link in links]
    assert list(said) == [*CHAIN, *names]
    for name in CHAIN:
        assert said[name]["thefts"] == said[name]["moved"] == [0, 0, 0]
    for rule in RULES:
        assert min(said[f"{rule}, waiting, free"]["thefts"]) > 0
    bare = measure("gsm8k-smooth", "predicted, long prompts", 20, 0.0, 1)
    assert bare["lagrangian, waiting, free"]["moved"] == [0]
    assert bare["lagrangian, running, free"]["moved"][0] > 0
    assert "lagrangian, waiting, PCIe" not in bare, "nothing moves"


def test_the_makespan_is_linear_in_the_time_of_a_token(said):
    """So break-even bandwidths need no interpolation."""
    for rule in RULES:
        for steal in ("waiting", "running"):
            runs = {link: said[f"{rule}, {steal}, {link}"] for link in LINKS if link != "recompute"}
            moved = np.array(runs["free"]["moved"])
            for link, found in runs.items():
                assert found["moved"] == runs["free"]["moved"]
                more_ns = moved * (round(BYTES / LINKS[link]) - round(BYTES / FREE))
                late_ns = 1e9 * (np.array(found["makespan_s"]) - np.array(runs["free"]["makespan_s"]))
                assert late_ns == pytest.approx(more_ns, abs=1000)


def test_at_the_break_even_bandwidth_nothing_is_gained(said):
    speed = break_even_gb_per_s(said, "lagrangian", "running")
    assert 0 < speed < FREE
    here = place("gsm8k-smooth", "predicted, long prompts", 20, 0.9)
    rule, changes = CHAIN["lagrangian, no stealing"]
    alone = migration.columns(rule, here.replace(**changes), 3)["makespan_s"]
    stolen = {
        factor: migration.columns(rule, here.replace(steal="running", move_gb_per_s=factor * speed), 3)["makespan_s"]
        for factor in (0.5, 1, 2)
    }
    assert np.mean(stolen[1]) == pytest.approx(np.mean(alone), rel=1e-6)
    assert np.mean(stolen[2]) < np.mean(alone) < np.mean(stolen[0.5])


def column(makespans, moved=None):
    return {"makespan_s": makespans, "utilization": [0.5] * len(makespans), "thefts": [1, 1], "moved": moved or [0, 0]}


def test_shares_on_paper():
    """The offline method takes 100 s and 200 s, the hybrid 90 s and 180 s if stealing is free: 10 % less."""
    made = {
        "offline": column([100.0, 200.0]),
        "lagrangian, no stealing": column([95.0, 190.0]),
        "lagrangian, waiting, free": column([90.0, 180.0], [1000, 3000]),
        "lagrangian, waiting, PCIe": column([92.0, 182.0], [1000, 3000]),
    }
    assert gain(made, "lagrangian, no stealing").tolist() == pytest.approx([5.0, 5.0])
    assert gain(made, "lagrangian, cheaper, Ethernet").tolist() == pytest.approx([10.0, 10.0]), "nothing to move"
    found = surviving(made, "lagrangian, no stealing")
    assert (found.mean, found.low, found.high) == pytest.approx((50.0, 50.0, 50.0))
    assert surviving(made, "lagrangian, waiting, PCIe").mean == pytest.approx(100 * (8 + 9) / 20)
    assert worth(made, "lagrangian", "waiting", "free").tolist() == pytest.approx([100 * 5 / 95, 100 * 10 / 190])
    # 2,000 tokens of 2.6 MB in the mean, for 7.5 s and the time that they took at 10^6 GB/s.
    moved_gb = 2000 * BYTES / 1e9
    assert break_even_gb_per_s(made, "lagrangian", "waiting") == pytest.approx(moved_gb / (7.5 + moved_gb / FREE))
    made["lagrangian, waiting, free"] = column([101.0, 180.0])
    assert np.isnan(surviving(made, "lagrangian, no stealing").mean), "no sure gain that could survive"


def test_table_and_picture(tmp_path, monkeypatch, figures):
    monkeypatch.setattr(migration, "LENGTHS", {"gsm8k": "GSM8K"})
    monkeypatch.setattr(migration, "VARIANTS", {name: VARIANTS[name] for name in ("known", "predicted, long prompts")})
    monkeypatch.setattr(migration, "SHARES", (0.0, 0.9))
    found = run(migration.STUDY, Options(2, (20,)), tmp_path, workers=1, progress=False)
    assert list(found) == [
        "gsm8k; known; 20 clients; 0", "gsm8k; known; 20 clients; 0.9",
        "gsm8k; predicted, long prompts; 20 clients; 0", "gsm8k; predicted, long prompts; 20 clients; 0.9",
    ]  # fmt: skip
    text = (tmp_path / "migration.md").read_text(encoding="utf-8")
    for title in (*migration.SURVIVORS, *migration.LINKS_OF_CHAIN, "gsm8k, known, 20 clients"):
        assert f"| {title} |" in text
    assert sum(line.startswith("| --- |") for line in text.splitlines()) == 3
    short = migration.STUDY.short({table.name: table for table in migration.STUDY.tables(found)})
    assert len(short.rows) == len(migration.SHORT)
    assert (tmp_path / "migration.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == [
        "GSM8K, known, 20 clients", "GSM8K, predicted, long prompts, 20 clients",
    ]  # fmt: skip
    for axes, variant in zip(figure.axes, ("known", "predicted, long prompts"), strict=True):
        curves = {line.get_label(): line for line in axes.lines if "requests" in str(line.get_label())}
        assert list(curves) == [
            f"takes {steal} requests, {share} cached" for share in ("0", "0.9") for steal in ("waiting", "running")
        ]
        free = curves["takes waiting requests, 0 cached"].get_ydata()
        said = found[f"gsm8k; {variant}; 20 clients; 0"]
        alone, stolen = (
            np.mean(said[f"lagrangian, {what}"]["makespan_s"]) for what in ("no stealing", "waiting, free")
        )
        gain_percent = 100 * (1 - stolen / alone)
        assert free == pytest.approx(np.full(len(free), gain_percent)), "nothing moves, whatever the bandwidth"
        moved = curves["takes running requests, 0.9 cached"]
        assert (np.diff(moved.get_ydata()) > 0).all(), "the faster the link, the more is gained"
        assert (moved.get_xdata()[0], moved.get_xdata()[-1]) == pytest.approx((0.1, 1000.0))
