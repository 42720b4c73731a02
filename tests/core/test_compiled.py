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
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        expected = digests()
        out, errors = other.communicate()
    assert other.returncode == 0, errors
    found = json.loads(out)
    assert found.pop("compiled") is False
    assert expected.pop("compiled") is True
    assert found == expected
    every = [digest for group in expected.values() for digest in group]
    assert len(set(every)) == len(every)
