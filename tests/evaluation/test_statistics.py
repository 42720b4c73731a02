"""Intervals and scores against scipy and against what can be said without computing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from strategies import REPEATABLE

from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import (
    Estimate,
    aggregate_estimate,
    mean_estimate,
    runs_estimate,
    score_estimate,
    share_estimate,
)

values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)


def draws(seed, n=20):
    return np.random.default_rng(seed).normal(200.0, 3.0, n)


@REPEATABLE
@given(values)
def test_the_interval_is_students(x):
    found = mean_estimate(x)
    scale = float(np.std(x, ddof=1) / math.sqrt(len(x)))
    assert found.mean == pytest.approx(float(np.mean(x)))
    if scale > 1e-9:
        low, high = stats.t.interval(0.95, len(x) - 1, loc=np.mean(x), scale=scale)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-6)
    else:
        assert found.high - found.low < 1e-6


def test_an_interval_on_paper():
    # 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653: half width 4.302653 / sqrt(3) = 2.484138.
    assert mean_estimate([1, 2, 3]) == pytest.approx((2.0, 2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_the_interval_of_a_share_stays_within_0_and_1():
    # 0.8, 1, 0.9: mean 0.9, sd 0.1: half width 4.302653 * 0.1 / sqrt(3) = 0.248414.
    assert share_estimate([0.8, 1.0, 0.9]) == pytest.approx((0.9, 0.651586, 1.0), abs=1e-6)
    assert share_estimate([0.2, 0.0, 0.1]) == pytest.approx((0.1, 0.0, 0.348414), abs=1e-6)


def test_an_interval_holds_the_truth_95_times_in_100():
    hits = sum(low <= 200.0 <= high for _, low, high in (mean_estimate(draws(seed, 8)) for seed in range(1000)))
    assert 930 <= hits <= 970


def test_one_case_says_nothing_of_the_spread():
    for found in (mean_estimate([3.0]), score_estimate([2.0], [3.0], [1.0])):
        assert np.isnan([found.low, found.high]).all()
    assert mean_estimate([3.0]).mean == 3.0
    assert score_estimate([2.0], [3.0], [1.0]).mean == 0.5


def test_the_reference_scores_0_and_the_planner_1():
    rule, planner = draws(0), draws(1) - 10
    assert score_estimate(rule, rule, planner) == (0.0, 0.0, 0.0)
    assert score_estimate(planner, rule, planner) == (1.0, 1.0, 1.0)
    between = score_estimate((3 * rule + planner) / 4, rule, planner)
    assert between == pytest.approx((0.25, 0.25, 0.25))


def test_a_score_is_a_ratio_of_means():
    # Means 12, 20, 10: (20 - 12) / (20 - 10).
    assert score_estimate([10, 14], [15, 25], [8, 12]).mean == 0.8
    # Worse than the rule, better than the planner.
    assert score_estimate([22, 22], [20, 20], [10, 10]).mean == pytest.approx(-0.2)
    assert score_estimate([9, 9], [20, 20], [10, 10]).mean == pytest.approx(1.1)


def test_the_bootstrap_is_paired_and_repeatable():
    rule = draws(2)
    planner = rule - 5 + draws(3) / 100
    policy = rule - 2 + draws(4) / 100
    first = score_estimate(policy, rule, planner)
    assert score_estimate(policy, rule, planner) == first
    assert first.low < first.mean < first.high
    # The spread of the cases themselves (sd 3) cancels within a case.
    assert first.high - first.low < 0.02
    shuffled = score_estimate(np.roll(policy, 1), rule, planner)
    assert shuffled.mean == pytest.approx(first.mean)
    assert shuffled.high - shuffled.low > 10 * (first.high - first.low)


def test_the_bootstrap_agrees_with_a_direct_one():
    policy, rule, planner = draws(5), draws(6) + 8, draws(7) - 8
    rng = np.random.default_rng(99)
    direct = []
    for _ in range(4000):
        rows = rng.integers(0, len(rule), len(rule))
        direct.append((rule[rows].mean() - policy[rows].mean()) / (rule[rows].mean() - planner[rows].mean()))
    found = score_estimate(policy, rule, planner)
    assert (found.low, found.high) == pytest.approx(np.quantile(direct, [0.025, 0.975]), abs=0.01)


def test_runs_count_by_their_middle_half():
    # Means of the runs 1, 2, 3, 4, 100: without the lowest and the highest 3.
    runs = np.array([[1, 1], [2, 2], [3, 3], [4, 4], [100, 100]])
    assert runs_estimate(runs).mean == 3.0
    assert score_estimate(runs, [5, 5], [1, 1]).mean == 0.5
    # One run is that run, and without spread over cases nothing is left to be unsure of.
    assert runs_estimate([7.0, 7.0]) == (7.0, 7.0, 7.0)
    assert runs_estimate([[1.0], [3.0]]).mean == 2.0
    assert np.isnan(runs_estimate([[1.0], [3.0]]).low)


@REPEATABLE
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.integers(1, 3))
def test_the_interquartile_mean_is_scipys(means, cases):
    runs = np.repeat(np.array(means)[:, None], cases, axis=1)
    assert runs_estimate(runs).mean == pytest.approx(stats.trim_mean(means, 0.25), rel=1e-9, abs=1e-6)


def test_the_bootstrap_over_runs_and_cases_agrees_with_a_direct_one():
    rule, planner = draws(5) + 8, draws(7) - 8
    runs = np.stack([draws(20 + run) + run for run in range(5)])
    rng = np.random.default_rng(99)
    scores, means = [], []
    for _ in range(4000):
        cases, drawn = rng.integers(0, len(rule), len(rule)), rng.integers(0, 5, 5)
        means.append(stats.trim_mean(runs[drawn][:, cases].mean(axis=1), 0.25))
        scores.append((rule[cases].mean() - means[-1]) / (rule[cases].mean() - planner[cases].mean()))
    found = score_estimate(runs, rule, planner)
    assert (found.low, found.high) == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.02)
    found = runs_estimate(runs)
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.15)
    # Where all cases are alike, what is left to be unsure of are the runs.
    low, mean, high = (runs_estimate(np.arange(5.0)[:, None] + np.zeros(20))[i] for i in (1, 0, 2))
    assert 0.0 <= low < mean == 2.0 < high <= 4.0


@pytest.mark.parametrize("planner", [[5.0, 7.0], [6.0, 8.0], [np.nan, 7.0], [1.0, 9.0]])
def test_no_score_where_the_planner_gains_nothing(planner):
    found = score_estimate([5.0, 6.0], [5.0, 7.0], planner)
    assert np.isnan(found).all()
    assert found.as_json() == {"mean": None, "ci95": [None, None]}


@pytest.mark.parametrize(
    ("policy", "rule", "planner", "words"),
    [
        # Each of them was broadcast to something once.
        ([1.0, 2.0], [3.0], [0.0, 1.0], r"rule has shape \(1,\), but the policy played 2 cases: give .* \(2,\)"),
        ([1.0, 2.0], [3.0, 4.0], [0.0], r"planner has shape \(1,\), but the policy played 2 cases"),
        ([1.0], [3.0, 4.0], [0.0, 1.0], r"rule has shape \(2,\), but the policy played 1 cases"),
        ([[1.0, 2.0]], [[3.0, 4.0]], [0.0, 1.0], r"rule has shape \(1, 2\), but"),
        ([1.0, 2.0], 3.0, [0.0, 1.0], r"rule has shape \(\), but"),
        ([[[1.0, 2.0]]], [3.0, 4.0], [0.0, 1.0], r"policy has shape \(1, 1, 2\): give \(cases,\), or \(runs, cases\)"),
        (1.0, [3.0], [0.0], r"policy has shape \(\): give"),
        ([], [], [], r"policy has shape \(0,\): give .* at least one of each"),
    ],
)
def test_shapes_that_do_not_go_together(policy, rule, planner, words):
    with pytest.raises(ConfigError, match=words):
        score_estimate(policy, rule, planner)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3, 4)])
def test_runs_of_another_shape(shape):
    with pytest.raises(ConfigError, match=r"runs has shape \(.*\): give \(cases,\), or \(runs, cases\)"):
        runs_estimate(np.ones(shape))


def test_nan_is_null_in_json():
    assert mean_estimate([1.0, np.nan]).as_json() == {"mean": None, "ci95": [None, None]}
    assert Estimate(1.0, math.nan, math.nan).as_json() == {"mean": 1.0, "ci95": [None, None]}
    assert json.loads(json.dumps(mean_estimate(np.float32([1, 2])).as_json()))["mean"] == 1.5


def task(*scores, cases=4):
    """Runs with these scores in a task whose rule takes 10 and whose planner 0, in every case."""
    return [[10.0 - 10.0 * score] * cases for score in scores], [10.0] * cases, [0.0] * cases


def test_an_aggregate_on_paper():
    # Of 0, 0.2, 0.4, 0.9 the middle two: (0.2 + 0.4) / 2. Nothing differs between cases.
    found = aggregate_estimate([task(0.9), task(0.0), task(0.4), task(0.2)])
    assert found == pytest.approx((0.3, 0.3, 0.3))
    # Runs 0 and 1 in one task, 0.5 in the other: each of the first weighs half as much. Of 0, 0.5, 0.5, 1 the middle.
    assert aggregate_estimate([task(0.0, 1.0), task(0.5)]).mean == pytest.approx(0.5)
    # One run 0 in one task, 1 and 0.6 in the other: of 0, 0, 0.6, 1 the middle two, (0 + 0.6) / 2.
    assert aggregate_estimate([task(0.0), task(1.0, 0.6)]).mean == pytest.approx(0.3)
    # A quarter of six is one and a half: of 0, 1, 2, 4, 8, 16 half of 1, 2, 4 and half of 8, (0.5 + 2 + 4 + 4) / 3.
    six = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert aggregate_estimate([task(score) for score in six]).mean == pytest.approx(3.5)
    # So it is however often each run is given, in all tasks or in some.
    assert aggregate_estimate([task(score, score) for score in six]).mean == pytest.approx(3.5)
    assert aggregate_estimate([task(*[score] * (1 + int(score) % 5)) for score in six]).mean == pytest.approx(3.5)


@settings(REPEATABLE, max_examples=20)
@given(
    st.integers(1, 3).flatmap(
        lambda runs: st.lists(st.lists(st.floats(-2, 2), min_size=runs, max_size=runs), min_size=1, max_size=6)
    )
)
def test_an_aggregate_of_as_many_runs_in_each_task_is_rliables(scores):
    found = aggregate_estimate([task(*runs) for runs in scores])
    # Of four times as many a quarter is whole.
    assert found.mean == pytest.approx(stats.trim_mean(np.repeat(np.ravel(scores), 4), 0.25), abs=1e-9)
    # Where some runs are repeated, nothing changes.
    again = aggregate_estimate([task(*runs, *(runs if number else ())) for number, runs in enumerate(scores)])
    assert again.mean == pytest.approx(found.mean, abs=1e-9)


def test_an_aggregate_of_one_task_is_its_score():
    rule, planner = draws(5) + 8, draws(7) - 8
    assert aggregate_estimate([(draws(6), rule, planner)]) == pytest.approx(score_estimate(draws(6), rule, planner))
    runs = np.stack([draws(20 + run) + run for run in range(4)])  # a quarter is one
    one, other = aggregate_estimate([(runs, rule, planner)]), score_estimate(runs, rule, planner)
    assert one.mean == pytest.approx(other.mean)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.02)
    # The same cases a second time bring nothing new: tasks that share cases err together.
    twice = aggregate_estimate([(draws(6), rule, planner)] * 2)
    assert twice == pytest.approx(score_estimate(draws(6), rule, planner))


def test_the_rule_aggregates_to_0_and_the_planner_to_1():
    ends = [(draws(seed) + 8, draws(seed + 1) - 8) for seed in range(5)]
    assert aggregate_estimate([(rule, rule, planner) for rule, planner in ends]) == pytest.approx((0, 0, 0))
    assert aggregate_estimate([(planner, rule, planner) for rule, planner in ends]) == pytest.approx((1, 1, 1))


def test_the_aggregates_bootstrap_agrees_with_a_direct_one():
    tasks = []
    for n, cases in enumerate((20, 20, 30)):
        runs = np.stack([draws(20 + 7 * n + run, cases) + run for run in range(3)])
        tasks.append((runs, draws(5 + n, cases) + 8, draws(70 + n, cases) - 8))
    rng = np.random.default_rng(99)
    direct = []
    for _ in range(1500):
        drawn = {cases: rng.integers(0, cases, cases) for cases in (20, 30)}
        scores = []
        for runs, rule, planner in tasks:
            cases = drawn[len(rule)]
            means = runs[rng.integers(0, 3, 3)][:, cases].mean(axis=1)
            scores += ((rule[cases].mean() - means) / (rule[cases].mean() - planner[cases].mean())).tolist()
        direct.append(stats.trim_mean(np.repeat(scores, 4), 0.25))
    found = aggregate_estimate(tasks)
    assert found.low < found.mean < found.high
    assert (found.low, found.high) == pytest.approx(np.quantile(direct, [0.025, 0.975]), abs=0.03)


def test_no_aggregate_where_a_task_has_no_score():
    assert np.isnan(aggregate_estimate([task(0.5), ([5.0, 5.0], [5.0, 5.0], [5.0, 6.0])])).all()
    found = aggregate_estimate([task(0.5), ([5.0], [10.0], [0.0])])
    assert found.mean == 0.5
    assert np.isnan([found.low, found.high]).all()
    with pytest.raises(ConfigError, match="no tasks: give"):
        aggregate_estimate([])
    with pytest.raises(ConfigError, match="planner has shape"):
        aggregate_estimate([([5.0, 1.0], [10.0, 1.0], [0.0])])
