"""Rules, networks and searches give the same bits compiled and uncompiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loop_digests import digests

from llmsched_env.engine import compiled

HERE = Path(__file__).parent


@pytest.mark.skipif(not compiled, reason="nothing is compiled in this process")
def test_compiled_equals_uncompiled():
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "LLMSCHED_UNCOMPILED": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "error", str(HERE / "loop_digests.py")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, expected = json.loads(ran.stdout), digests()
    assert {name for name in expected if found.get(name) != expected[name]} == set()
    assert found.keys() == expected.keys()
    for kind, least in ((", shared", 25), ("tanh", 12), ("relu", 20), ("beam", 5), ("lookahead", 2)):
        different = {digest for name, digest in expected.items() if kind in name}
        assert len(different) >= least, f"{kind}: hardly anything was told apart"
