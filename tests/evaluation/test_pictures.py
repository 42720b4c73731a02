"""Pictures of a study: what they hold, and what they refuse."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, MissingExtraError, PathError
from llmsched_env.evaluation import drawing, pictures, serving_pictures
from llmsched_env.evaluation.drawing import spread
from llmsched_env.evaluation.pictures import (
    Curve,
    Line,
    gap_by_correlation,
    gap_by_policy,
    multiplier_effect,
    timelines,
)
from llmsched_env.evaluation.serving_pictures import LoadCurve, goodput_against_load, latency_distributions
from llmsched_env.evaluation.statistics import Estimate
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
        episode = Simulator(build_problem(scenario, 0), record=True)
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
    save = drawing.save

    def keep(figure, path):
        kept["figure"] = figure
        return save(figure, path)

    for module in (pictures, serving_pictures):
        monkeypatch.setattr(module, "save", keep)
    return kept


def test_timelines(episodes, tmp_path, drawn):
    picture = pixels(timelines(tmp_path / "timelines.png", episodes))
    for kind, colour in COLOURS.items():
        seen = int((picture == colour).all(axis=2).sum())
        assert (seen > 50) == (kind != "mixed"), f"{seen} pixels of {kind}"
    axes = drawn["figure"].axes
    wholes, tails = axes[0::2], axes[1::2]
    assert [one.get_title("left") for one in wholes] == ["baseline", "sorted"]
    assert len({one.get_xlim() for one in wholes}) == len({one.get_xlim() for one in tails}) == 1
    for whole, tail, (_, episode) in zip(wholes, tails, episodes, strict=True):
        ends = {float(episode.view.clock_ns) / 1e9, episode.problem.bound_ns / 1e9}
        for one in (whole, tail):
            assert ends <= {line.get_xdata()[0] for line in one.lines}
            assert one.get_xlim()[0] < min(ends) <= max(ends) < one.get_xlim()[1]
        busy = float(episode.totals.busy_client_ns) / (20 * float(episode.view.clock_ns))
        assert f"utilization {100 * busy:.1f} %" in whole.texts[0].get_text()
    assert axes[-1].get_xlabel() == "time (s)"


def test_timelines_say_of_what(episodes, tmp_path, drawn):
    pixels(timelines(tmp_path / "timelines.png", episodes, title="GSM8K, test case 3"))
    assert drawn["figure"].get_suptitle() == "GSM8K, test case 3"


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
    far = [gap(f"far_{i}", 1.1 + i / 10) for i in range(10)]
    pixels(gap_by_policy(tmp_path / "gap.png", [*rows, *far]))
    axes = drawn["figure"].axes[0]
    assert axes.get_xscale() == "log"
    assert "logarithmic" in axes.get_xlabel()
    assert axes.get_xlim()[0] < 1
    assert axes.get_xlim()[1] > 110


def test_few_policies_that_are_far_behind_do_not_stretch_the_axis(tmp_path, drawn):
    rows = [gap(f"policy_{i}", 0.01 + i / 1000) for i in range(9)]
    pixels(gap_by_policy(tmp_path / "gap.png", [*rows, gap("random", 0.5), gap("decode_first", 1.1)]))
    axes = drawn["figure"].axes[0]
    assert axes.get_xscale() == "linear"
    assert 1.8 < axes.get_xlim()[1] < 3
    arrows = [line for line in axes.lines if line.get_marker() == ">"]
    assert [line.get_xdata()[0] for line in arrows] == [axes.get_xlim()[1]] * 2
    assert texts(axes)[-2:] == ["50.0 %", "110.0 %"]
    assert "arrows: off the axis" in axes.get_xlabel()


def test_a_gap_of_nothing(tmp_path, drawn):
    pixels(gap_by_policy(tmp_path / "gap.png", [gap("optimal", 0.0), gap("far", 1.0)]))
    assert drawn["figure"].axes[0].get_xscale() == "linear"


@pytest.mark.parametrize(("value", "factor", "label"), [("gap", 100, "(%)"), ("makespan", 1, "(s)")])
def test_multiplier_effect(tmp_path, drawn, value, factor, label):
    pixels(multiplier_effect(tmp_path / "mu.png", [curve(), curve(name="other")], value=value))
    axes = drawn["figure"].axes[0]
    assert axes.get_xscale() == "log"
    assert label in axes.get_ylabel()
    assert any(text.startswith("λ = 1") for text in texts(axes))
    line, ring = axes.lines[:2]
    assert line.get_xdata() == pytest.approx([0.01, 1, 10])
    assert line.get_ydata() == pytest.approx(factor * np.array([0.05, 0.02, 0.03]))
    assert ring.get_xdata()[0] == 1
    assert len(axes.collections) == 2, "no band for a curve"


def load_curve(name="rule", mean=(0.5, 0.99), **changes):
    points = {"loads": [0.9, 0.6], "mean": mean, "low": [0.4, 0.98], "high": [0.6, 1.0], "kind": "rule"}
    return LoadCurve(**({"name": name} | points | changes))


def load(path, curves, **options):
    return goodput_against_load(path, curves, **{"limits_s": (2.0, 0.05), **options})


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_violations_tell_the_best_and_the_named_apart(tmp_path, drawn):
    curves = [load_curve(f"rule_{i}", (0.02 * i, 0.9), worst_token_gap_s=[0.3, 0.1 + 0.01 * i]) for i in range(20)]
    pixels(load(tmp_path / "goodput.png", curves, named=("rule_3",), best=2))
    violations, gaps = drawn["figure"].axes
    assert [text for text in texts(violations) if text.startswith("rule")] == ["rule_19", "rule_18", "rule_3"]
    assert any("TTFT > 2 s or TPOT > 50 ms" in text and "the range of 17 others" in text for text in texts(violations))
    assert texts(gaps) == ["rule_19", "rule_18", "rule_3"]
    told = {text.get_color() for text in violations.texts if text.get_text().startswith("rule")}
    assert len(told) == 3
    for axes in (violations, gaps):
        assert {line.get_color() for line in axes.lines} == told
        assert len(axes.lines) == 3
        assert axes.get_yscale() == "log"
    # The others as one band, from the best to the worst of them; bands of the named one and of the best.
    assert len(violations.collections) == 3
    band = violations.collections[0].get_paths()[0].vertices
    at_the_end = band[np.isclose(band[:, 0], 0.9), 1]
    assert (at_the_end.min(), at_the_end.max()) == pytest.approx((100 * (1 - 0.34), 100))
    assert gaps.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(0.3)


def test_a_dozen_can_be_told_apart(tmp_path, drawn):
    pixels(load(tmp_path / "goodput.png", [load_curve(f"rule_{i}") for i in range(14)], best=14))
    styles = {(line.get_color(), line.get_linestyle()) for line in drawn["figure"].axes[0].lines}
    assert len(styles) == 12


def test_violations_in_order_of_load(tmp_path, drawn):
    pixels(load(tmp_path / "goodput.png", [load_curve(low=[np.nan] * 2, high=[np.nan] * 2)]))
    (axes,) = drawn["figure"].axes
    assert axes.lines[0].get_xdata() == pytest.approx([0.6, 0.9])
    assert axes.lines[0].get_ydata() == pytest.approx([1, 50])
    assert axes.get_xlabel() == "load: rate of arrivals / capacity"
    assert not any("grey" in text for text in texts(axes))


def test_requests_per_second_with_the_load_above(tmp_path, drawn):
    served = [load_curve("perfect", (0.8, 1.0), requests_per_s=[7, 5]), load_curve("poor", requests_per_s=[7, 5])]
    pixels(load(tmp_path / "goodput.png", served))
    axes = drawn["figure"].axes[0]
    assert axes.get_xlabel() == "requests/s"
    assert axes.lines[0].get_xdata().tolist() == [5, 7]
    floor = axes.get_ylim()[0]
    assert 0 < floor < 1
    assert axes.lines[1].get_ydata() == pytest.approx([floor, 20]), "a logarithm has no 0"
    (above,) = axes.child_axes
    assert [label.get_text() for label in above.get_xticklabels()] == ["0.6", "0.9"]
    unknown = load_curve("poor", requests_per_s=[7, 5], loads=[np.nan] * 2)
    pixels(load(tmp_path / "goodput.png", [unknown]))
    assert not drawn["figure"].axes[0].child_axes


def test_the_best_is_judged_where_all_were_run(tmp_path, drawn):
    # "short" has the higher mean, being spared the hard load; where both were run, "long" is better.
    short = load_curve("short", (0.85, 0.9), loads=[0.7, 0.6])
    long = load_curve("long", (0.1, 0.95, 0.99), loads=[1.0, 0.7, 0.6], low=[0, 0, 0], high=[1, 1, 1])
    pixels(load(tmp_path / "goodput.png", [long, short], best=1))
    assert texts(drawn["figure"].axes[0])[-1] == "long"


def latencies(seed=0, n=1000):
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(0, 1.5, n)), np.where(np.arange(n) < n // 10, np.nan, 0.03 * np.exp(rng.normal(0, 0.1, n)))


def test_distributions_say_what_share_meets_the_slo(tmp_path, drawn):
    named = [(f"policy_{seed}", *latencies(seed, n)) for seed, n in enumerate((1000, 7, 20_000))]
    pixels(latency_distributions(tmp_path / "latency.png", named, ttft_s=1.0, tpot_s=0.031))
    left, right = drawn["figure"].axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("TTFT (s)", "TPOT (ms)")
    for axes, column, limit_s, scale in ((left, 1, 1.0, 1), (right, 2, 0.031, 1000)):
        assert axes.get_xscale() == "log"
        curves = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
        assert len(curves) == 3
        for entry, curve, text in zip(named, curves, [t for t in axes.texts if "policy" in t.get_text()], strict=True):
            met = 100 * np.mean(~(entry[column] > limit_s))  # one token: met
            assert text.get_text() == f"{met:.1f} %  {entry[0]}"
            assert text.get_color() == curve.get_color()
            x, y = curve.get_data()
            at = int(np.searchsorted(x, scale * limit_s, side="right")) - 1
            assert y[at] == pytest.approx(met, abs=0.1)
            assert (np.diff(x) >= 0).all()
            assert (np.diff(y) >= 0).all()
            assert (y[0], y[-1]) == (0, 100)


def test_labels_keep_their_distance():
    assert spread([0.5], 0.1, 0, 1) == pytest.approx([0.5])
    assert spread([0.9, 0.1, 0.5], 0.1, 0, 1) == pytest.approx([0.9, 0.1, 0.5]), "moved without need"
    assert spread([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])
    assert spread([0.52, 0.5, 0.9], 0.1, 0, 1) == pytest.approx([0.56, 0.46, 0.9])
    assert spread([0.3, 0.46, 0.41], 0.1, 0, 1) == pytest.approx([0.29, 0.49, 0.39]), "a block that joins another"
    assert spread([1.0, 1.0, 1.0], 0.1, 0, 1) == pytest.approx([0.8, 0.9, 1.0])
    assert spread([0.0, 0.0], 0.1, 0, 1) == pytest.approx([0.0, 0.1])
    crowded = spread(np.full(20, 0.3), 0.1, 0, 1)
    assert np.diff(crowded) == pytest.approx([0.1] * 19)


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
        (lambda path: load(path, []), "at least one curve"),
        (lambda path: load(path, [load_curve(kind="guess")]), "'guess'.*method, rule"),
        (lambda path: load(path, [load_curve(low=[0.1])]), r"'rule'.*\(2,\), \(1,\).*one value a load"),
        (lambda path: load(path, [load_curve(loads=[0, 1])]), "loads above 0"),
        (lambda path: load(path, [load_curve(mean=[0.5, np.nan])]), "means that are finite"),
        (lambda path: load(path, [load_curve(worst_token_gap_s=[0, 1])]), "logarithmic"),
        (lambda path: load(path, [load_curve(), load_curve()]), "more than one curve is called 'rule'"),
        (lambda path: load(path, [load_curve()], named=["role"]), "no curve is called 'role'"),
        (lambda path: load(path, [load_curve()], named=["rule"] * 13), "12 at most"),
        (lambda path: load(path, [load_curve(), load_curve("x", requests_per_s=[1, 2])]), "some have not"),
        (lambda path: load(path, [load_curve(requests_per_s=[0, 2])]), "rates above 0"),
        (lambda path: latency_distributions(path, [], ttft_s=1, tpot_s=1), "1 to 6 policies, and was given 0"),
        (lambda path: latency_distributions(path, [("x", [1], [1, 2])], ttft_s=1, tpot_s=1), "'x'.*of each request"),
        (lambda path: latency_distributions(path, [("x", [np.nan], [1])], ttft_s=1, tpot_s=1), "'x'.*not complete"),
        (lambda path: latency_distributions(path, [("x", [1], [0])], ttft_s=1, tpot_s=1), "'x'.*not above 0 s"),
        (lambda path: latency_distributions(path, [("x", [1], [1])], ttft_s=1, tpot_s=np.inf), "tpot_s = inf"),
    ],
)
def test_bad_input_leaves_no_file(tmp_path, draw, words):
    with pytest.raises(ConfigError, match=words):
        draw(tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_timelines_need_episodes_that_have_begun(episodes, tmp_path):
    fresh = Simulator(episodes[0][1].problem, record=True)
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


def line(name, *means):
    gaps = [Estimate(mean, mean - 0.002, mean + 0.002) for mean in means]
    return Line(name, [0.2, 0.6, 1.0][: len(means)], gaps)


def test_gap_by_correlation(tmp_path, drawn):
    panels = {"all": [line("k = 0", 0.04, 0.05, 0.01), line("k = 1", 0.03, 0.02, 0.01)], "half": [line("k = 0", 0.02)]}
    path = gap_by_correlation(
        tmp_path / "x.png", panels, ("fcfs", Estimate(0.038, 0.037, 0.039)), title="Longest first"
    )
    pixels(path)
    left, right = drawn["figure"].axes
    assert [one.get_xlabel() for one in (left, right)] == ["all", "half"]
    assert [one.get_label() for one in left.lines] == ["fcfs", "k = 0", "k = 1"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), 3.8)
    np.testing.assert_allclose(left.lines[1].get_ydata(), [4, 5, 1])
    np.testing.assert_allclose(left.lines[1].get_xdata(), [0.2, 0.6, 1.0])
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[0] == 0
    with pytest.raises(ConfigError, match="needs at least one panel"):
        gap_by_correlation(tmp_path / "y.png", {}, ("fcfs", Estimate(0.038, 0.037, 0.039)), title="")
