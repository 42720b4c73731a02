"""The example in one file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

EXAMPLE = Path(__file__).parents[2] / "examples" / "cleanrl_ppo.py"
QUICK = [
    "--total-timesteps",
    "2048",
    "--num-envs",
    "4",
    "--num-steps",
    "128",
    "--minibatch-size",
    "256",
    "--cases",
    "2",
]


def run(*words):
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *QUICK, *words], capture_output=True, text=True, check=False, timeout=600
    )


def test_it_learns_and_repeats():
    first = run("--id", "LLMSched/GSM8K-v0")
    assert first.returncode == 0, first.stderr
    gaps = re.findall(r"gap (\d\.\d+) %", first.stdout)
    assert len(gaps) == 4
    assert len(set(gaps)) > 1, "nothing was learned"
    assert re.search(r"less that of the rule, 2 validation cases: [+-]\d\.\d+ ± \d\.\d+ points", first.stdout)
    assert re.findall(r"gap (\d\.\d+) %", run("--id", "LLMSched/GSM8K-v0").stdout) == gaps


def test_what_it_is_not_for():
    refused = run("--id", "LLMSched/Serving-v0")
    assert refused.returncode != 0
    assert "a batch with two actions" in refused.stderr


def test_it_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 300
