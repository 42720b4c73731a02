"""The ladder, its stages against brute force and the product's own way, accelerators, the table and the picture."""

from __future__ import annotations

import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from llmsched_env.baselines.registry import entry
from llmsched_env.cases import build_problem
from llmsched_env.config import Scenario
from llmsched_env.errors import ConfigError, UnknownNameError
from llmsched_env.evaluation import play
from llmsched_env.offline import lb1_ns
from llmsched_env.studies import scale, stages
from llmsched_env.studies.accelerators import CLIENTS, METHOD, SHARINGS, SharedWorkload, accelerators
from llmsched_env.studies.machine import child
from llmsched_env.studies.stages import STAGES, Point
from llmsched_env.studies.study import Options, run
from llmsched_env.workload import workload

SMOOTH = Point("gsm8k-smooth", 3, 9, models=4)


def done(name: str, point: Point):
    """What a stage says of a case, without a process."""
    given = STAGES[name].given(point)
    return STAGES[name].said(given, STAGES[name].work(given))


def test_the_ladder():
    assert [scale.sizes(clients) for clients in (20, 200, 5000)] == [[132, 4000], [1319, 40_000], [32_975, 1_000_000]]
    assert scale.sizes(10_000) == [65_950, 1_000_000]
    assert scale.sizes(200_000) == [1_000_000, 1_319_000]
    assert scale.sizes(1) == [7, 200]


@pytest.mark.parametrize(("clients", "million"), [((200, 1000), False), ((200, 5000), True)])
def test_jobs(clients, million):
    jobs = scale.STUDY.jobs(Options(20, clients))
    assert len({job.name for job in jobs}) == len({job.key for job in jobs}) == len(jobs)
    assert any(job.arguments["requests"] == 1_000_000 for job in jobs) == million
    assert {job.arguments["cases"] for job in jobs if job.name.startswith("polish")} == {1}
    assert {job.arguments["models"] for job in jobs if job.name.startswith("polish gsm8k 200 ")} == {300, 400}
    assert sum(job.name.startswith("whole MIP") for job in jobs) == 8
    assert not any(job.name.startswith("whole MIP") for job in scale.STUDY.jobs(Options(1, (10,))))


def test_certificates_hold_against_brute_force():
    every = np.array(list(itertools.product(range(SMOOTH.clients), repeat=SMOOTH.requests)))
    improved = 0
    for case in range(3):
        point = SMOOTH._replace(case=case)
        loads = STAGES["resplit"].given(point).loads
        least = np.stack([(every == client) @ loads for client in range(point.clients)]).max(axis=0).min()
        found = {name: done(name, point) for name in ("lpt", "resplit", "polish", "assign")}
        assert all(said["bound"] <= least <= said["cmax"] <= found["lpt"]["cmax"] for said in found.values())
        assert found["assign"]["cmax"] == found["assign"]["bound"] == least, "so few requests that it is exact"
        improved += max(found["resplit"]["cmax"], found["polish"]["cmax"]) < found["lpt"]["cmax"]
    assert improved > 0, "LPT was optimal: the searches had nothing to do"


@pytest.mark.parametrize("name", ["resplit", "polish"])
def test_a_stage_leaves_its_input_as_it_was(name):
    # It is timed several times on the same one.
    given = STAGES[name].given(SMOOTH._replace(case=1))
    before = given.lpt.client_of.copy()
    first, again = (STAGES[name].work(given).client_of for _ in range(2))
    assert (given.lpt.client_of == before).all()
    assert (first == again).all()
    assert (first != before).any(), "nothing was searched"


@pytest.mark.parametrize(("name", "method"), [("client", "hybrid_lpt"), ("shared", "shared_lpt_lagrangian")])
def test_episodes_are_those_of_the_methods(name, method):
    point = Point("gsm8k", 20, 132, case=1)
    row = entry(method, point.scenario())
    simulator = play(row.policy, row.scenario, 1)
    said = done(name, point)
    assert said["makespan_s"] == simulator.view.clock_ns / 1e9
    assert said["iterations"] == simulator.view.prefills + simulator.view.decodes
    assert said["gap_to_bound"] == pytest.approx(said["makespan_s"] / said["bound_s"] - 1)


