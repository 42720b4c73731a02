"""The example in one file."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from llmsched_env import make_scenario
from llmsched_env.agents import rule_start
from llmsched_env.agents.batch_evaluation import BatchEvaluation
from llmsched_env.agents.network import Network, dense

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
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *QUICK, *words], capture_output=True, text=True, check=False, timeout=600
    )


def run_here(*words):
    """In this process, which has torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(EXAMPLE), *QUICK, *words])
        runpy.run_path(str(EXAMPLE), run_name="__main__")


@pytest.fixture(scope="module")
def printed():
    with contextlib.redirect_stdout(io.StringIO()) as kept:
        run_here("--id", "LLMSched/GSM8K-v0")
    return kept.getvalue()


def test_it_learns_and_repeats(printed):
    gaps = re.findall(r"gap (\d\.\d+) %", printed)
    assert len(gaps) == 1 + 4, "the rule's, and one an update"
    assert len(set(gaps)) > 1, "nothing was learned"
    assert re.search(r"less that of the rule, 2 validation cases: [+-]\d\.\d+ ± \d\.\d+ points", printed)
    again = run("--id", "LLMSched/GSM8K-v0")
    assert again.returncode == 0, again.stderr
    assert re.findall(r"gap (\d\.\d+) %", again.stdout) == gaps


def test_it_begins_as_the_tuned_rule(printed):
    gap = re.match(r"the rule, multiplier [\d.]+: gap (\d\.\d+) %\n", printed)[1]
    scenario = make_scenario("LLMSched/GSM8K-v0")
    start = rule_start(scenario)
    rule = Network(
        ("active",), (dense([[0.0]], [0.0]),), head="prefill", base=start["base"],
        base_values=tuple(start["base_values"]), base_limit=1.0,
    )  # fmt: skip
    losses, _ = BatchEvaluation(scenario.replace(split="validation"), range(2)).losses([rule], (0, 1))
    assert float(gap) == pytest.approx(100 * losses.mean(), abs=5e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--id", "LLMSched/Serving-v0"], "a batch with two actions"),
        (["--id", "LLMSched/GSM8K-v9"], "--id: unknown scenario 'LLMSched/GSM8K-v9'. Did you mean"),
        (["--num-envs", "0"], "--num-envs 0 is out of range: it lies in [1, "),
        (
            ["--minibatch-size", "300"],
            "--minibatch-size 300 does not divide a rollout of --num-envs x --num-steps = 512",
        ),
        (["--gamma", "nan"], "--gamma nan is out of range: it lies in [0, 1]"),
        (["--cases", "1000000000"], "--cases 1000000000 is out of range"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(words, said, capsys):
    with pytest.raises(SystemExit) as refused:
        run_here(*words)
    assert refused.value.code == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert said in found.err


def test_it_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 300
