"""What a piece of code is made of: digests of its sources without comments, docstrings and whatever it cannot reach.

Compiled code is kept on disk by :func:`reachable_digest`: a hash of the function, and of every function, class and
constant of this project that it reads, wherever that is defined. So an edit of a callee in another file is noticed, and
an edit of an error message is not.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["package_digest", "reachable_digest"]

_ROOT = Path(__file__).parent.parent
_OWN = frozenset({"llmsched_env", "baselines", "agents", "studies"})

Place = tuple[str, str]
"""A module and a name at its top level."""


@functools.cache
def package_digest() -> str:
    """Hash (hex) of all code of llmsched_env: what stored results and plans depend on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        digest.update(_code(text.splitlines(), ast.parse(text)).encode())
    return digest.hexdigest()


@functools.cache
def reachable_digest(module: str, name: str) -> str | None:
    """Hash (hex) of what ``name``, at the top level of a module of this project, is made of; ``None`` for another's."""
    if _read(module) is None:
        return None
    found: dict[Place, str] = {}
    pending = {(module, name)}
    while pending:
        place = pending.pop()
        found[place], read = _step(*place)
        pending |= read - found.keys()
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


@functools.cache
def _step(module: str, name: str) -> tuple[str, frozenset[Place]]:
    """The code that ``name`` is bound to in ``module``, and the places that it reads."""
    source = _read(module)
    if source is None:
        return "", frozenset()  # of another project
    if name in source.imports:
        return "", frozenset({source.imports[name]})
    if name in source.definitions:
        nodes = source.definitions[name]
        named = {part.id for node in nodes for part in _walk(node) if isinstance(part, ast.Name)}
        # What extends numba takes effect on import, without being named.
        read = {(module, one) for one in (named | source.extensions) if source.binds(one)}
        return "".join(_code(source.lines, node) for node in nodes), frozenset(read)
    submodule = _read(f"{module}.{name}")  # from package import module: all of it
    if submodule is not None:
        return "", frozenset((f"{module}.{name}", one) for one in submodule.definitions)
    return "", frozenset()


class _Source(NamedTuple):
    """A module as it was written, by the names at its top level."""

    lines: list[str]
    imports: dict[str, Place]
    definitions: dict[str, list[ast.stmt]]
    extensions: frozenset[str]

    def binds(self, name: str) -> bool:
        return name in self.imports or name in self.definitions


@functools.cache
def _read(module: str) -> _Source | None:
    if module.partition(".")[0] not in _OWN:
        return None
    path = _ROOT.joinpath(*module.split("."))
    file = next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()), None)
    if file is None:
        return None
    text = file.read_text(encoding="utf-8")
    found = _Source(text.splitlines(), {}, {}, frozenset())
    extensions = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found.imports[alias.asname or alias.name] = (node.module, alias.name)
        for name in _bound(node):
            found.definitions.setdefault(name, []).append(node)
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(one).startswith(("overload", "intrinsic")) for one in node.decorator_list
        ):
            extensions.add(node.name)
    return found._replace(extensions=frozenset(extensions))


def _walk(node: ast.stmt) -> Iterator[ast.AST]:
    """All parts of a statement but its decorators: those that compile are no part of what is compiled."""
    for child in ast.iter_child_nodes(node):
        if child not in getattr(node, "decorator_list", ()):
            yield from ast.walk(child)


def _bound(node: ast.stmt) -> Iterator[str]:
    """Names that a statement at the top level of a module binds, imports aside."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
        return
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id


def _code(lines: list[str], node: ast.Module | ast.stmt) -> str:
    """The lines of a node or of a whole module, without blank ones, comments and docstrings."""
    prose: set[int] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str):
            prose.update(range(part.lineno, (part.end_lineno or part.lineno) + 1))
    first, last = 1, len(lines)
    if not isinstance(node, ast.Module):
        decorators = getattr(node, "decorator_list", [])
        first = min(node.lineno, *(one.lineno for one in decorators), node.lineno)
        last = node.end_lineno or node.lineno
    kept = (lines[i - 1].rstrip() for i in range(first, last + 1) if i not in prose)
    return "".join(f"{line}\n" for line in kept if line and not line.lstrip().startswith("#"))
