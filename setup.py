"""How the engine is compiled when the package is built; everything else is in pyproject.toml.

Without a compiler, Python's headers or Cython the package is built all the same, and runs uncompiled. What went wrong
is in the record that ``llmsched_env/extensions.py`` reads, since pip shows nothing of a build that succeeds.

``LLMSCHED_REQUIRE_COMPILED=1`` makes it an error, for wheels. ``LLMSCHED_SANITIZE=1`` compiles with all checks.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))
from build_engine import COMPILED, compiled_files, needed_files, write

ROOT = Path(__file__).parent.resolve()
PACKAGE = "llmsched_env"
SHARED = f"{PACKAGE}._shared"
"""What Cython writes for every module that has memoryviews, compiled once instead."""

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
RECORD = f"_compiled{SUFFIX}.json"
BUILT = ROOT / "build" / "engine"
LOG = BUILT / "log.txt"

SANITIZE = os.environ.get("LLMSCHED_SANITIZE") == "1"
REQUIRED = SANITIZE or os.environ.get("LLMSCHED_REQUIRE_COMPILED") == "1"

# No nonecheck: it refuses `a.b.c += 1` where Python's lock is not held. A field that is None is an error uncompiled.
DIRECTIVES = {
    "boundscheck": SANITIZE,
    "initializedcheck": SANITIZE,
    "wraparound": False,
    "cdivision": True,
}

PICKLED = ("rule", "rules", "plans", "network")
"""Files of the engine whose classes are pickled and copied as Cython does it. Where nobody needs that it is left out,
which saves a tenth of the compiler's time."""

# A memoryview then takes 88 bytes of its object instead of 208, and fields of many copies fit into a near cache. No
# array here has more than two dimensions. View and Rule have no arrays, so users' rules compile as they are.
CYTHON = """
import json
import sys
from Cython.Compiler import Options
from Cython.Compiler.Main import main
Options.buffer_max_dims = 3
for line in sys.stdin:
    sys.argv = ["cython", *json.loads(line)]
    try:
        main(command_line=1)
        code = 0
    except SystemExit as end:
        code = end.code
    print(code or 0, flush=True)
"""

