"""Several policies on the same cases, and what is printed and written about them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from test_rollouts import SMALL

from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, PathError
from llmsched_env.evaluation import evaluate
from llmsched_env.evaluation.comparison import compare
from llmsched_env.evaluation.report import (
    ablation_table,
    is_papers_case,
    ranking_table,
    serving_table,
    two_by_two_table,
    write_files,
)
from llmsched_env.evaluation.statistics import Estimate
from llmsched_env.policy import Policy

CASES = np.arange(3)


class WaitFor:
    """Prefills when so many clients are ready."""

    kind, clairvoyant = "rule", False

    def __init__(self, ready):
        self.ready, self.episodes = ready, 0
        self.name = f"wait_for_{ready}"

    def reset(self, start):
        self.episodes += 1

    def act(self, view):
        return int(view.ready >= self.ready)


@dataclass(frozen=True)
class Contestant:
    name: str
    policy: Policy
    scenario: Scenario = SMALL
    kind: str = "rule"
    text: str = ""


def contestants():
    return [Contestant("one", WaitFor(1)), Contestant("two", WaitFor(2)), Contestant("four", WaitFor(4))]


def compared(rows, reference=None, planner=None, **options):
    return compare(rows, "Test-v0", SMALL, CASES, reference=reference or rows[0], planner=planner or rows[1], **options)


def by_speed():
    """(slowest, middle, fastest) of the contestants."""
    return sorted(contestants(), key=lambda row: -evaluate(row.policy, SMALL, CASES).estimate("makespan_s").mean)


def test_rows_are_evaluations_of_the_same_cases():
    slow, middle, fast = by_speed()
    ticks = []
    comparison = compared([middle, fast, slow], slow, fast, progress=lambda name, n: ticks.append((name, n)))
    assert [row.name for row in comparison.rows] == [middle.name, fast.name, slow.name]
    for row in (middle, fast, slow):
        alone = evaluate(row.policy, SMALL, CASES)
        assert np.array_equal(comparison.row(row.name).evaluation.columns["makespan_s"], alone.columns["makespan_s"])
        assert ticks.count((row.name, 1)) == len(CASES), "a policy ran more than once"
    assert comparison.row(slow.name).score.mean == 0
    assert comparison.row(fast.name).score.mean == 1
    assert 0 < comparison.row(middle.name).score.mean < 1
    with pytest.raises(KeyError):
        comparison.row("nobody")


def test_names_do_not_stand_for_policies():
    # A user's policy may be called as the planner is: its results are its own.
    slow, _, fast = by_speed()
    impostor = Contestant(fast.name, slow.policy)
    comparison = compared([impostor], slow, fast)
    alone = evaluate(slow.policy, SMALL, CASES)
    assert np.array_equal(comparison.rows[0].evaluation.columns["makespan_s"], alone.columns["makespan_s"])
    assert comparison.rows[0].score.mean == 0
    with pytest.raises(ConfigError, match=f"more than one policy is called '{fast.name}'"):
        compared([impostor, fast])


def test_reference_and_planner_need_no_row():
    slow, middle, fast = by_speed()
    comparison = compared([middle], slow, fast)
    assert [*comparison.as_json()["policies"]] == [middle.name]
    assert (comparison.reference, comparison.planner) == (slow.name, fast.name)


def test_one_policy_on_two_queues():
    policy = WaitFor(2)
    rows = [
        Contestant("fcfs", policy, SMALL.replace(lengths="hidden")),
        Contestant("sorted", policy, SMALL.replace(order="longest_first")),
    ]
    comparison = compared(rows)
    spans = [row.estimate("makespan_s").mean for row in comparison.rows]
    assert spans[0] != spans[1]
    assert [row.clairvoyant for row in comparison.rows] == [False, True]
    assert comparison.bound_s == comparison.rows[1].evaluation.columns["bound_s"].mean()


def test_json_is_plain_and_finite():
    text = json.dumps(compared(by_speed()[::-1]).as_json(), allow_nan=False)
    assert json.loads(text)["policies"].keys() == {"one", "two", "four"}


def test_a_configuration_says_how_to_repeat_it():
    said = json.loads(json.dumps(compared(contestants(), seed=4).provenance(), default=str))
    assert said["seed"] == 4
    assert said["cases"] == CASES.tolist()
    assert said["arguments"]["num_clients"] == SMALL.num_clients
    assert said["arguments"]["cost"]["name"] == "llama-65b-paper"


def methods():
    names = ("baseline", "baseline_lagrangian", "shared_lpt_prefill_first", "shared_lpt_lagrangian")
    return [
        Contestant(name, WaitFor(1 + i), SMALL.replace(lengths="hidden"), kind="method", text=f"about {name}")
        for i, name in enumerate(names)
    ]


def test_the_papers_numbers_stand_beside_its_own_case_only():
    own = Scenario(split="test")
    assert is_papers_case(own)
    assert is_papers_case(own.replace(cost="llama-65b-paper-low", queue="shared"))
    for change in (
        {"workload": "gsm8k-smooth"},
        {"num_clients": 400},
        {"num_requests": 1318},
        {"cost": "qwen3-8b-h200"},
        {"prefill_token_cap": 1024},
    ):
        assert not is_papers_case(own.replace(**change)), change


def test_without_a_planner_there_are_no_scores():
    comparison = compare(by_speed(), "x", SMALL, CASES, reference=None, planner=None)
    assert all(np.isnan(row.score.mean) for row in comparison.rows)
    said = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert said["score_planner"] is None


def test_tables():
    comparison = compared([*methods(), *contestants()], contestants()[0], contestants()[1])
    ablation, ranking, square = (table(comparison) for table in (ablation_table, ranking_table, two_by_two_table))
    assert "about baseline" in ablation
    assert "201.00 s" not in ablation
    assert "wait_for" not in ablation
    assert f"| {comparison.bound_s:.2f} " in ablation
    assert ablation.count("blind") == 4
    # Best first.
    order = [line.split("|")[1].strip() for line in ranking.splitlines()[2:]]
    spans = [comparison.row(name).estimate("makespan_s").mean for name in order]
    assert spans == sorted(spans)
    assert "baseline" not in ranking
    assert square is not None
    assert f"{comparison.row('shared_lpt_lagrangian').estimate('makespan_s').mean:.2f}" in square
    for table in (ablation, ranking, square):
        assert len({len(line) for line in table.splitlines()}) == 1, "columns do not line up"
    assert two_by_two_table(compared(contestants())) is None


@dataclass(frozen=True)
class Served:
    """A row of a serving table: the metrics that it needs, with an interval of a tenth where they are above 0."""

    name: str
    values: dict[str, float]
    clairvoyant: bool = False

    score = Estimate(0.25, 0.125, 0.375)
    parameters = {"k": 14.0, "share": 0.8}  # noqa: RUF012

    def estimate(self, metric):
        return Estimate(self.values[metric], 0.9 * self.values[metric], 1.1 * self.values[metric])

    def decision_us(self):
        return {"p50": 0.5, "p99": None, "max": 1234.5}


SERVED = {
    "goodput": 0.5,
    "ttft_s": 0.25,
    "ttft_p99_s": 3.5,
    "tpot_s": 0.03125,
    "tpot_p99_s": 0.0405,
    "worst_token_gap_s": 0.1625,
    "longest_wait_s": 17.25,
}


def test_serving_table():
    rows = [
        Served("cut_short", dict.fromkeys(SERVED, float("nan"))),
        Served("middling", SERVED),
        Served("starves", {**SERVED, "goodput": 0.9, "worst_token_gap_s": 42.0}, clairvoyant=True),
    ]
    table = serving_table(rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [line[0] for line in cells[2:]] == ["starves", "middling", "cut_short"]
    assert cells[0] == [
        "policy", "parameters", "knows", "goodput % [95 % CI]", "score [95 % CI]", "TTFT s mean / p99",
        "TPOT ms mean / p99", "worst token gap s", "longest wait s", "decision µs p50/p99/max",
    ]  # fmt: skip
    decisions = "0.5 / – / 1.23e+03"
    assert cells[3] == [
        "middling", "k = 14, share = 0.8", "blind", "50.0 [45.0, 55.0]", "0.25 [0.12, 0.38]", "0.250 / 3.500",
        "31.2 / 40.5", "0.163", "17.25", decisions,
    ]  # fmt: skip
    assert cells[2][2:4] + cells[2][7:8] == ["lengths", "90.0 [81.0, 99.0]", "42.000"]
    assert [cells[4][3], *cells[4][5:]] == ["–", "– / –", "– / –", "–", "–", decisions]
    assert len({len(line) for line in table.splitlines()}) == 1, "columns do not line up"


def test_files(tmp_path):
    comparison = compared([*methods(), *contestants()])
    paths = write_files([comparison], tmp_path / "new", command="a command")
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "new").iterdir())
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths}
    assert json.loads(texts["comparison.json"]) == comparison.as_json()
    assert json.loads(texts["configuration.json"])["command"] == "a command"
    for heading in ("## Ablation", "## Queue order and rule", "## Rules and planners"):
        assert heading in texts["table.md"]
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="cannot write"):
        write_files([comparison], tmp_path / "file" / "below", command="")
