"""The ladder, its stages against brute force and the product's own way, the tables and the picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from llmsched_env.baselines.registry import entry
from llmsched_env.cases import build_problem
from llmsched_env.evaluation import play
from llmsched_env.studies import scale, stages
from llmsched_env.studies.machine import child
from llmsched_env.studies.stages import STAGES, Point
from llmsched_env.studies.study import Options, run

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


def test_the_table_and_the_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for name, value in {"MOST_MODELS": 2, "MOST_HARD_MODELS": 1}.items():
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr(stages, "MOST_REPEATS", 1)
    monkeypatch.setattr(stages, "REFERENCE_NUMBERS", 1000)
    monkeypatch.setattr(stages, "child", lambda module, *arguments: stages.measured(*arguments))
    found = run(scale.STUDY, Options(2, (20,)), tmp_path, workers=1, progress=False)
    text = (tmp_path / "scale.md").read_text(encoding="utf-8")
    titles, tables = text.split("\n\n")[::2], text.split("\n\n")[1::2]
    assignments, costs, episodes, mips = tables
    assert "Python 3" in titles[1]
    assert len(assignments.splitlines()) == len(costs.splitlines()) == len(episodes.splitlines()) == 2 + 4
    assert "| smooth | 20 | 4,000 |" in assignments
    short = scale.STUDY.short({table.name: table for table in scale.STUDY.tables(found)})
    assert short.rows[0][:3] == ["GSM8K", "20", "132"]
    assert len(short.rows) == 4
    assert not any("(" in cell for row in short.rows for cell in row), "the page has times only"
    lpt, polished = (found[f"{name} gsm8k 20 132"]["found"] for name in ("lpt", "polish"))
    above = sorted(case["cmax"] - case["bound"] for case in lpt)
    assert f"| GSM8K | 20 | 132 | {above[0]} to {above[1]} |" in assignments
    assert f"| at most 1 | {polished[0]['cmax'] - polished[0]['bound']} |" in assignments
    assert mips.splitlines()[2].startswith("| GSM8K | 2 | 13 | 2 of 2 |")
    gap = 100 * np.mean([case["gap_to_bound"] for case in found["client gsm8k 20 132"]["found"]])
    assert f"| {gap:.2f} ±" in episodes.splitlines()[2]
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
