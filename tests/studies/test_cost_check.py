"""What is right at a choice, on paper and by brute force; laws of the counts; the page at a tiny size."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from llmsched_env.baselines.iteration import decode_first, prefill_first, threshold
from llmsched_env.baselines.lagrangian import lagrangian
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.cost import CostModel
from llmsched_env.engine import codes
from llmsched_env.evaluation import evaluate
from llmsched_env.evaluation.rollout import play
from llmsched_env.offline import QueueOptimum
from llmsched_env.simulator import Simulator
from llmsched_env.studies import choices, cost_check
from llmsched_env.studies.choices import BETTER, DECODE, EVEN, LEVEL, PREFILL, WORSE
from llmsched_env.studies.registry import STUDIES
from llmsched_env.studies.study import Options, run
from llmsched_env.workload import GammaWorkload, Requests

CELL = {
    "order": "longest_first",
    "cost": "llama-65b-paper",
    "prompt_mean_tokens": 68.43,
    "output_mean_tokens": 16.0,
    "spread": 0.5,
}


def written(tmp_path, rows: str, alpha_prefill_ns: int) -> Scenario:
    """A scenario of two clients whose only case is a file with these rows (prompt, output)."""
    path = tmp_path / "requests.csv"
    path.write_text("prompt_tokens,output_tokens\n" + rows)
    cost = CostModel("paper", alpha_prefill_ns, 1, 10, 1)
    return Scenario(workload=str(path), split="test", num_clients=2, cost=cost, queue="shared", order="fcfs")


@pytest.fixture
def half(monkeypatch):
    """No tuning at full size, which has its own tests: 0.5 there."""
    monkeypatch.setattr(choices, "tuned_value", lambda name, scenario: SimpleNamespace(values=(0.5,)))


def optimum_of(scenario: Scenario, simulator: Simulator) -> QueueOptimum:
    rows = simulator.problem.requests
    requests = Requests.of(rows[:, codes.PROMPT], rows[:, codes.OUTPUT])
    return QueueOptimum(requests, scenario.num_clients, scenario.cost_model)


def small(case: int = 0, **changes) -> tuple[Scenario, Simulator, QueueOptimum]:
    law = GammaWorkload(num_requests=14, output_mean_tokens=12.0, output_sd_tokens=6.0)
    scenario = Scenario(workload=law, num_clients=3, queue="shared", split="test", **changes)
    simulator = Simulator(build_problem(scenario, case))
    return scenario, simulator, optimum_of(scenario, simulator)


@pytest.mark.parametrize(("alpha_prefill_ns", "right"), [(9, PREFILL), (10, LEVEL), (11, DECODE)])
def test_on_paper(alpha_prefill_ns, right, tmp_path):
    # Two clients, decodes needed 3, 1 | 1, 1. The one choice that matters is after the first decode: two prefills and
    # two decodes follow a prefill now, one prefill and three decodes follow waiting until the first request ends.
    scenario = written(tmp_path, "1,4\n1,2\n1,2\n1,2\n", alpha_prefill_ns)
    simulator = Simulator(build_problem(scenario, 0))
    optimum = optimum_of(scenario, simulator)
    # Prompts and decodes: 4 * 1 + 6 * 1; the first prefill and decode; then the better of the two.
    shortest = 10 + alpha_prefill_ns + 10 + min(2 * alpha_prefill_ns + 20, alpha_prefill_ns + 30)
    assert optimum.makespan_ns == shortest
    eager = choices.against_the_optimum(prefill_first(), scenario, simulator, optimum)
    assert simulator.view.clock_ns == 10 + 3 * alpha_prefill_ns + 30
    assert eager["counts"][right][0] >= 1
    assert eager["loss"] == [pytest.approx(100 * max(0, alpha_prefill_ns - 10) / shortest), 0.0]
    patient = choices.against_the_optimum(decode_first(), scenario, simulator, optimum)
    # It waits for the first request's end: 3 decodes, then the other two beside each other, which take one.
    assert simulator.view.clock_ns == 10 + 2 * alpha_prefill_ns + 40
    assert patient["counts"][right][1] >= 1
    assert patient["loss"] == [0.0, pytest.approx(100 * max(0, 10 - alpha_prefill_ns) / shortest)]


@pytest.mark.parametrize("order", ["longest_first", "fcfs"])
@pytest.mark.parametrize("cost", ["llama-65b-paper", "llama-65b-paper-low"])
def test_what_wrong_choices_cost_adds_up_to_the_distance_from_the_optimum(order, cost):
    wrong = 0
    for case in range(3):
        scenario, simulator, optimum = small(case, order=order, cost=cost)
        for rule in (lagrangian(), lagrangian(0.2), threshold(2), prefill_first(), decode_first()):
            row = choices.against_the_optimum(rule, scenario, simulator, optimum)
            end_ns = play(rule, scenario, case).view.clock_ns
            assert sum(row["loss"]) == pytest.approx(100 * (end_ns / optimum.makespan_ns - 1), abs=1e-9)
            counts = np.array(row["counts"])
            assert (row["loss"][0] > 0) == (counts[DECODE, 0] > 0)
            assert (row["loss"][1] > 0) == (counts[PREFILL, 1] > 0)
            assert (row["first"] > 0) == (sum(row["loss"]) > 0)
            assert row["first"] <= sum(row["loss"]) + 1e-9
            wrong += counts[DECODE, 0] + counts[PREFILL, 1]
    assert wrong > 20, "hardly a wrong choice: nothing was tested"


def test_the_best_way_is_a_shortest_schedule_with_no_prefill_later_than_need_be():
    for case in range(4):
        scenario, simulator, optimum = small(case)
        rules = {"eager": prefill_first(), "patient": decode_first()}
        counts = choices.on_the_best_way(rules, scenario, simulator, optimum)
        assert simulator.view.clock_ns == optimum.makespan_ns
        assert np.array(counts["eager"])[:, 1].sum() == 0
        assert np.array(counts["patient"])[:, 0].sum() == 0
        assert np.sum(counts["eager"], axis=1).tolist() == np.sum(counts["patient"], axis=1).tolist()


def test_prefills_later_than_need_be_on_paper(tmp_path):
    # Decodes needed 9, 1 | 2. After one decode the second client is idle, and nobody else will be for eight more.
    scenario = written(tmp_path, "1,10\n1,2\n1,3\n", 25)
    simulator = Simulator(build_problem(scenario, 0))
    optimum = optimum_of(scenario, simulator)
    # Charge 10 a decode against 25 * 1: the rule decodes three times, then prefills, with one idle client as before.
    row = choices.against_the_optimum(lagrangian(), scenario, simulator, optimum)
    assert np.sum(row["counts"], axis=0).tolist() == [1, 3]
    assert row["prefills"] == [2, 1]
    assert choices.against_the_optimum(prefill_first(), scenario, simulator, optimum)["prefills"] == [2, 0]
    # Three clients, decodes needed 9, 3, 1 | 2, 2, 2: a threshold of two waits for the second idle client, and no more.
    three = written(tmp_path, "1,10\n1,4\n1,2\n1,3\n1,3\n1,3\n", 25).replace(num_clients=3)
    simulator = Simulator(build_problem(three, 0))
    _, row = choices.other_actions(threshold(2), three, simulator)
    assert np.sum(row["counts"], axis=1).tolist() == [2, 2]
    assert row["prefills"] == [3, 0]


@pytest.mark.parametrize(("alpha_prefill_ns", "effect"), [(9, BETTER), (10, EVEN), (11, WORSE)])
def test_the_other_action_on_paper(alpha_prefill_ns, effect, tmp_path):
    scenario = written(tmp_path, "1,4\n1,2\n1,2\n1,2\n", alpha_prefill_ns)
    # Two idle clients are waited for: three decodes, both others beside each other, one more decode. K = 2, D = 4.
    end_ns, row = choices.other_actions(threshold(2), scenario, Simulator(build_problem(scenario, 0)))
    assert end_ns == 10 + 2 * alpha_prefill_ns + 40
    # A prefill after the first decode instead, and then what waits fits: K = 3, D = 3. After the second: K = 3, D = 4.
    expected = np.zeros((2, 3), int)
    expected[1, effect] += 1
    expected[1, WORSE] += 1
    assert row["counts"] == expected.tolist()
    assert row["single"] == pytest.approx(100 * max(0, 10 - alpha_prefill_ns) / end_ns)


@pytest.mark.usefixtures("half")
def test_one_step_repeats_and_its_numbers_fit_together():
    found = choices.one_step("gsm8k-smooth", 12, "longest_first", 2)
    assert found == choices.one_step("gsm8k-smooth", 12, "longest_first", 2)
    assert found == json.loads(json.dumps(found))
    for measured in found["rules"].values():
        counts, plan = np.array(measured["counts"]), np.array(measured["plan"])
        assert counts.shape == (2, 2, 3)
        assert plan.shape == (2, 2, 2)
        assert counts.sum() > 20
        better = counts[:, :, BETTER].sum(axis=1) > 0
        assert ((np.array(measured["single"]) > 0) == better).all()
        assert (np.array(measured["single"]) >= 0).all()
    usual, tuned = (np.array(found["rules"][name]["plan"]).sum(axis=2) for name in (choices.USUAL, choices.TUNED))
    assert (usual == tuned).all(), "they are asked on the same way"


def test_a_cell_repeats_and_its_numbers_are_tuned_on_training_cases():
    found = choices.exact(**CELL, cases=2)
    assert found == choices.exact(**CELL, cases=2)
    assert found == json.loads(json.dumps(found))
    assert set(found["chosen"]) <= set(found["rules"])
    usual = GammaWorkload()
    law = GammaWorkload(
        num_requests=choices.REQUESTS,
        prompt_mean_tokens=68.43,
        prompt_sd_tokens=usual.prompt_sd_tokens,
        output_mean_tokens=16.0,
        output_sd_tokens=8.0,
    )
    train = Scenario(workload=law, num_clients=choices.CLIENTS, queue="shared")
    means = {
        value: evaluate(lagrangian(value), train, choices.TRAINING_CASES).estimate("makespan_s").mean
        for value in choices.MULTIPLIERS
    }
    assert means[found["chosen"][choices.TUNED]] == min(means.values())


@pytest.mark.usefixtures("half")
def test_the_page_at_a_tiny_size(tmp_path, monkeypatch):
    monkeypatch.setattr(cost_check, "MEANS", (4, 16))
    monkeypatch.setattr(cost_check, "SPREADS", (0.5,))
    monkeypatch.setattr(choices, "TRAINING_CASES", 2)
    monkeypatch.setattr(cost_check, "WORKLOADS", ("gsm8k-smooth",))
    study = STUDIES["cost_check"]
    options = Options(cases=2, clients=(8,))
    names = [job.name for job in study.jobs(options)]
    assert len(set(names)) == len(names) == 5 * 2 + 2
    found = run(study, options, tmp_path, workers=1, progress=False)
    text = (tmp_path / "cost_check.md").read_text(encoding="utf-8")
    assert "nan" not in text
    for said in ("| longest first | λ = 1 |", "| fcfs | prefill-first |", "| gsm8k-smooth | 8 | fcfs | λ = 1 |"):
        assert said in text
    shares = next(line for line in text.splitlines() if line.startswith("| fcfs | λ = 1 |")).split(" | ")[2:5]
    assert sum(float(part) for pair in shares for part in pair.split(" / ")) == pytest.approx(100, abs=0.31)
    short = study.short({table.name: table for table in study.tables(found)})
    assert [row[:2] for row in short.rows] == [
        [order, rule] for order in ("longest first", "fcfs") for rule in cost_check.SHORT
    ]
    assert (tmp_path / "cost_check.png").read_bytes().startswith(b"\x89PNG")
    # One case has no interval, and one client no choice.
    few = {name: value for name, value in found.items() if "exact" in name}
    alone = choices.one_step("gsm8k", 1, "fcfs", 1)
    *_, full_size = study.tables({**few, "alone": alone})
    assert "| gsm8k | 1 | fcfs | λ = 1 | – | – | – |" in full_size.markdown()
