"""Pictures of a study: what they hold, and what they refuse."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, MissingExtraError, PathError
from llmsched_env.evaluation import pictures
from llmsched_env.evaluation.pictures import Curve, gap_by_policy, multiplier_effect, timelines
from llmsched_env.instances import instance
from llmsched_env.simulator import Simulator
from llmsched_env.viewer.cells import COLOURS

MAX_BYTES = 400_000

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def episodes():
    made = []
    for name, scenario in (
        ("baseline", Scenario(num_clients=20, num_requests=100, queue="shared", order="fcfs")),
        ("sorted", Scenario(num_clients=20, num_requests=100, assignment="lpt")),
    ):
        episode = Simulator(instance(scenario, 0), record=True)
        while not episode.done:
            episode.step(1)
        made.append((name, episode))
    return made


def gap(name, mean, *, kind="rule", clairvoyant=False):
    return {"name": name, "kind": kind, "clairvoyant": clairvoyant, "mean": mean, "lo": 0.9 * mean, "hi": 1.1 * mean}


def curve(**changes):
    points = {"name": "hybrid", "multipliers": [10, 0.01, 1], "mean": [0.03, 0.05, 0.02]}
    points |= {"lo": [0.02, 0.04, 0.01], "hi": [0.04, 0.06, 0.03]}
    return Curve(**(points | changes))


def pixels(path):
    assert path.stat().st_size < MAX_BYTES
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was saved last."""
    kept = {}
    save = pictures._save

    def keep(figure, path):
        kept["figure"] = figure
        return save(figure, path)

    monkeypatch.setattr(pictures, "_save", keep)
    return kept


def test_timelines(episodes, tmp_path, drawn):
    picture = pixels(timelines(tmp_path / "timelines.png", episodes))
    for kind, colour in COLOURS.items():
        assert (picture == colour).all(axis=2).sum() > 50, f"no {kind} to be seen"
    axes = drawn["figure"].axes
    wholes, tails = axes[0::2], axes[1::2]
    assert [one.get_title("left") for one in wholes] == ["baseline", "sorted"]
    assert len({one.get_xlim() for one in wholes}) == len({one.get_xlim() for one in tails}) == 1
    for whole, tail, (_, episode) in zip(wholes, tails, episodes, strict=True):
        ends = {float(episode.view.clock_ns) / 1e9, episode.instance.bound_ns / 1e9}
        for one in (whole, tail):
            assert ends <= {line.get_xdata()[0] for line in one.lines}
            assert one.get_xlim()[0] < min(ends) <= max(ends) < one.get_xlim()[1]
        busy = float(episode.totals["busy_client_ns"]) / (20 * float(episode.view.clock_ns))
        assert f"utilization {100 * busy:.1f} %" in whole.texts[0].get_text()
    assert axes[-1].get_xlabel() == "time (s)"


def test_same_data_same_bytes(episodes, tmp_path):
    first, second = (timelines(tmp_path / name, episodes[:1]).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_gaps_are_sorted_and_distinct(tmp_path, drawn):
    rows = [gap("late", 0.03), gap("early", 0.01, clairvoyant=True), SimpleNamespace(**gap("middle", 0.02))]
    pixels(gap_by_policy(tmp_path / "gap.png", rows))
    axes = drawn["figure"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["early", "middle", "late"]
    marks = [line for line in axes.lines if line.get_marker() == "s"]
    assert [line.get_xdata()[0] for line in marks] == pytest.approx([1, 2, 3])
    assert [line.get_markerfacecolor() == "white" for line in marks] == [True, False, False]
    assert axes.get_xscale() == "linear"


def test_thirty_gaps_with_a_long_tail(tmp_path, drawn):
    kinds = ("method", "rule", "planner", "agent")
    rows = [gap(f"policy_{i}", 0.01 + i / 1000, kind=kinds[i % 4], clairvoyant=i % 3 == 0) for i in range(29)]
    pixels(gap_by_policy(tmp_path / "gap.png", [*rows, gap("decode_first", 1.1)]))
    axes = drawn["figure"].axes[0]
    assert axes.get_xscale() == "log"
    assert "logarithmic" in axes.get_xlabel()
    assert axes.get_xlim()[0] < 1
    assert axes.get_xlim()[1] > 110


def test_a_gap_of_nothing(tmp_path, drawn):
    pixels(gap_by_policy(tmp_path / "gap.png", [gap("optimal", 0.0), gap("far", 1.0)]))
    assert drawn["figure"].axes[0].get_xscale() == "linear"


@pytest.mark.parametrize(("value", "factor", "label"), [("gap", 100, "(%)"), ("makespan", 1, "(s)")])
def test_multiplier_effect(tmp_path, drawn, value, factor, label):
    pixels(multiplier_effect(tmp_path / "mu.png", [curve(), curve(name="other")], value=value))
    axes = drawn["figure"].axes[0]
    assert axes.get_xscale() == "log"
    assert label in axes.get_ylabel()
    line, ring = axes.lines[:2]
    assert line.get_xdata() == pytest.approx([0.01, 1, 10])
    assert line.get_ydata() == pytest.approx(factor * np.array([0.05, 0.02, 0.03]))
    assert ring.get_xdata()[0] == 1
    assert len(axes.collections) == 2, "no band for a curve"


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda path: timelines(path, []), "at least one"),
        (lambda path: gap_by_policy(path, []), "at least one row"),
        (lambda path: gap_by_policy(path, [gap("x", 0.1, kind="guess")]), "'guess'.*method, rule"),
        (lambda path: gap_by_policy(path, [gap("x", float("nan"))]), "'x'.*not finite"),
        (lambda path: multiplier_effect(path, []), "0 curves"),
        (lambda path: multiplier_effect(path, [curve()], value="speed"), "'speed'"),
        (lambda path: multiplier_effect(path, [curve(multipliers=[0, 1, 2])]), "not above 0"),
    ],
)
def test_bad_input_leaves_no_file(tmp_path, draw, words):
    with pytest.raises(ConfigError, match=words):
        draw(tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_timelines_need_episodes_that_have_begun(episodes, tmp_path):
    fresh = Simulator(episodes[0][1].instance, record=True)
    with pytest.raises(ConfigError, match="have begun"):
        timelines(tmp_path / "out.png", [("fresh", fresh)])


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="Choose a writable folder"):
        gap_by_policy(tmp_path / "file" / "gap.png", [gap("x", 0.1)])


def test_matplotlib_missing(tmp_path, monkeypatch):
    real = importlib.import_module

    def import_module(name, package=None):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(MissingExtraError, match=r"needs matplotlib.*llmsched-env\[viz\]"):
        gap_by_policy(tmp_path / "gap.png", [gap("x", 0.1)])
    assert not list(tmp_path.iterdir())
