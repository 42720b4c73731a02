"""``python -m llmsched_env.baselines.predictions``, in this process, on small cases."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from llmsched_env.baselines import make_policy, predictions, tuned
from llmsched_env.baselines.predictions import POOR_HALF, SD_WEIGHTS, Study, study
from llmsched_env.config import Scenario
from llmsched_env.evaluation import evaluate
from llmsched_env.workload import NoisyTruth, UnevenTruth

SMALL = ["--requests", "60", "--clients", "8", "--cases", "2"]
SCENARIO = Scenario(split="test", num_requests=60, num_clients=8)


@pytest.fixture(scope="module")
def small() -> Study:
    return study(SCENARIO, np.arange(3), seed=5)


@pytest.fixture
def few(monkeypatch):
    """Two predictors with two weights instead of all."""
    monkeypatch.setattr(predictions, "EVEN", (0.5,))
    monkeypatch.setattr(predictions, "POOR_HALF", (0.2,))
    monkeypatch.setattr(predictions, "SD_WEIGHTS", (0.0, 1.0))


def complaint(capsys, *arguments):
    """What an unusable command line is answered with: one line, and exit code 2."""
    assert predictions.main([*arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


def rows_of(result, predictor):
    found = [row for row in result.rows if row.predictor == predictor.name]
    assert found, f"no row of {predictor.name}"
    return found


def test_knowing_nothing_is_first_come_first_served(small):
    rows = [row for row in small.rows if row.predictor == "population"]
    assert [row.sd_weight for row in rows] == [*SD_WEIGHTS]
    for row in rows:
        assert row.gap_to_bound == small.fcfs
        assert set(row.above_fcfs) == {0.0}
        assert row.spearman is None


def test_knowing_all_is_the_scenario_that_shows_lengths(small):
    known = SCENARIO.replace(queue="shared", order="longest_first")
    rule = make_policy("tuned_threshold")
    expected = evaluate(rule, known, 3).estimate("gap_to_bound")
    for row in rows_of(small, NoisyTruth(1.0, seed=5)):
        assert row.gap_to_bound == expected
        assert row.spearman == pytest.approx(1.0)
    assert expected.mean < small.fcfs.mean, "nothing to gain in these cases: the order was not tested"


def test_the_predictor_of_an_id_is_left_out(capsys, few):
    assert predictions.main(SMALL) == 0
    usual = capsys.readouterr().out
    assert predictions.main([*SMALL, "--scenario", "LLMSched/GSM8K-Predicted-v0"]) == 0
    assert capsys.readouterr().out == usual.replace("LLMSched/GSM8K-v0", "LLMSched/GSM8K-Predicted-v0")


def test_one_weight_a_predictor_is_chosen_and_training_cases_choose_it(small):
    assert len(small.rows) % len(SD_WEIGHTS) == 0
    for first in range(0, len(small.rows), len(SD_WEIGHTS)):
        rows = small.rows[first : first + len(SD_WEIGHTS)]
        assert len({row.predictor for row in rows}) == 1
        (best,) = (row for row in rows if row.chosen)
        assert best.training_makespan_s == min(row.training_makespan_s for row in rows)
    by_test = [min(rows_of(small, one), key=lambda row: row.gap_to_bound.mean) for one in predictions.uneven(5)]
    assert not all(row.chosen for row in by_test), "the cases shown would choose the same: nothing was tested"


def test_differences_are_paired(small):
    scenario = small.scenario.replace(
        order="longest_first", lengths="predicted", predictor=UnevenTruth((0.2, 0.95), 5), sd_weight=2.0
    )
    rule = make_policy("tuned_threshold")
    gaps = [evaluate(rule, place, 3).columns["gap_to_bound"] for place in (scenario, small.scenario)]
    (row,) = (row for row in rows_of(small, UnevenTruth((0.2, 0.95), 5)) if row.sd_weight == 2.0)
    assert row.above_fcfs.mean == pytest.approx(np.mean(gaps[0] - gaps[1]))
    half = row.above_fcfs.high - row.above_fcfs.mean
    assert half == pytest.approx(4.302653 * np.std(gaps[0] - gaps[1], ddof=1) / np.sqrt(3), rel=1e-6)


def test_thresholds_and_weights_are_chosen_on_training_cases(monkeypatch, few):
    splits = []
    real = tuned.evaluate
    monkeypatch.setattr(
        tuned, "evaluate", lambda rule, where, cases, **also: splits.append(where.split) or real(rule, where, 2, **also)
    )
    study(SCENARIO.replace(num_requests=50), np.arange(1))
    assert set(splits) == {"train"}


def test_the_folder_holds_the_study_whole(tmp_path, capsys, few):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new"
    assert predictions.main([*SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"predictions.json", "predictions.csv", "predictions.png"}
    assert (out / "predictions.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert found["command"].startswith("python -m llmsched_env.baselines.predictions --requests 60")
    assert (found["cases"], found["seed"], found["rule"]) == ([0, 1], 0, "tuned_threshold")
    assert [row["predictor"] for row in found["rows"]][::2] == ["population", "prompt", "noisy:0.5", "uneven:0.2:0.95"]
    with (out / "predictions.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    for row, other in zip(rows, found["rows"], strict=True):
        assert float(row["gap_to_bound"]) == other["gap_to_bound"]["mean"]
        assert float(row["above_fcfs_ci95_low"]) == other["above_fcfs"]["ci95"][0]
        assert f"| {row['predictor']} " in said
    # The same again: the same bytes.
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert predictions.main([*SMALL, "--out", str(out)]) == 0
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_one_case_leaves_nulls(tmp_path, few):
    pytest.importorskip("matplotlib")
    assert predictions.main([*SMALL[:-1], "1", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "predictions.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["fcfs"]["gap_to_bound"]["ci95"] == [None, None]


def test_the_seed_is_the_noise(few):
    first, again, other = (study(SCENARIO, np.arange(2), seed) for seed in (0, 0, 1))
    assert first.rows == again.rows
    assert first.fcfs == other.fcfs
    for family in (predictions.even, predictions.uneven):
        pairs = zip(rows_of(first, family(0)[0]), rows_of(other, family(1)[0]), strict=True)
        assert all(one.gap_to_bound != two.gap_to_bound for one, two in pairs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "LLMSched/GSM8K-v1"], "Did you mean 'LLMSched/GSM8K-v0'"),
        (["--scenario", "LLMSched/Serving-v0"], "this study measures the makespan of a batch"),
        (["--cases", "0"], "--cases '0': give a count"),
        (["--seed", "-1"], "--seed -1 is out of range"),
        (["--split", "tests"], "Did you mean 'test'"),
        (["--clients", "0"], "--clients 0 is out of range"),
    ],
)
def test_unusable_arguments(capsys, arguments, words):
    assert words in complaint(capsys, *SMALL, *arguments)


def test_a_path_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(predictions, "study", lambda *_: pytest.fail("the long work came first"))
    (tmp_path / "file").write_text("")
    assert "cannot write" in complaint(capsys, *SMALL, "--out", str(tmp_path / "file"))


def test_an_interrupt_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictions, "study", interrupted)
    assert predictions.main([*SMALL, "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_planner_draws_lengths_by_the_predictor():
    scenario = SCENARIO.replace(queue="shared", lengths="predicted", predictor="prompt", sd_weight=1.0)
    found = evaluate(make_policy("rollout"), scenario, 1)
    assert not found.clairvoyant
    assert found.columns["gap_to_bound"][0] > 0


def test_halves_are_as_described():
    assert [one.correlations for one in predictions.uneven(0)] == [(poor, 0.95) for poor in POOR_HALF]
