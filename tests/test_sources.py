"""What a function is made of: whatever it can reach changes its digest, however it is reached; prose does not."""

from __future__ import annotations

import os

import pytest

from llmsched_env import sources
from llmsched_env.sources import ChangedSourceError, reachable_digest

FUNCTION = "def f(x):\n    return x + {}\n"

CASES = {
    # How what is edited is reached: the files, and the edit of one of them.
    "itself": ({"a": FUNCTION.format(1)}, ("a", "1", "2")),
    "its decorator": ({"a": "from m import d\n@d(1)\n" + FUNCTION.format(1)}, ("a", "d(1)", "d(2)")),
    "a default argument": ({"a": "N = 1\ndef f(x=N):\n    return x\n"}, ("a", "N = 1", "N = 2")),
    "a constant": ({"a": "N = 1\n" + FUNCTION.format("N")}, ("a", "N = 1", "N = 2")),
    "a constant with a type": ({"a": "N: int = 1\n" + FUNCTION.format("N")}, ("a", "= 1", "= 2")),
    "a constant of a constant": ({"a": "M = 1\nN = M\n" + FUNCTION.format("N")}, ("a", "M = 1", "M = 2")),
    "one of two": ({"a": "M, N = 1, 5\n" + FUNCTION.format("N")}, ("a", "5", "6")),
    "a walrus": ({"a": "M = (N := 1) + 2\n" + FUNCTION.format("N")}, ("a", ":= 1", ":= 2")),
    "an augmented constant": ({"a": "N = 1\nN += 1\n" + FUNCTION.format("N")}, ("a", "+= 1", "+= 2")),
    "a loop": ({"a": "for N in (1, 5):\n    pass\n" + FUNCTION.format("N")}, ("a", "5", "6")),
    "a table that a loop fills": (
        {"a": "T = {}\nfor i in (1, 5):\n    T[i] = i\nN = len(T)\n" + FUNCTION.format("N")}, ("a", "5", "6"),
    ),
    "a table with an entry": ({"a": "T = {}\nT['x'] = 1\n" + FUNCTION.format("T['x']")}, ("a", "= 1", "= 2")),
    "a table that is updated": ({"a": "T = {}\nT.update(x=1)\n" + FUNCTION.format("T['x']")}, ("a", "x=1", "x=2")),
    "a class attribute": ({"a": "class C:\n    n = 1\n" + FUNCTION.format("C.n")}, ("a", "n = 1", "n = 2")),
    "a class attribute set later": (
        {"a": "class C:\n    pass\nC.n = 1\n" + FUNCTION.format("C.n")}, ("a", "C.n = 1", "C.n = 2"),
    ),
    "a base class": (
        {"a": "class B:\n    n = 1\nclass C(B):\n    pass\n" + FUNCTION.format("C.n")}, ("a", "n = 1", "n = 2"),
    ),
    "code beside a docstring": ({"a": "class C: 'Said.'; n = 1\n" + FUNCTION.format("C.n")}, ("a", "n = 1", "n = 2")),
    "what looks like a comment": ({"a": 'S = """\n# 1\n"""\n' + FUNCTION.format("len(S)")}, ("a", "# 1", "# 12")),
    "a global": (
        {"a": "def s():\n    global N\n    N = 1\ns()\n" + FUNCTION.format("N")}, ("a", "N = 1", "N = 2"),
    ),
    "a condition": (
        {"a": "import sys\nif sys.maxsize > 1:\n    N = 1\nelse:\n    N = 2\n" + FUNCTION.format("N")},
        ("a", "N = 1", "N = 3"),
    ),
    "a function under a condition": (
        {"a": "if True:\n    def g():\n        return 1\n" + FUNCTION.format("g()")}, ("a", "return 1", "return 2"),
    ),
    "a decorator of its own": (
        {"a": "def d(g):\n    return lambda: 1\n@d\ndef h():\n    return 0\n" + FUNCTION.format("h()")},
        ("a", "lambda: 1", "lambda: 2"),
    ),
    "an import": ({"a": "from studies.b import N\n" + FUNCTION.format("N"), "b": "N = 1\n"}, ("b", "1", "2")),
    "an import by another name": (
        {"a": "from studies.b import M as N\n" + FUNCTION.format("N"), "b": "M = 1\n"}, ("b", "1", "2"),
    ),
    "an import of an import": (
        {"a": "from studies.b import N\n" + FUNCTION.format("N"), "b": "from studies.c import N\n", "c": "N = 1\n"},
        ("c", "1", "2"),
    ),
    "an import from elsewhere instead": (
        {"a": "from studies.b import N\n" + FUNCTION.format("N"), "b": "N = 1\n", "c": "N = 1\n"},
        ("a", "studies.b", "studies.c"),
    ),
    "a relative import": ({"a": "from .b import N\n" + FUNCTION.format("N"), "b": "N = 1\n"}, ("b", "1", "2")),
    "a relative import of a module": (
        {"a": "from . import b\n" + FUNCTION.format("b.N"), "b": "N = 1\n"}, ("b", "1", "2"),
    ),
    "a relative import from above": (
        {"p/a": "from ..b import N\n" + FUNCTION.format("N"), "p/__init__": "", "b": "N = 1\n"}, ("b", "1", "2"),
    ),
    "an import of all": ({"a": "from studies.b import *\n" + FUNCTION.format("N"), "b": "N = 1\n"}, ("b", "1", "2")),
    "a module": ({"a": "import studies.b\n" + FUNCTION.format("studies.b.N"), "b": "N = 1\n"}, ("b", "1", "2")),
    "a module by another name": (
        {"a": "import studies.b as c\n" + FUNCTION.format("c.N"), "b": "N = 1\n"}, ("b", "1", "2"),
    ),
    "what a module imports": (
        {"a": "from studies import b\n" + FUNCTION.format("b.N"), "b": "from studies.c import N\n", "c": "N = 1\n"},
        ("c", "1", "2"),
    ),
    "an import under a condition": (
        {"a": "try:\n    from studies.b import N\nexcept ImportError:\n    N = 0\n" + FUNCTION.format("N"), "b": "N=1"},
        ("b", "1", "2"),
    ),
    "an import within a function": (
        {"a": "def g():\n    from studies.b import N\n    return N\nM = g()\n" + FUNCTION.format("M"), "b": "N = 1\n"},
        ("b", "1", "2"),
    ),
    "a name that a package makes up": (
        {"a": "from studies import N\n" + FUNCTION.format("N"), "__init__": "def __getattr__(name):\n    return 1\n"},
        ("__init__", "1", "2"),
    ),
    "an overload": (
        {"a": FUNCTION.format("g()"), "__init__": "", "b": ""}
        | {"a": "def g(): ...\n@overload(g)\ndef o():\n    return lambda: 1\n" + FUNCTION.format("g()")},
        ("a", "lambda: 1", "lambda: 2"),
    ),
}  # fmt: skip

