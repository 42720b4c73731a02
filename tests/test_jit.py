"""The compiled cache: what is damaged is compiled again, what is stale is not served."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmsched_env

SCRIPT = """
import numpy as np
from llmsched_env.core.bitset import words_needed
from llmsched_env.core.rules import compile_rule
from llmsched_env.core.reward import charge
from llmsched_env.core.layout import SETUP, STATE, VIEW
view, state, setup = (np.zeros(1, kind) for kind in (VIEW, STATE, SETUP))
view[0].clock_ns = 7
setup[0].reward = REWARD
print(charge(view[0], state[0], setup[0]))
"""


def run(cache: Path, *, package: Path | None = None, reward: int = 1) -> str:
    environment = {**os.environ, "LLMSCHED_CACHE_DIR": str(cache)}
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("REWARD", str(reward))],
        env=environment, capture_output=True, text=True, check=False, cwd=package,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    assert run(cache) == "7"
    return cache


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_compiled_code_is_compiled_again(warm, suffix, damage):
    files = list(warm.rglob(f"*{suffix}"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    assert run(warm) == "7"
    assert all(len(file.read_bytes()) > 32 for file in files)


def test_an_edit_anywhere_in_the_package_is_noticed(tmp_path):
    import shutil

    copy = tmp_path / "llmsched_env"
    shutil.copytree(Path(llmsched_env.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert run(tmp_path / "cache", package=tmp_path) == "7"
    config = copy / "config.py"
    text = config.read_text()
    swapped = text.replace('"excess", "makespan", "idle", "latency"', '"excess", "latency", "idle", "makespan"')
    assert swapped != text
    config.write_text(swapped)
    assert run(tmp_path / "cache", package=tmp_path) == "0", "stale machine code: reward 1 is now latency"


THREADS = """
from concurrent.futures import ThreadPoolExecutor
import numba
from numba.core import caching
from llmsched_env.core.rules import compile_rule
from baselines.iteration import _always_prefill
before = numba.config.CACHE_DIR, caching.IndexDataCacheFile
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: compile_rule(_always_prefill), range(200)))
assert (numba.config.CACHE_DIR, caching.IndexDataCacheFile) == before
"""


def test_threads_that_compile_leave_the_settings_of_numba_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "LLMSCHED_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
