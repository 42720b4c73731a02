"""Compiled code and the Python that it is written in give the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from episodes import digests

HERE = Path(__file__).parent


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled in this process")
def test_compiled_equals_interpreted():
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "error", str(HERE / "episodes.py")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    interpreted, compiled = json.loads(ran.stdout), digests()
    assert interpreted == compiled
    assert len({digest for group in compiled.values() for digest in group}) == sum(map(len, compiled.values()))
