"""The engine compiled and uncompiled: the same to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmsched_env.engine import compiled


def test_compiled_equals_uncompiled():
    if not compiled:
        pytest.skip("the engine runs uncompiled here: there is nothing to compare")
    script, found = Path(__file__).with_name("combined_digest.py"), {}
    for form in ("0", "1"):
        places = [str(script.parents[1]), os.environ["PYTHONPATH"]]
        environment = {**os.environ, "LLMSCHED_UNCOMPILED": form, "PYTHONPATH": os.pathsep.join(places)}
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
        )
        name, digest = done.stdout.split()
        found[name] = digest
    assert found.keys() == {"True", "False"}
    assert found["True"] == found["False"]