def test_a_case_is_laid_out_as_the_product_does():
    point = Point("gsm8k", 20, 132)
    laid_out = STAGES["layout"].work(STAGES["layout"].given(point))
    assert laid_out.digest() == build_problem(point.scenario(assignment="lpt"), 0).digest()


def test_a_stage_in_a_process_of_its_own():
    said = stages.stage("draw", "gsm8k-smooth", 3, 200_000, 2, 0)
    assert said["found"] == [done("draw", Point("gsm8k-smooth", 3, 200_000, case)) for case in range(2)]
    assert said["seconds"] > 0 < said["reference_s"]
    # Prompts and outputs of 4 bytes, at the very least; ten arrays of 8 at most.
    assert 2 * 4 * 200_000 < said["memory_bytes"] < 10 * 8 * 200_000


def test_peak_memory_is_that_of_the_process(tmp_path):
    script = tmp_path / "holds.py"
    script.write_text(
        "import sys\nfrom llmsched_env.studies.machine import peak_memory_bytes, reset_peak_memory\n"
        "def hold(size):\n    held = bytearray(size)\n    held[::1024] = b'1' * len(held[::1024])\n"
        "hold(128 * 2**20)\nbefore = reset_peak_memory()\nhold(int(sys.argv[1]))\n"
        "print('said before')\nprint('{\"more\":', peak_memory_bytes() - before, '}')\n"
    )
    own = bytearray(200 * 2**20)  # of the parent, and none of the child's business
    own[::1024] = b"1" * len(own[::1024])
    assert 60 * 2**20 < child(script, str(64 * 2**20))["more"] < 80 * 2**20, "what was held before counts, too"


def test_a_process_that_fails_says_why(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('out of luck')\n")
    with pytest.raises(RuntimeError, match=r"fails\.py x failed:\nout of luck"):
        child(script, "x")


@pytest.mark.parametrize("sharing", SHARINGS)
def test_shares_are_the_whole_case(sharing):
    whole = workload("gsm8k").requests("test", 4, num_requests=30)
    shared = SharedWorkload("gsm8k", 3, 30, sharing)
    shares = [shared.requests("test", 3 * 4 + accelerator) for accelerator in range(3)]
    pairs = [
        list(zip(share.prompt_tokens.tolist(), share.output_tokens.tolist(), strict=True)) for share in (whole, *shares)
    ]
    assert sorted(itertools.chain(*pairs[1:])) == sorted(pairs[0])
    assert {share.mean_output_tokens for share in shares} == {whole.mean_output_tokens}
    if sharing == "round_robin":
        assert pairs[1:] == [pairs[0][accelerator::3] for accelerator in range(3)]
    else:
        tokens = [0, 0, 0]
        for length in sorted(whole.output_tokens.tolist(), reverse=True):
            tokens[tokens.index(min(tokens))] += length
        assert [int(share.output_tokens.sum()) for share in shares] == tokens
    assert SharedWorkload("gsm8k", 1, 30, sharing).requests("test", 4).digest() == whole.digest()
    assert shared.pool_size("test") == 300
    assert pickle.loads(pickle.dumps(shared)) == shared, "not to be sent to other processes or machines"


def test_the_whole_takes_as_long_as_its_last_accelerator():
    found = accelerators("gsm8k-smooth", 2, 500, "round_robin", 2)
    assert found == accelerators("gsm8k-smooth", 2, 500, "round_robin", 2, workers=2, engine="threading")
    row = entry(METHOD, Scenario(SharedWorkload("gsm8k-smooth", 2, 500, "round_robin"), "test", num_clients=CLIENTS))
    ends = [play(row.policy, row.scenario, case).view.clock_ns / 1e9 for case in range(4)]
    assert found["makespan_s"] == [max(ends[:2]), max(ends[2:])]
    assert len(set(ends)) == 4, "accelerators that end together: the last one was not tested"
    requests = workload("gsm8k-smooth").requests("test", 1, num_requests=500)
    assert found["bound_s"][1] == lb1_ns(requests, CLIENTS, Scenario().cost_model) / 2e9


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_no_way_to_share_beats_the_bound(count, sharing):
    found = accelerators("gsm8k", count, 300, sharing, 3)
    assert (np.array(found["bound_s"]) <= found["makespan_s"]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("gsm8k", 0, 10), ConfigError, "accelerators = 0 is out of range"),
        (("gsm8k", 4, 3), ConfigError, "num_requests = 3 is less than accelerators = 4: each of them needs a request"),
        (("gsm9k", 4, 30), UnknownNameError, "unknown workload 'gsm9k'"),
        (("gsm8k", 4, 30, "lpd"), UnknownNameError, "Did you mean 'lpt'"),
    ],
)
def test_bad_accelerators(arguments, error, message):
    with pytest.raises(error, match=message):
        SharedWorkload(*arguments)


