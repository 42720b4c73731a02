"""Whether the engine runs compiled: as the extension modules that were built from its files, or as those files.

All of it runs compiled or nothing does, since compiled and uncompiled classes do not mix. It runs uncompiled where
``LLMSCHED_UNCOMPILED=1`` asks for it, where a file was edited after it was compiled, and where an extension module is
missing, damaged or made for something else; but for the first, one line on stderr says so. Results are the same.

``python -m llmsched_env.extensions`` prints which it is; its exit status is 1 where it should be compiled (again).
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import sys
import zlib
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["compiled", "describe"]

FOLDER = Path(__file__).parent
PACKAGE = "llmsched_env"
RECORD = f"_compiled{EXTENSION_SUFFIXES[0]}.json"
"""Written by setup.py: checksums (CRC-32) of the files that were compiled and of the extension modules made of them."""

DAMAGED = f"the record of its build ({RECORD}) is damaged"

FIELDS = {"problem", "seconds", "patterns", "sources", "extensions"}

REMEDY = "With a C compiler and Python's headers, 'make engine' in a checkout, or installing again, compiles it."


class _Uncompiled(MetaPathFinder):
    """Finds the .py of a module of this package, though an extension module lies beside it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is None or not name.startswith(f"{PACKAGE}."):
            return None
        for folder in path:
            file = Path(folder, f"{name.rpartition('.')[2]}.py")
            if file.is_file():
                return spec_from_file_location(name, file, loader=SourceFileLoader(name, str(file)))
        return None


def _checksum(name: str) -> int | None:
    try:
        return zlib.crc32(FOLDER.joinpath(name).read_bytes())
    except OSError:
        return None


def _record() -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(FOLDER.joinpath(RECORD).read_text(encoding="utf-8"))
    except OSError:
        return {"problem": f"it was not built for this Python (there is no {RECORD})"}
    except ValueError:
        return {"problem": DAMAGED}
    return record if isinstance(record, dict) and record.keys() >= FIELDS else {"problem": DAMAGED}


def _problem(record: dict[str, Any]) -> str:
    """Why the extension modules cannot be used; empty where they can."""
    if record["problem"]:
        return str(record["problem"])
    try:
        return _difference(record)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return DAMAGED


def _difference(record: dict[str, Any]) -> str:
    """What is not as it was built; empty where all is."""
    if not record["patterns"] or not record["sources"] or not record["extensions"]:
        return DAMAGED
    present = {
        file.relative_to(FOLDER).as_posix()
        for pattern in record["patterns"]
        for file in FOLDER.glob(pattern)
        if file.name != "__init__.py"
    }
    for name in sorted(present | set(record["sources"])):
        if _checksum(name) != record["sources"].get(name):
            return f"{name} has changed since it was compiled"
    for name, checksum in record["extensions"].items():
        if _checksum(name) != checksum:
            return f"the extension module {name} is missing or damaged"
    try:
        importlib.import_module(f"{PACKAGE}._shared")
    except ImportError as error:
        return f"its extension modules cannot be loaded ({error})"
    return ""


_asked = os.environ.get("LLMSCHED_UNCOMPILED", "").strip().lower() not in {"", "0", "false", "no", "off"}
_built = _record()
_why = "LLMSCHED_UNCOMPILED asks for it" if _asked else _problem(_built)

compiled = not _why
"""Whether the modules of the engine are extension modules in this process."""


def describe() -> str:
    """One line: how the engine runs, why, and what helps."""
    if compiled:
        return f"{len(_built['extensions'])} modules of the engine are compiled (in {_built['seconds']} s)."
    if _asked:
        return f"the engine runs uncompiled: {_why}."
    remedy = "Mend that, then 'make engine'." if re.search(r"\.p(y|xd):\d+:\d+: ", _why) else REMEDY
    return f"the engine runs uncompiled, hundreds of times slower: {_why}. {remedy}"


if not compiled and not any(isinstance(finder, _Uncompiled) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Uncompiled())
    if not _asked and __name__ != "__main__" and multiprocessing.current_process().name == "MainProcess":
        print(f"llmsched_env: {describe()}", file=sys.stderr, flush=True)

if __name__ == "__main__":
    print(f"llmsched_env: {describe()}")
    sys.exit(0 if compiled or _asked else 1)
