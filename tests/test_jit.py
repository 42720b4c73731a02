"""The compiled cache: what is damaged is compiled again, what is stale is not served."""

import importlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import llmsched_env
from llmsched_env import compiling, jit
from llmsched_env.compiling import STAGES
from llmsched_env.core.bitset import contains, words_needed
from llmsched_env.sources import ChangedSourceError

SCRIPT = """
import numpy as np
from llmsched_env.compiling import STAGES
STAGES["llmsched_env.core.reward"] = "rewards", "a second"
from llmsched_env.core.bitset import words_needed
from llmsched_env.core.rules import compile_rule
from llmsched_env.core.reward import charge
from llmsched_env.core.layout import SETUP, STATE, VIEW
view, state, setup = (np.zeros(1, kind) for kind in (VIEW, STATE, SETUP))
view[0].clock_ns = 7
setup[0].reward = REWARD
print(charge(view[0], state[0], setup[0]))
"""


def run(cache: Path, *, package: Path | None = None, reward: int = 1, errors: bool = False) -> str:
    environment = {**os.environ, "LLMSCHED_CACHE_DIR": str(cache)}
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("REWARD", str(reward))],
        env=environment, capture_output=True, text=True, check=False, cwd=package,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if errors else done.stdout.strip()


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
    text = config.read_text(encoding="utf-8")
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
        text = (copy / name).read_text(encoding="utf-8")
        assert old in text
        (copy / name).write_text(text.replace(old, new, 1))
    assert run(cache, package=copy.parent) == "7"
    assert sorted(cache.rglob("*.nbc")) == kept


def test_what_has_to_be_compiled_first_is_said_once(tmp_path):
    assert run(tmp_path, errors=True) == (
        "llmsched_env: compiling rewards for this machine: a second of one core, once; kept in "
        f"{tmp_path / 'compiled'}.\n"
    )
    assert run(tmp_path, errors=True) == ""


def test_stages_are_there():
    """Of what takes longer than seconds: a name that is misspelt would be silence."""
    for name in STAGES:
        module, _, last = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert callable(getattr(importlib.import_module(module), last)), name


def successor(x):
    return x + 1


def test_a_file_edited_since_it_was_imported_is_compiled_and_not_kept(monkeypatch):
    def edited(*_):
        raise ChangedSourceError("layout.py was edited since this process began.")

    monkeypatch.setattr(jit, "reachable_digest", edited)
    compiled = jit.jit(successor)
    assert compiled(64) == 65
    assert compiled.stats.cache_path is None


def made(answer):
    """Functions of one name and the same byte code, as of a factory."""
    if answer:
        return lambda view, parameters, memory: 1
    return lambda view, parameters, memory: 0


def holding(base):
    return lambda view: base(view) + 1


def test_functions_of_one_name_are_told_apart(monkeypatch):
    one, other = made(True), made(False)
    assert one.__code__.co_code == other.__code__.co_code
    folders = []
    monkeypatch.setattr(jit, "reachable_digest", lambda module, name, file=None: f"{module} {name}")
    for function in (one, other, holding(words_needed), holding(words_needed), holding(contains)):
        folders.append(jit._ByContent.from_function(function, __file__).get_cache_path())
    assert len(set(folders)) == 4
    assert folders[2] == folders[3]


def test_sets_among_the_constants_have_one_order():
    """Of strings it changes from process to process."""
    names = ["a", "b", "c", "d", "e", "f"]
    code = compile(f"x in {{{', '.join(map(repr, names))}}}", "", "eval")
    assert repr([repr(name) for name in names]) in [*jit._spelled_out(code)]


def test_who_waits_for_another_process_is_told_and_looks_again(tmp_path, capsys, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(compiling, "_told", set())
    found = []

    def wait():
        with compiling.compiling("llmsched_env.core.loops.step"):
            found.append(compiling.is_missing(str(tmp_path / "step.nbi")))
            found.append(compiling.is_missing(str(tmp_path / "callee.nbi")))

    with (tmp_path / "step.nbi.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        while not (said := capsys.readouterr().err) and thread.is_alive():
            time.sleep(0.01)
        assert thread.is_alive(), "it did not wait"
    thread.join()
    assert said == "llmsched_env: waiting for another process that compiles the simulator for this machine.\n"
    assert found == [True, False], "one lock, of the outermost function"
    compiling.wait_silently()
    monkeypatch.setattr(compiling, "_silent", False)


def test_the_time_that_compiling_takes(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(compiling, "time", SimpleNamespace(monotonic=lambda: next(now)))
    before = compiling.seconds_compiling()
    with compiling.compiling("a.b"):  # at 0
        assert compiling.seconds_compiling() == before + 1
        with compiling.compiling("a.callee"):
            pass
    assert compiling.seconds_compiling() == before + 2


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
        [sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr


RULE = """
from helper import LIMIT
from llmsched_env.core.rules import call_rule, compile_rule

def rule(view, parameters, memory):
    return 1 if view.idle > LIMIT else 0
"""

PLAYED = """
import numpy as np
import mine
from llmsched_env import Scenario
from llmsched_env.core.rules import CompiledRule, compile_rule
from llmsched_env.instances import instance
from llmsched_env.simulator import Simulator

simulator = Simulator(instance(Scenario(num_clients=5, num_requests=20, queue="shared"), 0))
simulator.run(CompiledRule(compile_rule(mine.rule), np.zeros(1), np.zeros(1, np.int64)))
print(simulator.view.prefills)
"""


def test_a_users_rule_is_never_stale(tmp_path):
    """What it reads may lie in files that nobody knows of."""
    (tmp_path / "mine.py").write_text(RULE)
    found = []
    for limit in (0, 3):
        (tmp_path / "helper.py").write_text(f"LIMIT = {limit}\n")
        done = subprocess.run(
            [sys.executable, "-B", "-c", PLAYED],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(int(done.stdout))
    assert found[0] > found[1]
