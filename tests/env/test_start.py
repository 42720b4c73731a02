"""A gate: the first step of a fresh process with an empty cache folder comes at once, beside what Gymnasium takes.

CPU seconds of both, in the same run. What compiles at use, or imports a solver or a learning library, takes many times
as long.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmsched_env import ENVIRONMENTS, ROUTER_ENVIRONMENTS

LIMIT = 9.0
"""Of `import gymnasium`, beyond it: one environment takes 1 to 3, 16 copies, whose cases are drawn, little more."""

TRIES = 3
STEPS = """
e = gymnasium.make("llmsched_env:{0}")
e.reset(seed=0)
e.step(1)
e = gymnasium.make_vec("llmsched_env:{0}", num_envs=16)
e.reset(seed=0)
e.step([1] * 16)
"""
CPU_S = "import resource; u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"

pytest.importorskip("resource", reason="CPU seconds of a process are read as on Unix")


@pytest.fixture(scope="module")
def cpu_s(tmp_path_factory):
    """``cpu_s(code)``: of a process that imports Gymnasium and runs this."""

    def of(code):
        environment = {**os.environ, "LLMSCHED_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
        command = [sys.executable, "-c", f"import gymnasium\n{code}\n{CPU_S}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    of("")  # Gymnasium's own files are read from disk once
    return of


@pytest.fixture(scope="module")
def gymnasium_s(cpu_s):
    """CPU seconds of `import gymnasium` alone, by try."""
    return [cpu_s("") for _ in range(TRIES)]


@pytest.mark.parametrize("identity", [*ENVIRONMENTS, *ROUTER_ENVIRONMENTS])
def test_first_steps_come_at_once(cpu_s, gymnasium_s, identity):
    found = []
    for alone in gymnasium_s:  # a busy machine slows one process more than another
        found.append((cpu_s(STEPS.format(identity)) - alone) / alone)
        if found[-1] <= LIMIT:
            return
    pytest.fail(f"one copy and 16 took {min(found):.1f} times `import gymnasium`; {LIMIT:g} is the most.")
