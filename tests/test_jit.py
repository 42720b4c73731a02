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


def test_an_edit_that_compiled_code_cannot_reach_costs_nothing(tmp_path):
    import shutil

    cache, copy = tmp_path / "cache", tmp_path / "elsewhere" / "llmsched_env"
    assert run(cache) == "7"
    kept = sorted(cache.rglob("*.nbc"))
    assert kept
    shutil.copytree(Path(llmsched_env.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in (
        ("errors.py", '"""', '"""Edited. '),  # a docstring
        ("core/reward.py", "\n@jit", "\n\n# Why.\n@jit"),  # a comment in the compiled file, and other line numbers
        ("config.py", "is not a whole number", "is no integer"),  # a message in a file that it reads a constant of
    ):
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new, 1))
    assert run(cache, package=copy.parent) == "7"
    assert sorted(cache.rglob("*.nbc")) == kept


def test_what_has_to_be_compiled_first_is_said_once(monkeypatch, capsys):
    from llmsched_env import jit

    monkeypatch.setattr(jit, "_announced", set())

    class Dispatcher:
        class _cache:  # noqa: N801
            @staticmethod
            def load_overload(signature, target):
                return signature

        class py_func:  # noqa: N801
            __module__ = "llmsched_env.core.loops"

    for signature, lines in ((1, 0), (None, 1), (None, 0)):
        dispatcher = Dispatcher()
        dispatcher._cache = Dispatcher._cache()
        jit._announce_compilation(dispatcher)
        assert dispatcher._cache.load_overload(signature, None) == signature
        assert capsys.readouterr().err.count("compiling the simulator") == lines


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
