"""The loops of `kernels.py`, compiled as the engine is."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from llmsched_env.extensions import compiled as engine_compiled
from llmsched_env.sources import package_digest
from llmsched_env.storage import cache_dir

__all__ = ["compiled"]

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(__file__).with_name("kernels.py")
CYTHONIZE = """
from Cython.Build.Cythonize import main
from Cython.Compiler import Options
Options.buffer_max_dims = 3
main()
"""
"""The engine's classes are built so (setup.py)."""
DIRECTIVES = ("boundscheck=False", "initializedcheck=False", "wraparound=False", "cdivision=True")


@cache
def compiled() -> ModuleType:
    """`kernels.py`, compiled in the cache folder against the engine; as it stands where that runs uncompiled."""
    if not engine_compiled:
        return _load(SOURCE)
    made_of = hashlib.sha256(SOURCE.read_bytes() + package_digest().encode()).hexdigest()[:16]
    folder = cache_dir() / "benchmarks" / made_of
    built = folder / f"kernels{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    if not built.exists():
        print("compiling the loops of the benchmarks: some seconds, once.", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SOURCE, folder / SOURCE.name)
        (folder / "kernels.pxd").write_text(_declarations(), encoding="utf-8")
        options = [part for directive in DIRECTIVES for part in ("-X", directive)]
        subprocess.run(
            [sys.executable, "-c", CYTHONIZE, "-3", "-i", "-q", *options, SOURCE.name],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "CFLAGS": "-O3 -ffp-contract=off -w",
            },
            check=True,
        )
    return _load(built)


def _declarations() -> str:
    sys.path.insert(0, str(ROOT))
    try:
        from build_engine import pxd
    finally:
        sys.path.remove(str(ROOT))
    return pxd(SOURCE, "llmsched_env.engine")


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernels", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