HARMLESS = {
    "a docstring": ('"""Said."""', '"""Said otherwise."""'),
    "a comment": ("# Why.", "# Why not."),
    "a comment behind code": ("# behind", "# beyond"),
    "a line between": ("\n@jit", "\n\n\n@jit"),
    "a blank": ("x + N", "x  +  N"),
    "a function beside it": ("return 7", "return 8"),
    "a constant beside it": ("OTHER = 3", "OTHER = 4"),
    "an exported name": ('["f"]', '["f", "g"]'),
}
PLAIN = '''"""Said."""
from llmsched_env.jit import jit

__all__ = ["f"]
OTHER = 3
N = 1  # behind


def g():
    return 7


# Why.
@jit
def f(x):
    """Said."""
    return x + N
'''


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """``digest(files)``: of ``f`` in the first of these modules of a package; long written when it is read."""
    monkeypatch.setattr(sources, "_ROOT", tmp_path)

    def of(files, age_s=1e6):
        for cached in (sources._read, sources._step, reachable_digest):
            cached.cache_clear()
        for name, text in files.items():
            path = tmp_path / "studies" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            written = path.stat().st_mtime - age_s
            os.utime(path, (written, written))
        return reachable_digest(f"studies.{next(iter(files)).replace('/', '.')}", "f")

    yield of
    for cached in (sources._read, sources._step, reachable_digest):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    """The modules of these tests have names of ours."""
    for name in ("studies", "studies.b", "studies.a"):
        monkeypatch.delitem(sources.sys.modules, name, raising=False)


@pytest.mark.parametrize("how", CASES)
def test_an_edit_of_what_is_reached_is_noticed(digest, how):
    files, (name, old, new) = CASES[how]
    before = digest(files)
    assert before == digest(files)
    assert files[name].replace(old, new, 1) != files[name]
    assert digest({**files, name: files[name].replace(old, new, 1)}) != before


@pytest.mark.parametrize("what", HARMLESS)
def test_an_edit_of_what_is_not_is_not(digest, what):
    old, new = HARMLESS[what]
    assert PLAIN.replace(old, new) != PLAIN
    assert digest({"a": PLAIN.replace(old, new)}) == digest({"a": PLAIN}) is not None


def test_a_lambda_is_made_of_its_whole_module(digest):
    digest({"a": PLAIN})
    before = reachable_digest("studies.a", "<lambda>")
    digest({"a": PLAIN.replace("return 7", "return 8")})
    assert reachable_digest("studies.a", "<lambda>") != before


def test_a_file_that_was_edited_since_it_was_imported(digest):
    """What is in memory may be what it said before."""
    with pytest.raises(ChangedSourceError, match=r"a\.py was edited since this process began"):
        digest({"a": "from studies.b import N\n" + FUNCTION.format("N"), "b": "N = 1\n"}, age_s=0.0)
    # A clock that is ahead, as of a file server, or of an archive, is no edit.
    assert digest({"a": PLAIN}, age_s=-1e6) == digest({"a": PLAIN})


def test_modules_of_others_by_our_names(digest, tmp_path, monkeypatch):
    assert digest({"a": PLAIN}) is not None
    assert reachable_digest("studies.a", "f", str(tmp_path / "studies" / "a.py")) is not None
    assert reachable_digest("studies.a", "f", str(tmp_path / "elsewhere" / "a.py")) is None
    assert reachable_digest("numpy", "array") is None
    monkeypatch.setitem(sources.sys.modules, "studies.a", pytest)
    assert digest({"a": PLAIN}) is None
