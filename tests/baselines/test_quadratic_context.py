"""The example of other dynamics: its law holds after every iteration, and it trains; a compiled engine refuses it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmsched_env.cases import build_problem
from llmsched_env.extensions import compiled

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "quadratic_context.py"

LAW = f"""
import pickle, sys
sys.path.insert(0, {str(EXAMPLE.parent)!r})
from quadratic_context import COST, scenario
from llmsched_env.cases import build_problem
from llmsched_env.simulator import Simulator

simulator = Simulator(build_problem(scenario(5), 0))
view, squared = simulator.view, 0
while not simulator.done:
    active, context, clock_ns, decodes = view.active, view.context_tokens, view.clock_ns, view.decodes
    shown_ns = view.decode_ns
    simulator.step(int(view.ready >= 2))
    if view.decodes > decodes:
        assert view.clock_ns - clock_ns == shown_ns == COST.decode_ns(active, context)
        squared += shown_ns - COST.alpha_decode_ns - COST.beta_decode_ns * active
assert squared > 10**9
kept = pickle.loads(pickle.dumps(build_problem(scenario(5), 0).data))
assert type(kept.actual) is type(kept.believed) is type(COST.engine_costs(None))
print("held")
"""


@pytest.fixture
def uncompiled():
    """``uncompiled(*arguments)``: what Python prints, with the engine as it is written."""
    environment = {**os.environ, "LLMSCHED_UNCOMPILED": "1", "PYTHONPATH": str(ROOT)}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_decodes_last_as_the_law_says(uncompiled):
    assert uncompiled("-c", LAW) == "held\n"


def test_it_trains(uncompiled):
    pytest.importorskip("stable_baselines3")
    said = uncompiled(str(EXAMPLE), "--timesteps", "64", "--cases", "1", "--clients", "3")
    assert [line.split(":")[0].strip() for line in said.splitlines()[1:]] == ["ppo", "prefill_first", "threshold"]


@pytest.mark.skipif(not compiled, reason="the engine runs uncompiled")
def test_a_compiled_engine_refuses_it(monkeypatch):
    spec = importlib.util.spec_from_file_location("quadratic_context", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "quadratic_context", module)
    spec.loader.exec_module(module)
    with pytest.raises(TypeError, match=r"QuadraticCosts\.decode_ns is not compiled.* LLMSCHED_UNCOMPILED=1"):
        build_problem(module.scenario(), 0)