# No fused multiply-add: sums are the same to the bit on every machine, compiled or not.
UNIX_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-w"]
SANITIZE_FLAGS = ["-O1", "-g", "-ffp-contract=off", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WINDOWS_FLAGS = ["/O2", "/fp:precise"]


def checksum(file: Path) -> int:
    """CRC-32, which takes a millisecond for all files together whenever the engine is imported."""
    return zlib.crc32(file.read_bytes())


class Cython:
    """A process that runs Cython for one module after another: most of its time for a single one is its start."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CYTHON], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments: list[str]) -> None:
        """Run it with these arguments.

        Raises:
            RuntimeError: it failed, and has said why on stderr.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as where Cython is not installed
            self._process.stdin.write(json.dumps(arguments) + "\n")
            self._process.stdin.flush()
        if self._process.stdout.readline().strip() != "0":
            raise RuntimeError(f"Cython failed: {' '.join(arguments)}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class BuildEngine(build_ext):
    """Compiles all of the engine or, where something is missing, nothing of it."""

    _failed = False
    _idle: list[Cython]

    def finalize_options(self) -> None:
        """Use all cores."""
        super().finalize_options()
        if self.parallel is None:
            self.parallel = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def run(self) -> None:
        """Compile, and write the record."""
        started, problem = time.monotonic(), ""
        folder = ROOT if self.inplace else Path(self.build_lib)
        BUILT.mkdir(parents=True, exist_ok=True)
        try:
            with self._logged():
                super().run()
        except Exception as error:
            if REQUIRED:
                raise
            problem = self._reason(error)
            self.extensions = []
        self._record(folder, problem, time.monotonic() - started)
        if folder != ROOT:
            for file in compiled_files():
                declared = file.with_suffix(".pxd")
                if declared.exists():
                    shutil.copyfile(declared, folder / declared.relative_to(ROOT))

    def build_extensions(self) -> None:
        """Compile with the options of the compiler at hand."""
        for extension in self.extensions:
            windows = self.compiler.compiler_type == "msvc"
            extension.extra_compile_args = WINDOWS_FLAGS if windows else SANITIZE_FLAGS if SANITIZE else UNIX_FLAGS
            extension.extra_link_args = SANITIZE_FLAGS[-2:] if SANITIZE else []
        self._idle = []
        try:
            super().build_extensions()
        finally:
            for cython in self._idle:
                cython.close()

    def build_extension(self, ext: Extension) -> None:
        """Compile one module, unless the same has been compiled here before. Several run at the same time."""
        if self._failed:
            return
        try:
            self._build(ext)
        except Exception:
            self._failed = True
            raise

    def _build(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        built = BUILT / f"{ext.name}.{self._key(ext)}{SUFFIX}"
        if not built.exists():
            source = BUILT / f"{ext.name}.c"
            self._cython(ext.name, source)
            ext.sources = [str(source.relative_to(ROOT))]
            super().build_extension(ext)
            for old in BUILT.glob(f"{ext.name}.*{SUFFIX}"):
                old.unlink()
            shutil.copyfile(target, built.with_suffix(".part"))
            built.with_suffix(".part").replace(built)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copyfile(built, target)

    def _cython(self, name: str, target: Path) -> None:
        arguments = ["-3", "--module-name", name]
        if name == SHARED:
            arguments += [f"--generate-shared={target}"]
        else:
            directives = {**DIRECTIVES, "auto_pickle": MODULES[name].stem in PICKLED}
            arguments += [f"--shared={SHARED}", *(f"-X{name}={on}" for name, on in directives.items())]
            arguments += ["-o", str(target), str(MODULES[name].relative_to(ROOT))]
        try:
            cython = self._idle.pop()
        except IndexError:  # as many as threads
            cython = Cython()
        try:
            cython.run(arguments)
        finally:
            self._idle.append(cython)

    def _key(self, ext: Extension) -> str:
        import Cython

        compiler: Any = self.compiler
        made_of: list[object] = [
            Cython.__version__,
            sys.version,
            DIRECTIVES,
            PICKLED,
            CYTHON,
            ext.extra_compile_args,
            ext.extra_link_args,
        ]
        made_of += [getattr(compiler, "compiler_so", ""), getattr(compiler, "linker_so", "")]
        if ext.name in MODULES:
            made_of += [(file.name, file.read_text(encoding="utf-8")) for file in needed_files(MODULES[ext.name], ROOT)]
        return hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]

    def _record(self, folder: Path, problem: str, seconds: float) -> None:
        """What was compiled from what, for :mod:`llmsched_env.extensions`; and no module of an earlier build stays."""
        built = {ext.name: folder.joinpath(*ext.name.split(".")).with_suffix(SUFFIX) for ext in self.extensions}
        for place in {folder / PACKAGE, *(folder / file.parent.relative_to(ROOT) for file in compiled_files())}:
            for old in set(place.glob(f"*{SUFFIX}")) - set(built.values()):
                old.unlink()
        record = {
            "problem": problem,
            "seconds": round(seconds, 1),
            "patterns": [pattern.removeprefix(f"{PACKAGE}/") for pattern in COMPILED],
            "sources": {file.relative_to(ROOT / PACKAGE).as_posix(): checksum(file) for file in compiled_files()},
            "extensions": {file.relative_to(folder / PACKAGE).as_posix(): checksum(file) for file in built.values()},
        }
        target = folder / PACKAGE / RECORD
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(record, indent=1), encoding="utf-8")

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """What is printed, by the compiler too, goes to a file first, which says what went wrong."""
        sys.stdout.flush()
        sys.stderr.flush()
        before = os.dup(1), os.dup(2)
        with LOG.open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, file in enumerate(before, 1):
                    os.dup2(file, number)
                    os.close(file)
                print(LOG.read_text(encoding="utf-8", errors="replace"), flush=True)

    @staticmethod
    def _reason(error: Exception) -> str:
        """The first error of the compiler, else the exception."""
        lines = LOG.read_text(encoding="utf-8", errors="replace").splitlines()
        told = r"^[^ :]+\.p(y|xd):\d+:\d+: |\berror\b|No module named"
        found = next((line for line in lines if re.search(told, line)), str(error))
        shown = re.sub(r"\s+", " ", found).strip()[:300]
        return f"it could not be compiled ({shown}; all of it is in {LOG.relative_to(ROOT)})"


MODULES = write(compiled_files(), ROOT)
BY_SIZE = sorted(MODULES, key=lambda name: -MODULES[name].stat().st_size)

setup(
    ext_modules=[Extension(name, []) for name in (SHARED, *BY_SIZE)],
    cmdclass={"build_ext": BuildEngine},
)
