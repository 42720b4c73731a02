"""The recipe of CONTRIBUTING.md for a mechanism: its patch applies, touches four files, and does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATCH = ROOT / "docs" / "recipes" / "pause.patch"

PAUSES = """
from llmsched_env import Scenario
from llmsched_env.cases import build_problem
from llmsched_env.simulator import Simulator

def durations_ns(**pauses):
    scenario = Scenario(num_clients=5, num_requests=20, queue="shared", **pauses)
    simulator = Simulator(build_problem(scenario, 0), record=True)
    while not simulator.done:
        simulator.step(int(simulator.view.ready >= 2))
        if simulator.view.decodes == 50:
            simulator = simulator.fork(record=True)  # the log begins anew; the pauses do not
    return simulator.log["end_ns"] - simulator.log["start_ns"], simulator

added, simulator = durations_ns(pause_every=7, pause_s=0.25)
plain, _ = durations_ns()
added = added - plain
first = 6 - (simulator.view.prefills + simulator.view.decodes - len(added)) % 7
assert (added[first::7] == 250_000_000).all()
assert added.sum() == 250_000_000 * len(added[first::7]) > 0
print(len(added[first::7]))
"""


def test_it_touches_four_files():
    files = re.findall(r"^\+\+\+ b/(\S+)$", PATCH.read_text(encoding="utf-8"), re.MULTILINE)
    assert files == [
        "llmsched_env/config/pause.py",
        "llmsched_env/config/scenario.py",
        "llmsched_env/engine/pause.py",
        "llmsched_env/engine/transition.py",
    ]


@pytest.mark.skipif(shutil.which("git") is None, reason="git applies the patch")
def test_it_does_what_it_says(tmp_path):
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "*.pxd", "_compiled*.json", "__pycache__")
    shutil.copytree(ROOT / "llmsched_env", tmp_path / "llmsched_env", ignore=ignored)
    applied = subprocess.run(["git", "apply", str(PATCH)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert applied.returncode == 0, f"the recipe is out of date: {applied.stderr}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "LLMSCHED_UNCOMPILED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PAUSES], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@pytest.mark.skipif(shutil.which("git") is None, reason="git applies the patch")
def test_it_can_be_compiled(tmp_path):
    """As far as Cython is asked: what was written for C compiles, or another test says so."""
    pytest.importorskip("Cython")
    for name in ("build_engine.py", "llmsched_env"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    assert subprocess.run(["git", "apply", str(PATCH)], cwd=tmp_path, check=False).returncode == 0
    write = "from build_engine import *; print(write(compiled_files())['llmsched_env.engine.pause'])"
    done = subprocess.run([sys.executable, "-c", write], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    declared = (tmp_path / "llmsched_env" / "engine" / "pause.pxd").read_text(encoding="utf-8")
    assert "cdef inline long long next_ns(self) noexcept nogil" in declared
    for module in ("pause", "transition"):
        command = [
            sys.executable,
            "-m",
            "cython",
            "-3",
            "-o",
            str(tmp_path / "out.c"),
            f"llmsched_env/engine/{module}.py",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