def test_a_share_of_fewer_requests_is_checked_too():
    with pytest.raises(ConfigError, match="num_requests = 2 is less"):
        SharedWorkload("gsm8k", 4, 30).requests("test", 0, num_requests=2)


def test_the_table_and_the_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for name, value in {"MOST_MODELS": 2, "MOST_HARD_MODELS": 1, "ACCELERATORS": (1, 2)}.items():
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr(stages, "MOST_REPEATS", 1)
    monkeypatch.setattr(stages, "REFERENCE_NUMBERS", 1000)
    monkeypatch.setattr(stages, "child", lambda module, *arguments: stages.measured(*arguments))
    found = run(scale.STUDY, Options(2, (20,)), tmp_path, workers=1, progress=False)
    text = (tmp_path / "scale.md").read_text(encoding="utf-8")
    assignments, machine, costs, episodes, mips, shared = text.split("\n\n")
    assert "Python 3" in machine
    assert len(assignments.splitlines()) == len(costs.splitlines()) == len(episodes.splitlines()) == 2 + 4
    assert "| smooth | 20 | 4,000 |" in assignments
    lpt, polished = (found[f"{name} gsm8k 20 132"]["found"] for name in ("lpt", "polish"))
    above = sorted(case["cmax"] - case["bound"] for case in lpt)
    assert f"| GSM8K | 20 | 132 | {above[0]} to {above[1]} |" in assignments
    assert f"| at most 1 | {polished[0]['cmax'] - polished[0]['bound']} |" in assignments
    assert mips.splitlines()[2].startswith("| GSM8K | 2 | 13 | 2 of 2 |")
    gap = 100 * np.mean([case["gap_to_bound"] for case in found["client gsm8k 20 132"]["found"]])
    assert f"| {gap:.2f} ±" in episodes.splitlines()[2]
    assert all(line.count("|") == shared.splitlines()[0].count("|") for line in shared.splitlines())
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_left_open_is_said():
    def cases(*excess: int) -> list[dict[str, int]]:
        return [{"cmax": 10 + x, "bound": 10} for x in excess]

    assert scale._left(cases(0, 0)) == "2 of 2"
    assert scale._left(cases(0, 3, 1)) == "1 of 3, worst 3"
    assert [scale._seconds(x) for x in (0.00123, 0.5, 12.3)] == ["1.2 ms", "0.5 s", "12 s"]
    cost = {"seconds": 0.5, "reference_s": 0.2, "memory_bytes": 2**19}
    assert scale._cost(cost) == "0.5 s (2.5)"
    assert scale._cost({**cost, "seconds": 50.0, "memory_bytes": 5 * 2**20}) == "50 s (250), 5 MiB"


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?SharedWorkload.*?)```", page, re.DOTALL)
    exec(block, {})
    found = accelerators("gsm8k", 8, 10_552, "lpt", 1)
    assert float(capsys.readouterr().out) == found["makespan_s"][0]


def test_the_page_has_a_place_for_the_table():
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    assert page.count("<!-- scale: begin -->") == page.count("<!-- scale: end -->") == 1
    assert "images/study_scale.png" in page
