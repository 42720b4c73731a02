"""The example in one file."""

from __future__ import annotations

import re
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
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *QUICK, *words], capture_output=True, text=True, check=False, timeout=600
    )


def test_it_learns_and_repeats():
    first = run("--id", "LLMSched/GSM8K-v0")
    assert first.returncode == 0, first.stderr
    gaps = re.findall(r"gap (\d\.\d+) %", first.stdout)
    assert len(gaps) == 1 + 4, "the rule's, and one an update"
    assert len(set(gaps)) > 1, "nothing was learned"
    assert re.search(r"less that of the rule, 2 validation cases: [+-]\d\.\d+ ± \d\.\d+ points", first.stdout)
    assert re.findall(r"gap (\d\.\d+) %", run("--id", "LLMSched/GSM8K-v0").stdout) == gaps


def test_it_begins_as_the_tuned_rule():
    done = run("--total-timesteps", "512")
    gap = re.match(r"the rule, multiplier [\d.]+: gap (\d\.\d+) %\n", done.stdout)[1]
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
def test_bad_arguments_are_refused_before_anything_is_made(words, said):
    refused = run(*words)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert said in refused.stderr


def test_it_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 300
