"""Compiled code and the Python that it is written in give the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from episodes import digests

from llmsched_env.engine import compiled

HERE = Path(__file__).parent


@pytest.mark.skipif(not compiled, reason="nothing is compiled in this process")
def test_compiled_equals_uncompiled():
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "LLMSCHED_UNCOMPILED": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "error", str(HERE / "episodes.py")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, expected = json.loads(ran.stdout), digests()
    assert found == expected
    assert len({digest for group in expected.values() for digest in group}) == sum(map(len, expected.values()))
