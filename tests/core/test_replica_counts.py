"""Routers compared on the same cases, the number of replicas that a rate needs, and the command for both."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from llmsched_env import make_scenario
from llmsched_env.baselines import make_policy
from llmsched_env.cases import build_problem
from llmsched_env.cli import main
from llmsched_env.cost import CostModel, capacity_requests_per_s
from llmsched_env.engine import codes
from llmsched_env.errors import ConfigError
from llmsched_env.evaluation import evaluate
from llmsched_env.replicas import ROUTERS
from llmsched_env.replicas.comparing import _kept_up_with, compare_routers, replicas_needed
from llmsched_env.workload import Requests

SERVING = make_scenario("LLMSched/Serving-v0", split="test", num_requests=400, num_clients=20)
FEW = ["--requests", "300", "--clients", "10", "--cases", "3"]


class Threes:
    """Three requests of one token every second."""

    name = "threes"

    def pool_size(self, split):
        return 1

    def requests(self, split, number, *, num_requests=None):
        return Requests.of([300] * 30, [1] * 30, release_ns=[10**9 * (i // 3) for i in range(30)])


def test_one_replica_is_what_evaluate_measures():
    policy, cases = make_policy("deadline"), np.arange(4)
    (row,) = compare_routers(SERVING, policy, ["power_of_two"], 1, cases)
    alone = evaluate(policy, SERVING, 4)
    for name in ("goodput", "ttft_s", "tpot_p99_s", "served_requests_per_s", "makespan_s", "utilization"):
        assert row.columns[name] == pytest.approx(alone.columns[name]), name
    assert row.columns["largest_share"].tolist() == [1.0] * 4


def test_routers_are_compared_on_the_same_cases():
    first, other = compare_routers(SERVING, make_policy("prefill_first"), ["random", "round_robin"], 3, np.arange(5))
    assert (first.columns["offered_requests_per_s"] == other.columns["offered_requests_per_s"]).all()
    assert first.above(other).mean == pytest.approx(first.estimate("goodput").mean - other.estimate("goodput").mean)
    assert (first.load, first.replicas, first.router) == (0.9, 3, "random")
    assert 1 <= other.estimate("largest_share").mean < first.estimate("largest_share").mean < 3


def test_a_rate_is_that_of_all_replicas():
    for replicas in (1, 4):
        (row,) = compare_routers(
            SERVING, make_policy("prefill_first"), ["random"], replicas, np.arange(2), rate_per_s=12.5
        )
        assert row.columns["offered_requests_per_s"] == pytest.approx([12.5, 12.5], rel=1e-6)
        assert row.load is None


def test_the_number_of_replicas_on_paper():
    """Requests of one token come in threes every second, and each is read for 0.4 s: alone, a replica reads two a
    second within 1 s, and the third, whose token comes after 1.2 s, is late; two replicas read all in 0.8 s."""
    scenario = SERVING.replace(
        workload=Threes(),
        num_requests=None,
        num_clients=1,
        cost=CostModel("slow reader", 100_000_000, 1_000_000, 10_000_000, 0, 0, 300),
        load=None,
        ttft_s=1.0,
        tpot_s=1.0,
        uncounted_share=0.0,
    )
    policy, cases = make_policy("prefill_first"), np.arange(1)
    found = replicas_needed(scenario, policy, "least_outstanding", None, 0.99, cases)
    assert (found.replicas, sorted(found.tried)) == (2, [1, 2])
    assert found.tried[2].estimate("goodput").mean == 1.0
    assert replicas_needed(scenario, policy, "least_outstanding", None, 0.99, cases, max_replicas=1).replicas is None


def test_the_number_that_is_found_is_the_least_of_those_that_were_tried():
    policy, cases = make_policy("deadline"), np.arange(3)
    found = replicas_needed(SERVING, policy, "least_outstanding", 8.0, 0.95, cases)
    goodput = {count: row.estimate("goodput").mean for count, row in found.tried.items()}
    assert found.replicas > 1
    assert goodput[found.replicas] >= 0.95
    assert all((value >= 0.95) == (count >= found.replicas) for count, value in goodput.items())
    assert found.replicas - 1 in goodput


def test_the_search_begins_below_the_capacity_of_the_replicas():
    """At 10.5 times the capacity of one, nine: a tenth less than 10.5, rounded down. At a small rate one."""
    rows = build_problem(SERVING, 0).requests
    mean = rows[:, [codes.PROMPT, codes.OUTPUT]].mean(axis=0).tolist()
    capacity = capacity_requests_per_s(SERVING.cost_model, SERVING.num_clients, *mean)
    assert _kept_up_with(SERVING, 0, 10.5 * capacity) == 9
    assert _kept_up_with(SERVING, 0, 0.1 * capacity) == 1


def test_bad_input():
    policy, cases = make_policy("deadline"), np.arange(2)
    with pytest.raises(ConfigError, match="goodput = 99 is out of range: it is a share"):
        replicas_needed(SERVING, policy, "random", 8.0, 99, cases)
    with pytest.raises(ConfigError, match="max_replicas = 0 is out of range"):
        replicas_needed(SERVING, policy, "random", 8.0, 0.9, cases, max_replicas=0)
    with pytest.raises(ConfigError, match="requests_per_s = -1"):
        replicas_needed(SERVING, policy, "random", -1.0, 0.9, cases)


def test_the_command_compares(capsys, tmp_path):
    target = tmp_path / "routers.json"
    assert main(["replicas", "--replicas", "2", "--loads", "0.7,0.95", *FEW, "--json", str(target)]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + 1 + 2 * len(ROUTERS)
    assert sum(line.count(" best  ") for line in table[2:]) == 2
    told = json.loads(target.read_text(encoding="utf-8"))
    told_of = [(row["router"], row["load"]) for row in told["rows"]]
    assert told_of == [(router, load) for load in (0.7, 0.95) for router in ROUTERS]
    assert 0 < told["rows"][0]["metrics"]["goodput"]["mean"] <= 1
    assert told["policy"] == "prefill_first"


def test_the_command_finds_the_number(capsys):
    options = ["replicas", "--rate", "6", "--router", "least_outstanding,round_robin", "--policy", "deadline", *FEW]
    assert main(options) == 0
    out = capsys.readouterr().out
    assert " replicas keep the SLOs for 99 % of 6.00 requests/s" in out
    assert "with one less" in out
    assert main([*options, "--max-replicas", "1"]) == 1
    assert "No number of replicas up to 1 keeps the SLOs for 99 % of 6.00 requests/s." in capsys.readouterr().out


def test_the_command_says_where_a_case_is_too_short(capsys):
    """300 requests at 100 replicas of 10 clients: three each, where 50 would be 5000."""
    short = ["replicas", "--requests", "300", "--clients", "10", "--cases", "1", "--router", "random"]
    assert main([*short, "--replicas", "100"]) == 0
    assert "about 3 requests for its 10 clients, and hardly filled up" in (out := capsys.readouterr().out)
    assert "Take --requests 5000 or more" in out
    assert main([*short, "--rate", "1e6"]) == 0
    out = capsys.readouterr().out
    assert ", in one case: take more for an interval." in out
    assert "hardly filled up" in out
    assert main(["replicas", "--requests", "300", "--cases", "2", "--rate", "recorded", "--clients", "60"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Behind \w+ 1 replica keeps the SLOs for 99 % of 1\.\d\d requests/s\.$", out, re.MULTILINE)
    assert "hardly filled up" not in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate", "-3"], "--rate -3.0 is out of range"),
        (["--rate", "5", "--workload", "gsm8k", "--arguments", "load=None"], "released at one time have no rate"),
        (["--router", "nearest"], "unknown router 'nearest'"),
        (["--replicas", "0"], "--replicas 0 is out of range"),
        (["--rate", "fast"], "--rate 'fast': give requests/s, as 40, or 'recorded'"),
        (["--rate", "40", "--replicas", "3"], "--replicas with --rate"),
        (["--rate", "40", "--goodput", "99"], "--goodput 99.0 is out of range"),
        (["--loads", "high"], "--loads 'high': give numbers above 0"),
        (["--scenario", "LLMSched/GSM8K-v0"], "replicas of a scenario without SLOs"),
        (["--policy", "lookahead"], "looks at the future"),
        (["--json", "/", "--replicas", "0"], "cannot write /: it is a folder"),  # said before any work
    ],
)
def test_the_command_says_what_is_wrong(options, words, capsys):
    assert main(["replicas", *FEW, *options]) == 2
    assert words in capsys.readouterr().err
