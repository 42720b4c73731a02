"""What kept results depend on: an edit of code changes the digest, one of prose does not."""

from __future__ import annotations

import pytest

from llmsched_env import sources

PLAIN = '''"""Said."""
N = 1  # behind


# Why.
def f(x):
    """Said."""
    return x + N


class C: "Said."; n = 1
S = """
# 1
"""
'''

CODE = {
    "a constant": ("N = 1", "N = 2"),
    "an expression": ("x + N", "x - N"),
    "code beside a docstring": ("n = 1", "n = 2"),
    "what looks like a comment": ("# 1", "# 12"),
    "a name": ("def f(x)", "def g(x)"),
}
PROSE = {
    "a docstring": ('"""Said."""', '"""Said otherwise."""'),
    "a comment": ("# Why.", "# Why not."),
    "a comment behind code": ("# behind", "# beyond"),
    "a line between": ("\n# Why.", "\n\n\n# Why."),
    "a blank": ("x + N", "x  +  N"),
}


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """``digest(files)``: of a package of these modules."""
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "code" / "sources.py"))
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")

    def of(files):
        sources.package_digest.cache_clear()
        for name, text in files.items():
            path = tmp_path / "code" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return sources.package_digest()

    yield of
    sources.package_digest.cache_clear()


@pytest.mark.parametrize("file", ["a", "below/a"])
@pytest.mark.parametrize("what", CODE)
def test_an_edit_of_code_is_noticed(digest, what, file):
    edited = PLAIN.replace(*CODE[what])
    assert edited != PLAIN
    assert digest({file: edited}) != digest({file: PLAIN})


@pytest.mark.parametrize("what", PROSE)
def test_an_edit_of_prose_is_not(digest, what):
    edited = PLAIN.replace(*PROSE[what])
    assert edited != PLAIN
    assert digest({"a": edited}) == digest({"a": PLAIN})


def test_what_was_kept_is_read_again_and_what_is_damaged_is_not(digest, tmp_path, monkeypatch):
    found = digest({"a": PLAIN})
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    kept.write_text("0" * len(found))
    assert digest({"a": PLAIN}) == "0" * len(found)
    kept.write_text("0")
    assert digest({"a": PLAIN}) == found
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "code" / "a.py")  # a folder that cannot be made
    assert digest({"a": PLAIN}) == found
