"""How the engine is compiled: what runs where machine code is stale, damaged or missing, and how it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from build_engine import compiled_files
from llmsched_env import extensions

ROOT = Path(__file__).parents[2]
NO_COMPILER = "no-such-compiler"

LOADED = "llmsched_env.offline.kernels.grouping"

SHOWN = f"""
import importlib, sys
module = importlib.import_module("{LOADED}")
from llmsched_env.extensions import compiled
from llmsched_env.offline import kernels
assert kernels.compiled is compiled
print(compiled, module.__file__.rpartition(".")[2] != "py", module.least_held.__module__)
"""

POOLED = f"""
import multiprocessing
from {LOADED} import least_held

def place(function):
    import sys
    return sys.modules[function.__module__].__file__.rpartition(".")[2]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(place, (least_held,)))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with what was compiled here, and little else."""
    if not extensions.compiled:
        if shutil.which(os.environ.get("CC", "cc").split()[0]) is None:
            pytest.skip("there is no C compiler")
        pytest.fail(f"{extensions.describe()} Without that nothing is tested here.")
    here, package = Path(extensions.__file__).parent, tmp_path / "llmsched_env"
    shutil.copytree(here / "offline" / "kernels", package / "offline" / "kernels")
    shutil.copytree(here / "engine", package / "engine")
    for file in (here / "extensions.py", *here.glob("_*")):
        if file.is_file() and file.name != "__init__.py":
            shutil.copy(file, package)
    for folder in (package, package / "offline"):
        (folder / "__init__.py").touch()
    return package


def run(package: Path, code: str, **environment: str) -> tuple[str, list[str]]:
    """What it prints, and the lines on stderr."""
    script = package.parent / "script.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(package.parent), "LLMSCHED_UNCOMPILED": "", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.splitlines()


def extension(package: Path) -> Path:
    return next(file for file in (package / "offline" / "kernels").glob("grouping.*") if file.suffix in {".so", ".pyd"})


def test_what_was_compiled_runs(copy):
    assert run(copy, SHOWN) == (f"True True {LOADED}", [])


def test_uncompiled_where_it_is_asked_for(copy):
    assert run(copy, SHOWN, LLMSCHED_UNCOMPILED="1") == (f"False False {LOADED}", [])
    assert run(copy, SHOWN, LLMSCHED_UNCOMPILED="0") == (f"True True {LOADED}", [])


def test_processes_and_pickles_find_the_same_form(copy):
    assert run(copy, POOLED)[0] in {"so", "pyd"}
    assert run(copy, POOLED, LLMSCHED_UNCOMPILED="1") == ("py", [])
    (copy / "engine" / "codes.py").write_text("A = 1\n", encoding="utf-8")
    shown, lines = run(copy, POOLED)
    assert (shown, len(lines)) == ("py", 1), "one line, by the process that started the others"


def falls_back(package: Path, words: str) -> None:
    shown, lines = run(package, SHOWN)
    assert shown == f"False False {LOADED}"
    assert len(lines) == 1
    assert lines[0].startswith(f"llmsched_env: the engine runs uncompiled, hundreds of times slower: {words}")
    assert "'make engine'" in lines[0]


@pytest.mark.parametrize("name", ["offline/kernels/grouping.py", "offline/kernels/xorshift.py"])
def test_edited_files_run_as_they_are(copy, name):
    with (copy / name).open("a", encoding="utf-8") as file:
        file.write("\n# edited\n")
    falls_back(copy, f"{name} has changed since it was compiled")


def test_new_and_lost_files_are_changes_too(copy):
    (copy / "engine" / "another.py").touch()
    falls_back(copy, "engine/another.py has changed since it was compiled")
    (copy / "engine" / "another.py").unlink()
    (copy / "offline" / "kernels" / "xorshift.py").unlink()
    shown = run(copy, "import llmsched_env.extensions as e; print(e.compiled)")
    assert shown[0] == "False"
    assert "xorshift.py has changed" in shown[1][0]


@pytest.mark.parametrize("damage", ["truncated", "one bit", "missing"])
def test_damaged_machine_code_is_not_run(copy, damage):
    file = extension(copy)
    data = bytearray(file.read_bytes())
    file.unlink()
    if damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "one bit":
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    falls_back(copy, f"the extension module {file.relative_to(copy).as_posix()} is missing or damaged")


def test_machine_code_for_another_machine_is_not_run(copy):
    """Whole, as its record says, but nothing that this Python can load."""
    import json
    import zlib

    shared = next(copy.glob("_shared*"))
    shared.unlink()
    shared.write_bytes(b"\x7fELF of something else")
    record = copy / extensions.RECORD
    told = json.loads(record.read_text(encoding="utf-8"))
    told["extensions"][shared.name] = zlib.crc32(shared.read_bytes())
    record.write_text(json.dumps(told), encoding="utf-8")
    falls_back(copy, "its extension modules cannot be loaded (")


def test_without_a_record_nothing_compiled_is_trusted(copy):
    copy.joinpath(extensions.RECORD).unlink()
    falls_back(copy, "it was not built for this Python")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "null",
        "[]",
        "3",
        {"patterns": 3},
        {"sources": 3},
        {"extensions": []},
        {"extensions": {}},
        {"patterns": ["/x"]},
    ],
)
def test_a_damaged_record_is_not_trusted(copy, text):
    record = copy / extensions.RECORD
    if isinstance(text, dict):
        text = json.dumps(json.loads(record.read_text(encoding="utf-8")) | text)
    record.write_text(text, encoding="utf-8")
    falls_back(copy, "the record of its build")


def test_what_the_command_says(copy):
    command = [sys.executable, "-m", "llmsched_env.extensions"]
    environment = {**os.environ, "PYTHONPATH": str(copy.parent), "LLMSCHED_UNCOMPILED": ""}

    def said(**more: str) -> tuple[int, str, str]:
        done = subprocess.run(
            command, env={**environment, **more}, cwd=copy.parent, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    status, shown, _ = said()
    assert status == 0
    assert shown.startswith("llmsched_env: ")
    assert "modules of the engine are compiled (in " in shown
    assert said(LLMSCHED_UNCOMPILED="1")[0] == 0
    extension(copy).unlink()
    status, shown, other = said()
    assert (status, other) == (1, "")
    assert "is missing or damaged" in shown


# ---- what an install makes of it

SOURCES = ["llmsched_env", "baselines", "agents", "studies"]
FILES = ["pyproject.toml", "setup.py", "build_engine.py", "MANIFEST.in", "README.md", "LICENSE"]

ANYWHERE = "from llmsched_env.extensions import compiled; import llmsched_env.offline; print(compiled)"


class Place:
    """A checkout and an environment of their own, which sees the packages of this one."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        ignored = shutil.ignore_patterns("*.so", "*.pyd", "*.pxd", "_compiled*", "__pycache__", "*.egg-info")
        for name in SOURCES:
            shutil.copytree(ROOT / name, self.checkout / name, ignore=ignored)
        for name in FILES:
            shutil.copy(ROOT / name, self.checkout)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        windows = sys.platform == "win32"
        self.python = str(folder / "venv" / ("Scripts" if windows else "bin") / ("python.exe" if windows else "python"))
        site = next((folder / "venv").rglob("site-packages"))
        (site / "of_the_tests.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p), encoding="utf-8")

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        # make names pip's constraints relative to the checkout that it runs in.
        left_out = {"PYTHONPATH", "LLMSCHED_UNCOMPILED", "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"}
        clean = {name: value for name, value in os.environ.items() if name not in left_out}
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.checkout.parent, env={**clean, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def install(self, *how: str, **environment: str) -> subprocess.CompletedProcess[str]:
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        return self.call("-m", "pip", "install", *options, *how, str(self.checkout), **environment)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("install"))


def without_headers(folder: Path) -> str:
    """A compiler that does not find Python.h."""
    script = folder / "cc"
    script.write_text(
        'for a; do shift; case "$a" in -I*) ;; *) set -- "$@" "$a" ;; esac; done; exec cc "$@"\n', encoding="utf-8"
    )
    return f"sh {script}"


def without_cython(folder: Path) -> str:
    """A folder that hides Cython from the build."""
    for name in ("Cython", "cython"):
        (folder / f"{name}.py").write_text("raise ImportError(\"No module named 'Cython'\")\n", encoding="utf-8")
    return str(folder)


@pytest.mark.install
@pytest.mark.parametrize("missing", ["a compiler", "headers", "Cython"])
def test_an_install_succeeds_without(place, tmp_path, missing):
    changes = {
        "a compiler": lambda: {"CC": NO_COMPILER},
        "headers": lambda: {"CC": without_headers(tmp_path)},
        "Cython": lambda: {"PYTHONPATH": without_cython(tmp_path)},
    }[missing]()
    words = {"a compiler": NO_COMPILER, "headers": "Python.h", "Cython": "No module named"}[missing]
    done = place.install("-e", **changes)
    assert done.returncode == 0, done.stderr
    shown = place.call("-c", ANYWHERE)
    assert shown.stdout == "False\n", shown.stderr
    assert "runs uncompiled" in shown.stderr
    assert words in shown.stderr
    assert len(shown.stderr.splitlines()) == 1
    assert not list((place.checkout / "llmsched_env").rglob("*.so"))
    assert place.install("-e", LLMSCHED_REQUIRE_COMPILED="1", **changes).returncode != 0


@pytest.mark.install
def test_an_install_after_a_failed_one_compiles(place, tmp_path):
    assert place.install("-e", CC=NO_COMPILER).returncode == 0
    assert place.call("-c", ANYWHERE).stdout == "False\n"
    done = place.install("-e", LLMSCHED_REQUIRE_COMPILED="1")
    assert done.returncode == 0, done.stderr
    shown = place.call("-c", ANYWHERE)
    assert (shown.stdout, shown.stderr) == ("True\n", "")
    # Rules of users' own are compiled against it, wherever they lie.
    for name in ("my_rule.py", "my_rule.pxd"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    done = place.call("-m", "Cython.Build.Cythonize", "-3", "-i", "-q", str(tmp_path / "my_rule.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    shown = place.call(
        "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import my_rule; print(my_rule.__file__)"
    )
    assert not shown.stdout.endswith(".py\n"), shown.stderr
    # What was compiled is gone when what replaces it cannot be.
    (place.checkout / "llmsched_env" / "offline" / "kernels" / "another.py").write_text("import cython\nx = y = 1\n")
    assert place.install("-e", CC=NO_COMPILER).returncode == 0
    assert not list((place.checkout / "llmsched_env").rglob("*.so"))
    (place.checkout / "llmsched_env" / "offline" / "kernels" / "another.py").unlink()


@pytest.mark.install
def test_what_cython_refuses_is_said_with_its_place(place):
    file = place.checkout / "llmsched_env" / "engine" / "noise.py"
    before = file.read_text(encoding="utf-8")
    file.write_text(
        before.replace("        return ns if", '        extra = {"a": ns}\n        return ns if', 1), encoding="utf-8"
    )
    assert place.install("-e").returncode == 0
    shown = place.call("-c", ANYWHERE).stderr
    assert "it could not be compiled (llmsched_env/engine/noise.py:" in shown
    assert "Mend that, then 'make engine'" in shown
    assert len(shown.splitlines()) == 1
    file.write_text(before, encoding="utf-8")


@pytest.mark.install
def test_a_wheel_has_sources_declarations_and_machine_code(place, tmp_path):
    done = place.call(
        "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(place.checkout),
        LLMSCHED_REQUIRE_COMPILED="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "none-any" not in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in compiled_files(ROOT):
        name = file.relative_to(ROOT).as_posix()
        assert {name, f"{name[:-3]}.pxd"} <= names
    for file in (ROOT / "baselines" / "leaderboard" / "entries").rglob("*.*"):
        assert f"llmsched_env/{file.relative_to(ROOT).as_posix()}" in names
    kinds = [name for name in names if name.startswith("llmsched_env/offline/kernels/grouping.")]
    assert len(kinds) == 3
    place.call("-m", "pip", "uninstall", "--quiet", "-y", "llmsched-env")
    assert place.call("-m", "pip", "install", "--quiet", "--no-deps", str(wheel)).returncode == 0
    for uncompiled, shown in (("", "True\n"), ("1", "False\n")):
        done = place.call("-c", ANYWHERE, LLMSCHED_UNCOMPILED=uncompiled)
        assert (done.stdout, done.stderr) == (shown, "")


@pytest.mark.install
def test_installed_it_takes_one_name_and_gets_on_with_other_packages(place, tmp_path):
    assert place.install().returncode == 0
    for name in ("agents", "baselines", "studies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True\n", encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import agents, baselines, studies\n"
        "from llmsched_env.agents import load_agent\n"
        "from llmsched_env.baselines import make_policy\n"
        "import llmsched_env.studies.registry\n"
        "print(agents.mine, baselines.mine, studies.mine, load_agent('gsm8k').name, make_policy('hybrid').name)\n"
    )
    done = place.call("-c", code)
    assert (done.stdout, done.stderr) == ("True True True gsm8k hybrid\n", "")
    done = place.call("-c", "import agents")
    assert "No module named 'agents'" in done.stderr
    command = Path(place.python).with_name("llmsched" + ".exe" * (sys.platform == "win32"))
    done = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("llmsched 0."), done.stderr


@pytest.mark.install
def test_a_source_distribution_can_be_built(place, tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)],
        cwd=place.checkout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    done = place.call("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", str(archive), CC=NO_COMPILER)
    assert done.returncode == 0, done.stderr
