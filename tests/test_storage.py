"""The cache folder of users with odd homes: none, a relative one, one that cannot be written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest

from llmsched_env import storage
from llmsched_env.errors import PathError

ROOT = Path(__file__).parents[1]
VARIABLE = storage.CACHE_VARIABLE

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="user ids are POSIX's")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    storage.cache_dir.cache_clear()
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    yield
    storage.cache_dir.cache_clear()


@pytest.fixture
def open_folder():
    """A folder with a short path that any user can read: pytest's own are root's alone, and too deep for a socket."""
    with tempfile.TemporaryDirectory(prefix="own", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "temporary").mkdir()
        (folder / "temporary").chmod(0o777)
        yield folder


def run(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own that has nothing but this environment."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "TMPDIR": str(cwd / "temporary"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_relative_folder_stays_where_it_was_after_a_change_of_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "kept")
    found = storage.cache_dir()
    assert found == tmp_path / "kept"
    monkeypatch.chdir("elsewhere")
    assert storage.cache_dir().resolve() == found
    storage.cache_dir.cache_clear()  # as a process that is started now
    assert storage.cache_dir() == found
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_tilde_in_the_variable_is_the_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(VARIABLE, "~/kept")
    assert storage.cache_dir() == tmp_path / "home" / "kept"
    assert not (tmp_path / "~").exists()


def _no_home(*_: object) -> str:
    raise RuntimeError("could not determine the home directory")


@posix
@pytest.mark.parametrize("answer", [_no_home, lambda *_: "~/.cache/llmsched_env"], ids=["raises", "answers with ~"])
def test_without_a_home_the_cache_is_the_users_own_temporary_folder(tmp_path, monkeypatch, caplog, answer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_cache_dir", answer)
    found = storage.cache_dir()
    assert found == tmp_path / "temporary" / f"llmsched_env-{os.getuid()}"
    assert found.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "~").exists()
    assert re.search(r"no home folder for this user id\. Assign.* kept in .*Set LLMSCHED_CACHE_DIR to", caplog.text)
    storage.cache_dir.cache_clear()
    assert storage.cache_dir() == found, "the next process begins anew"


@posix
def test_what_others_could_write_is_not_taken_for_the_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_dir", _no_home)
    usual = tmp_path / "temporary" / f"llmsched_env-{os.getuid()}"
    usual.mkdir()
    usual.chmod(0o777)
    found = storage.cache_dir()
    assert found.parent == usual.parent
    assert found != usual
    usual.chmod(0o700)
    usual.rename(tmp_path / "somewhere")
    usual.symlink_to(tmp_path / "somewhere")
    storage.cache_dir.cache_clear()
    assert storage.cache_dir() not in (usual, found)


def test_no_folder_at_all_is_said_with_the_remedy(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(platformdirs, "user_cache_dir", _no_home)
    monkeypatch.setattr("tempfile.mkdtemp", full)
    monkeypatch.setattr("tempfile.gettempdir", full)
    with pytest.raises(PathError, match=r"no folder for a cache can be written .*: set LLMSCHED_CACHE_DIR to one"):
        storage.cache_dir()


BECOMES = """
import os
import platformdirs
from llmsched_env.storage import cache_dir  # while the libraries can still be read

platformdirs.user_cache_dir("any")
os.setgid(23456)
os.setuid(23456)
print(cache_dir())
"""


@posix
def test_a_user_id_without_a_home(open_folder):
    """As containers start it: no entry in the table of users, and no HOME."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    done = run(BECOMES, open_folder)
    assert done.stdout.strip() == str(open_folder / "temporary" / "llmsched_env-23456")
    assert "no home folder" in done.stderr
    assert sorted(path.name for path in open_folder.iterdir()) == ["temporary"]


WORKERS = """
import multiprocessing, sys
from pathlib import Path
from llmsched_env.storage import cache_dir

def folder(_):
    return str(cache_dir())

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        print(*pool.map(folder, range(2)))
        pool.close()
        pool.join()
"""


@posix
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("taken", [False, True], ids=["usual name", "name taken"])
def test_workers_leave_no_cache_of_their_own_behind(open_folder, method, taken):
    script, blocked = open_folder / "workers.py", open_folder / "a file"
    script.write_text(WORKERS)
    blocked.write_text("no folder can be made below it")
    temporary = open_folder / "temporary"
    usual = temporary / f"llmsched_env-{os.getuid()}"
    if taken:
        usual.write_text("")
    done = run(
        f"import runpy, sys; sys.argv = ['workers.py', {method!r}]; runpy.run_path('workers.py', run_name='__main__')",
        open_folder,
        LLMSCHED_CACHE_DIR=str(blocked / "cache"),
    )
    said = set(done.stdout.split())
    assert all(Path(path).parent == temporary for path in said)
    assert (usual in map(Path, said)) != taken
    assert [path.name for path in temporary.iterdir() if path.name.startswith("llmsched_env")] == [usual.name]


def test_a_tilde_in_a_path_is_the_home_and_no_folder_is_made_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.output_folder("~/results") == tmp_path / "home" / "results"
    with storage.write_whole("~/results/a.txt") as path:
        path.write_text("a")
    assert (tmp_path / "home" / "results" / "a.txt").read_text() == "a"
    assert not (tmp_path / "~").exists()
    with pytest.raises(PathError, match="~nobody-of-that-name/x begins with a home folder that is not known: write"):
        storage.user_path("~nobody-of-that-name/x")


@posix
@pytest.mark.parametrize("check", [storage.output_file, lambda path: storage.write_whole(path).__enter__()])
def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path, check):
    """Moving a file to /dev/null, as root may, would take it from every other program."""
    pipe, link, folder = tmp_path / "pipe", tmp_path / "link", tmp_path / "folder"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    folder.mkdir()
    for path in (pipe, link):
        with pytest.raises(PathError, match=f"cannot write {path}: it is a device or a pipe, and would be replaced"):
            check(path)
    with pytest.raises(PathError, match=r"it is a folder\. Give the path of a file"):
        check(folder)
    assert pipe.is_fifo()
    assert link.is_symlink()
