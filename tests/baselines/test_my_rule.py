"""The example of a compiled rule of one's own: it builds, and does what the same rule does as a Python function."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from playing import WORLDS, history

from llmsched_env.cases import build_problem
from llmsched_env.engine.rule import Rule
from llmsched_env.extensions import compiled
from llmsched_env.policy import FunctionRule
from llmsched_env.simulator import Simulator

ROOT = Path(__file__).parents[2]
IDLE, DECODES = 4, 5


def patience(view, parameters, memory):
    idle, most = parameters
    enough = memory[0] or idle
    if view.idle >= enough:
        return 1
    if view.decodes - view.last_prefill_decode >= most:
        memory[0] = max(1, enough - 1)
        return 1
    return 0


@pytest.fixture(scope="module")
def my_rule(tmp_path_factory):
    """The example, compiled in a folder of its own; as it stands where the engine runs uncompiled."""
    folder = tmp_path_factory.mktemp("mine")
    for name in ("my_rule.py", "my_rule.pxd"):
        shutil.copy(ROOT / "examples" / name, folder)
    if compiled:
        pytest.importorskip("Cython", reason="it takes Cython to compile a rule")
        if not shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]):
            pytest.skip("it takes a C compiler to compile a rule")
        command = [sys.executable, "-m", "Cython.Build.Cythonize", "-3", "-i", "-q", "my_rule.py"]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        made = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    yield __import__("my_rule")
    sys.path.remove(str(folder))
    del sys.modules["my_rule"]


@pytest.mark.parametrize("name", WORLDS)
def test_it_does_what_the_function_does(my_rule, name):
    assert my_rule.__file__.endswith(".py") != compiled
    rule, function = my_rule.Patience(IDLE, DECODES), FunctionRule(patience, (IDLE, DECODES), (0,))
    for _ in range(2):  # it begins each episode anew
        mine, asked = (Simulator(build_problem(WORLDS[name], 0), record=True) for _ in range(2))
        mine.run(rule)
        asked.run(function)
        assert mine.done
        assert history(mine) == history(asked)
    assert rule.enough < IDLE, "it never had to wait: half of the rule was not tested"


@pytest.mark.skipif(not compiled, reason="the engine runs uncompiled, and so may rules")
def test_a_rule_that_is_not_compiled_is_refused():
    class Mine(Rule):
        def act(self, view):
            return 1

    with pytest.raises(TypeError, match=r"Mine\.act is not compiled, but the engine is: compile its file as"):
        Simulator(build_problem(WORLDS["client"], 0)).run(Mine())
