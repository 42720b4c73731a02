"""No input crashes the process, or raises what is not an error of this project."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

FUZZING = Path(__file__).with_name("fuzzing.py")
WORLDS = int(os.environ.get("LLMSCHED_CASES", "300"))


def test_random_scenarios_requests_and_actions():
    """In a process of its own, which would be gone otherwise."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(FUZZING), "0", str(WORLDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    tally = ast.literal_eval(done.stdout)
    for name in ("played", "environments", "vectors"):
        assert tally[name] > WORLDS // 30, f"hardly anything was {name}: {tally}"
    for name in ("ConfigError", "WorkloadError", "InvalidActionError", "EpisodeOverError"):
        assert tally[name] > 0, f"nothing was refused with {name}: {tally}"
