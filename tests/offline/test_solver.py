"""The solvers where processes and folders are odd: after a fork, among blanks, where they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pulp
import pytest

from llmsched_env.errors import SolverError
from llmsched_env.offline import solver

ROOT = Path(__file__).parents[2]
needs_cbc = pytest.mark.skipif(solver._cbc_path() is None, reason="no CBC here")


def knapsack() -> pulp.LpProblem:
    """Worth 2 + 3 = 5 at most: the second and third of sizes 4, 2 and 3 fit 5."""
    problem = pulp.LpProblem("knapsack", pulp.LpMaximize)
    taken = [solver.add_variable(problem, f"x{i}", 0, 1, integer=True) for i in range(3)]
    problem += pulp.lpSum(worth * x for worth, x in zip((4, 2, 3), taken, strict=True))
    problem += pulp.lpSum(size * x for size, x in zip((4, 2, 3), taken, strict=True)) <= 5
    return problem


FORKS = """
import os, signal, sys
import highspy
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_solver import knapsack
from llmsched_env.offline import solver
import pulp

def on_several_threads():
    highs = highspy.Highs()
    for option, value in (("output_flag", False), ("threads", 8), ("parallel", "on")):
        highs.setOptionValue(option, value)
    draw = np.random.default_rng(0)
    chosen = [highs.addBinary(obj=-float(draw.integers(5, 50))) for _ in range(30)]
    for _ in range(5):  # more than presolve can do alone
        sizes = draw.integers(5, 50, 30)
        highs.addConstr(sum(int(size) * x for size, x in zip(sizes, chosen)) <= int(sizes.sum() // 2))
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal

on_several_threads()
solver.solve(knapsack(), "highs")
on_several_threads()
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hang is a failure
    problem = knapsack()
    proved = solver.solve(problem, "highs").proved
    os._exit(0 if proved and pulp.value(problem.objective) == 5 else 1)
print(os.waitpid(child, 0)[1])
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_solves_after_its_parents_multithreaded_highs():
    pytest.importorskip("highspy")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


@needs_cbc
def test_cbc_solves_with_a_blank_in_the_folder_of_temporary_files(tmp_path, monkeypatch):
    folder = tmp_path / "my files"
    folder.mkdir()
    for name in ("TMPDIR", "TMP", "TEMP"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    problem = knapsack()
    assert solver.solve(problem, "cbc").proved
    assert pulp.value(problem.objective) == 5
    assert not list(folder.iterdir())


@needs_cbc
def test_a_cbc_that_fails_leaves_no_file_behind(tmp_path, monkeypatch):
    fails = tmp_path / "cbc"
    fails.write_text("#!/bin/sh\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setattr(solver, "_cbc_path", lambda: str(fails))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(SolverError, match="the MIP solver broke down"):
        solver.solve(knapsack(), "cbc")
    assert not list((tmp_path / "temporary").iterdir())


def test_no_folder_without_blanks_is_said(monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/my files")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(solver, "_cbc_path", lambda: "/bin/true")
    with pytest.raises(SolverError, match="'/my files': set TMPDIR to a folder without blanks, or install highspy"):
        solver.solve(knapsack(), "cbc")
