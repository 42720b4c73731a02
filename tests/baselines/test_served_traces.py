"""Recorded traces served over time: splits apart, SLOs, and rules that are tuned on training windows only."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from llmsched_env.baselines import tuned
from llmsched_env.baselines.iteration import min_batch
from llmsched_env.baselines.tuned import _tuned_value, tuned_value
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.env import LLMSchedEnv
from llmsched_env.evaluation import evaluate
from llmsched_env.workload import SPLITS, CsvWorkload, TraceWorkload

SHARED = Path(__file__).parents[3] / "shared" / "data"
SERVED = {"queue": "shared", "order": "fcfs", "lengths": "hidden", "load": 0.9, "ttft_s": 2.0, "tpot_s": 0.1}


@pytest.fixture
def recording(tmp_path):
    """A trace of 600 requests whose prompts tell the rows apart."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1.0, 600))
    rows = (f"{t:.6f},{i},{rng.integers(2, 40)}\n" for i, t in enumerate(times, start=1))
    path = tmp_path / "recording.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(rows))
    return path


@pytest.fixture(autouse=True)
def nothing_remembered():
    _tuned_value.cache_clear()
    yield
    _tuned_value.cache_clear()


def prompts(scenario, case=0):
    """Prompt lengths of a case, by release."""
    problem = build_problem(scenario, case)
    found = np.empty(problem.num_requests, np.int64)
    found[problem.request_of] = problem.requests[:, 0]
    return found.tolist()


def test_splits_have_no_request_in_common(recording):
    scenario = Scenario(workload=TraceWorkload(recording, num_requests=50), num_clients=5, **SERVED)
    seen = {split: {x for case in range(12) for x in prompts(scenario.replace(split=split), case)} for split in SPLITS}
    assert all(len(rows) >= 50 for rows in seen.values())
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))
    assert max(seen["train"]) < min(seen["validation"])
    assert max(seen["validation"]) < min(seen["test"])


@pytest.mark.usefixtures("usual_tuning")
def test_a_rule_is_tuned_on_training_windows_only(recording, monkeypatch, caplog):
    assert TraceWorkload.disjoint_splits
    assert not getattr(CsvWorkload, "disjoint_splits", False), "its splits are reorderings of one table"
    read, real = set(), TraceWorkload.requests

    def spy(self, split, number, *, num_requests=None):
        read.add((split, number))
        return real(self, split, number, num_requests=num_requests)

    monkeypatch.setattr(TraceWorkload, "requests", spy)
    workload = TraceWorkload(recording, num_requests=60)
    scenario = Scenario(workload=workload, split="test", num_clients=5, **SERVED)
    with caplog.at_level(logging.INFO, "llmsched_env.baselines.tuned"):
        choice = tuned_value("min_batch_tuned", scenario)
    assert "reorderings" not in caplog.text
    assert "tuning min_batch_tuned" in caplog.text
    # The stretch has fewer windows than are tuned on elsewhere: each is used once.
    pool = workload.pool_size("train")
    assert 3 <= pool < 16
    assert read == {("train", number) for number in range(pool)}
    assert choice.cases == pool
    assert 0 < choice.mean <= 1
    assert tuned_value("min_batch_tuned", scenario.replace(split="validation")) == choice


def test_a_file_that_is_one_case_is_said_to_be_tuned_on_itself(recording, caplog):
    scenario = Scenario(workload=CsvWorkload(recording), split="test", num_clients=5, **SERVED)
    tuned._warn_of_tuning_on_test_cases.cache_clear()
    with caplog.at_level(logging.WARNING, "llmsched_env.baselines.tuned"):
        for name in ("tgi_tuned", "tuned_threshold"):
            tuned_value(name, scenario)
    assert caplog.text.count("tuned on reorderings of the file that they are judged on: recording has") == 1


def test_the_azure_conversations_at_a_load():
    path = SHARED / "azure_2023_conv.csv"
    if not path.is_file():
        pytest.skip("the recorded traces are not part of the repository")
    scenario = Scenario(
        workload=f"trace:{path}", num_requests=400, num_clients=20, split="test",
        **{**SERVED, "load": 0.9, "ttft_s": 10.0, "tpot_s": 0.05},
    )  # fmt: skip
    found = evaluate(min_batch(2), scenario, 2).columns
    assert (found["completed"] == 400).all()
    assert (found["goodput"] > 0).all()
    assert (found["goodput"] < 1).all()
    assert (found["worst_token_gap_s"] > 0).all()
    windows = {split: build_problem(scenario.replace(split=split), 0) for split in SPLITS}
    assert len({window.digest() for window in windows.values()}) == 3
    ends = [scenario.source.stretch(split) for split in SPLITS]
    assert ends[0][0] == 0
    assert [first for first, _ in ends[1:]] == [end for _, end in ends[:-1]]
    env = LLMSchedEnv(scenario.replace(choose_order=True, lengths="predicted", predictor="prompt", reward="goodput"))
    _, info = env.reset(options={"case": 0})
    rng, total, over = np.random.default_rng(0), 0.0, False
    while not over:
        observation, reward, over, _, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
        total += reward
        assert env.observation_space.contains(observation)
    assert total == pytest.approx(info["goodput"] - 1)
