"""What build_engine.py makes of annotations: the declarations that Cython compiles with."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from build_engine import COMPILED, NotCompilableError, compiled_files, needed_files, pxd, write

ROOT = Path(__file__).parents[2]

CODES = """
DECODE = 0
STOP = -2
"""

BITS = """
import cython

def low(word: cython.ulonglong) -> cython.int:
    "The lowest bit."
    return word & 1
"""

HOLDER = """
from __future__ import annotations
import math
from typing import Any, NamedTuple
import cython
import numpy as np
from engine import bits, codes
from engine.base import Base, LIMIT, low as lowest

class Row(NamedTuple):
    slot: int

class Holder(Base):
    count: cython.longlong
    table: cython.int[:, ::1]
    base: Base
    share: float
    options: dict[str, int]
    anything: Any
    _hidden: cython.bint

    def __init__(self, count: int) -> None:
        self.count = count

    def add(self, by: cython.longlong = 1) -> cython.void:
        self.count += by

    def shown(self) -> str:
        return str(self.count)

class View:
    clock_ns: cython.longlong

def total(base: Base, weights: cython.double[::1]) -> cython.double:
    return weights[0]

def play(base: Base) -> int:
    return 1
"""

BASE = """
from __future__ import annotations
import cython

LIMIT = 3

class Base:
    size: cython.int

def low(word: cython.ulonglong) -> cython.int:
    return 1
"""


def written(folder: Path, **files: str) -> Path:
    """A package ``engine`` of these files."""
    package = folder / "engine"
    package.mkdir(exist_ok=True)
    for name, text in files.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    return package


def declarations(text: str) -> str:
    return text.partition("\n")[2]


def test_what_cython_is_told_of_a_module(tmp_path):
    package = written(tmp_path, codes=CODES, bits=BITS, base=BASE, holder=HOLDER)
    assert declarations(pxd(package / "holder.py", "engine")) == textwrap.dedent("""\
        cimport cython
        from libc cimport math
        from engine cimport bits, codes
        from engine.base cimport Base, low as lowest
        cdef class Holder(Base):
            cdef public long long count
            cdef public int[:, ::1] table
            cdef public Base base
            cdef public double share
            cdef public dict options
            cdef public object anything
            cdef bint _hidden
            @cython.final
            cdef inline void add(self, long long by=*) noexcept nogil
        cdef class View:
            cdef readonly long long clock_ns
        cdef double total(Base base, double[::1] weights) noexcept nogil
    """)


def test_a_method_that_a_class_of_another_file_redefines_is_not_final(tmp_path):
    above = BASE.replace("size: cython.int", "def act(self) -> cython.int: ...\n    def keep(self) -> cython.int: ...")
    below = "import cython\nfrom engine.base import Base\nclass Below(Base):\n    def act(self) -> cython.int: ...\n"
    package = written(tmp_path, base=above, below=below)
    for name in ("base", "below"):
        lines = pxd(package / f"{name}.py", "engine").splitlines()
        places = {line.split()[-3]: number for number, line in enumerate(lines) if "noexcept" in line}
        finals = [method for method, number in places.items() if lines[number - 1].strip() == "@cython.final"]
        assert finals == (["keep(self)"] if name == "base" else [])


def test_a_method_that_may_redefine_one_of_another_folder_is_not_final(tmp_path):
    """Cython refuses to let a method that is declared inline redefine another."""
    below = "import cython\nfrom engine.base import Base\nclass Below(Base):\n    def act(self) -> cython.int: ...\n"
    package = written(tmp_path, base=BASE, below=below)
    assert "@cython.final\n    cdef inline int act(" in pxd(package / "below.py", "engine")
    (tmp_path / "another").mkdir()
    (package / "below.py").rename(tmp_path / "another" / "below.py")
    declared = pxd(tmp_path / "another" / "below.py", "engine")
    assert "    cdef int act(" in declared
    assert "final" not in declared


def test_a_call_of_a_final_method_in_its_own_file_is_a_plain_one(tmp_path):
    pytest.importorskip("Cython")
    text = """
        import cython
        class Counter:
            count: cython.int
            def add(self, by: cython.int) -> cython.void:
                self.count += by
            def add_twice(self) -> cython.void:
                self.add(1)
                self.add(1)
        """
    package = written(tmp_path, __init__="", counter=textwrap.dedent(text))
    write([package / "counter.py"], tmp_path)
    command = [sys.executable, "-m", "cython", "-3", "--module-name", "engine.counter", "engine/counter.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled = (package / "counter.c").read_text(encoding="utf-8")
    assert compiled.count("Counter_add(__pyx_v_self, 1)") == 2
    assert "->add(" not in compiled, "it is looked up in a table of the object's"


def test_constants_are_an_enum_and_small_functions_are_inline(tmp_path):
    package = written(tmp_path, codes=CODES, bits=BITS)
    assert declarations(pxd(package / "codes.py", "engine")) == "cdef enum:\n    DECODE = 0\n    STOP = -2\n"
    inline = declarations(pxd(package / "bits.py", "engine")).splitlines()
    assert inline[:2] == ["cimport cython", "cdef inline int low(unsigned long long word) noexcept nogil:"]
    assert inline[-1] == "    return word & 1"


def test_declarations_are_not_compiled_and_modules_are(tmp_path):
    package = written(tmp_path, codes=CODES, bits=BITS, base=BASE, holder=HOLDER)
    modules = write(sorted(package.glob("*.py")), tmp_path)
    assert modules == {"engine.base": package / "base.py", "engine.holder": package / "holder.py"}
    needed = [file.name for file in needed_files(package / "holder.py", tmp_path)]
    assert needed == ["base.pxd", "bits.pxd", "codes.pxd", "holder.pxd", "holder.py"]
    before = (package / "base.pxd").stat().st_mtime_ns
    write([package / "base.py"], tmp_path)
    assert (package / "base.pxd").stat().st_mtime_ns == before, "what has not changed was written again"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import cython\nclass A:\n    x: cython.complex\n", r"bad\.py:3: cython\.complex is none of longlong, "),
        ("import cython\ndef f(x) -> cython.int:\n    return 1\n", r"bad\.py:2: f returns a C type, so x needs an ann"),
        ("import cython\ndef f(*x) -> cython.int:\n    return 1\n", r"bad\.py:2: f returns a C type, so it takes posi"),
        ("HALF = 0.5\n", r"bad\.py: HALF = 0\.5 is no integer of 32 bits"),
        ("FAR = 2**31\n", r"bad\.py: FAR = 2147483648 is no integer of 32 bits"),
    ],
)
def test_what_has_no_c_form_is_named(tmp_path, text, words):
    package = written(tmp_path, bad=text)
    with pytest.raises(NotCompilableError, match=words):
        pxd(package / "bad.py", "engine")


def test_every_file_of_the_engine_has_a_c_form():
    files = compiled_files(ROOT)
    assert len({file.parent for file in files}) == len(COMPILED)
    for file in files:
        assert pxd(file, ".".join(file.parent.relative_to(ROOT).parts)).startswith("# Written by build_engine.py")


# ---- what runs
