"""The study of uncertain lengths: its predictor, the small instances against their definitions, table and picture."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError
from llmsched_env.offline import tail_mean
from llmsched_env.studies import two_stage as small
from llmsched_env.studies import uncertain_lengths as study
from llmsched_env.studies.study import Options, run
from llmsched_env.studies.uncertain_runs import (
    EXPECTED_LOAD,
    EXPECTED_MAX,
    KNOWN,
    LARGEST_LOAD,
    NOTHING,
    RelativeError,
    by_error,
    by_estimate,
    by_knowledge,
    place,
)
from llmsched_env.workload import Prediction, Predictor, workload


def test_estimates_have_the_relative_error_that_is_asked_for():
    source = workload("gsm8k")
    case = source.requests("test", 0, num_requests=20_000)
    for error in (0.05, 0.2, 1.0):
        said = RelativeError(error).predict(source, "test", 0, case)
        factor = said.mean_tokens / case.output_tokens
        assert factor.mean() == pytest.approx(1.0, abs=5 * error / np.sqrt(len(case)))
        assert factor.std() == pytest.approx(error, rel=0.1)
        assert np.allclose(said.sd_tokens, error * said.mean_tokens)
        again = RelativeError(error).predict(source, "test", 0, case)
        assert np.array_equal(said.mean_tokens, again.mean_tokens)
        assert not np.array_equal(
            said.mean_tokens, RelativeError(error, 1).predict(source, "test", 0, case).mean_tokens
        )


def test_factors_are_the_same_for_all_errors():
    source = workload("gsm8k")
    case = source.requests("test", 0)
    low, high = (
        np.log(RelativeError(error).predict(source, "test", 0, case).mean_tokens / case.output_tokens)
        for error in (0.1, 0.8)
    )
    assert np.corrcoef(low, high)[0, 1] == pytest.approx(1.0)


def test_no_error_is_the_truth_and_said_to_be():
    source = workload("gsm8k")
    case = source.requests("test", 0)
    assert np.array_equal(RelativeError(0.0).predict(source, "test", 0, case).mean_tokens, case.output_tokens)
    assert isinstance(RelativeError(0.0), Predictor)
    assert Scenario(lengths="predicted", predictor=RelativeError(0.0)).shows_lengths
    assert not Scenario(lengths="predicted", predictor=RelativeError(0.1)).shows_lengths
    known = by_knowledge("gsm8k", 5, 1)[KNOWN]
    told = by_error("gsm8k", 5, 0.0, 1, 0)
    assert {name: told[name] for name in ("fixed", "stealing", "shared")} == {
        name: known[f"{name}, lagrangian"] for name in ("fixed", "stealing", "shared")
    }


@pytest.mark.parametrize("error", [-0.1, 11.0, float("nan"), "much"])
def test_an_error_that_is_none(error):
    with pytest.raises(ConfigError, match="error"):
        RelativeError(error)


def test_every_size_has_as_many_requests_a_client():
    assert place("gsm8k", 200).num_requests is None
    assert [place("gsm8k", clients).num_requests for clients in (20, 1000, 5000)] == [132, 6595, 32975]


def test_nothing_known_is_worse_than_all_known():
    known, told = by_knowledge("gsm8k-smooth", 20, 2), by_estimate("gsm8k-smooth", 20, "unequal", 2, 0)
    for column in ("fixed, lagrangian", "stealing, lagrangian", "shared, lagrangian", LARGEST_LOAD):
        means = {name: np.mean(row[column]) for name, row in (*known.items(), *told.items()) if column in row}
        assert means[KNOWN] == min(means.values())
        assert means[NOTHING] > means["mean"]
    # What the search looks for it finds, whatever that is worth.
    assert np.mean(told[EXPECTED_MAX][EXPECTED_LOAD]) < np.mean(told["mean"][EXPECTED_LOAD])
    assert told == by_estimate("gsm8k-smooth", 20, "unequal", 2, 0)
    assert told != by_estimate("gsm8k-smooth", 20, "unequal", 2, 1)


def test_three_lengths_have_the_mean_and_sd_that_were_stated():
    loads = small.possible_loads(Prediction(np.array([301.0, 5.0]), np.array([100.0, 50.0])))
    assert loads.mean(axis=1)[0] == pytest.approx(300)
    assert loads.std(axis=1)[0] == pytest.approx(100, abs=0.5)
    assert loads.min() == 0, "a length below one token"
    assert small.every_scenario(loads).shape == (2, 9)


def test_assignments_are_those_of_interchangeable_clients():
    found = small.every_assignment(4, 3)
    # Stirling numbers: 1 + 7 + 6 ways to make up to three sets of four.
    assert len(found) == 14
    assert len({tuple(sorted(tuple(np.flatnonzero(row == j)) for j in range(3))) for row in found}) == 14
    assert len(small.every_assignment(small.REQUESTS, small.CLIENTS)) == 1094


def test_largest_loads_on_paper():
    scenarios = small.every_scenario(np.array([[1, 5], [2, 2], [3, 4]]))
    assert scenarios.T[[0, 1, 4, 5]].tolist() == [[1, 2, 3], [1, 2, 4], [5, 2, 3], [5, 2, 4]]
    assert small.largest_loads(np.array([0, 0, 1], np.int32), scenarios).tolist() == [3, 4, 3, 4, 7, 7, 7, 7]


def test_optima_by_their_definitions():
    loads = np.random.default_rng(0).integers(0, 30, (5, 3))
    scenarios = small.every_scenario(loads)
    found = small.optima(loads, scenarios)
    rows = small.every_assignment(5, small.CLIENTS)
    judged = [small.judged(row, scenarios) for row in rows]
    assert found[small.OPTIMUM]["mean"] == min(one["mean"] for one in judged)
    assert found[small.OPTIMUM_TAIL]["cvar"] == min(one["cvar"] for one in judged)
    least = np.min([small.largest_loads(row, scenarios) for row in rows], axis=0)
    assert found[small.WAIT_AND_SEE]["mean"] == least.mean()
    assert least[::30].tolist() == [least_cmax(column.tolist(), small.CLIENTS) for column in scenarios.T[::30]]
    mean_values = np.rint(loads.mean(axis=1)).astype(int)
    best = [small.judged(row, scenarios) for row in rows if cmax(row, mean_values) == least_cmax(mean_values, 3)]
    assert found[small.MEAN_VALUE] in best


def cmax(client_of, loads):
    return np.bincount(client_of, loads).max()


def least_cmax(loads, clients):
    return min(cmax(np.array(row), loads) for row in itertools.product(range(clients), repeat=len(loads)))


@pytest.fixture
def tiny(monkeypatch):
    """The study with few of everything."""
    monkeypatch.setattr(study, "DRAWS", 2)
    monkeypatch.setattr(study, "ERRORS", (0.0, 0.1, 1.0))
    monkeypatch.setattr(small, "REQUESTS", 4)
    for module in (small, study):
        monkeypatch.setattr(module, "SAMPLES", (3,))
    return study.STUDY


def test_nothing_is_above_its_optimum(tiny):
    found = small.two_stage("gsm8k", "unequal", 3, 0)
    for name, one in found.items():
        if name != small.WAIT_AND_SEE:
            assert one["mean"] >= found[small.OPTIMUM]["mean"]
            assert one["cvar"] >= found[small.OPTIMUM_TAIL]["cvar"]
    assert found[small.WAIT_AND_SEE]["mean"] < found[small.OPTIMUM]["mean"]
    assert {name for name, one in found.items() if "in_sample" in one} == {"3 scenarios", "3 scenarios, CVaR"}
    assert found == small.two_stage("gsm8k", "unequal", 3, 0)


def test_jobs_have_names_of_their_own_and_plain_arguments(tiny):
    jobs = tiny.jobs(Options(cases=2, clients=(4, 300), seed=1))
    assert len({job.name for job in jobs}) == len({job.key for job in jobs}) == len(jobs)
    assert json.loads(json.dumps([job.arguments for job in jobs])) == [job.arguments for job in jobs]
    # Of each workload and size: knowledge, two certainties and two errors by draw, no error; then the small instances.
    assert len(jobs) == 2 * (1 + 4 * 2 + 1) + 2 * (1 + 4 * study.LARGE_DRAWS + 1) + 2 * 2 * 2


def test_table_and_picture(tiny, tmp_path, figures):
    found = run(tiny, Options(cases=2, clients=(6,)), tmp_path, workers=1, progress=False)
    text = (tmp_path / "uncertain_lengths.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert sum("equal | mean + 4 sd |" in line for line in rows) == 4
    assert sum(line.startswith("| 6 | gsm8k") for line in rows) == 4 + 8
    gaps = [found[f"estimate/6/gsm8k/equal/{draw}"]["mean"]["shared, lagrangian"] for draw in range(2)]
    assert f"| {100 * np.mean(gaps):.2f} ± " in next(
        line for line in rows if line.startswith("| gsm8k | equal | mean |")
    )
    assert "nan" not in text
    short = tiny.short({table.name: table for table in tiny.tables(found)})
    assert [row[1] for row in short.rows] == 2 * ["mean", "mean + 4 sd", "expected max", "known", "nothing"]
    assert (tmp_path / "uncertain_lengths.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    for row, name in enumerate(study.WORKLOADS):
        bars, curves = figure.axes[2 * row : 2 * row + 2]
        assert bars.get_ylabel().startswith(f"{name}\n")
        known = found[f"knowledge/6/{name}"]
        heights = [bar.get_height() for bar in bars.patches]
        for column in ("fixed, lagrangian", "stealing, lagrangian", "shared, lagrangian"):
            for what in (KNOWN, NOTHING):
                if column in known[what]:
                    mean = 100 * np.mean(known[what][column])
                    assert any(height == pytest.approx(mean) for height in heights), (what, column)
        drawn = [line for line in curves.lines if line.get_marker() == "."]
        assert len(drawn) > 2
        for line in drawn:
            assert line.get_xdata() == pytest.approx([100 * error for error in study.ERRORS])


def test_a_single_case_has_no_interval(tiny, tmp_path):
    run(tiny, Options(cases=1, clients=(6,)), tmp_path, workers=1, progress=False)
    assert "±" not in (tmp_path / "uncertain_lengths.md").read_text(encoding="utf-8")


def test_cvar_at_the_level_that_is_said():
    assert tail_mean(range(100), small.TAIL) == pytest.approx(94.5)
