"""What a piece of code is made of: digests of its syntax, without comments, docstrings and whatever it cannot reach.

Compiled code is kept on disk by :func:`reachable_digest`: a hash of the function, and of every function, class and
constant of this project that it reads, wherever that is defined. So an edit of a callee in another file is noticed, and
an edit of an error message is not.

In doubt more counts as reached than is: stale machine code would be worse than slow beginnings. A statement that is
neither a definition, an import nor a plain assignment may change whatever it names, so it belongs to all of that; of a
module that is handed about as a whole, and of one that makes names up on demand, everything counts.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["ChangedSourceError", "package_digest", "reachable_digest"]

_ROOT = Path(__file__).parent.parent
OWN = ("llmsched_env", "baselines", "agents", "studies")
"""Packages of this project."""

_COMPILER = "llmsched_env.jit"

EVERYTHING = "*"

Place = tuple[str, str]
"""A module and a name at its top level, or `EVERYTHING` in it."""


class ChangedSourceError(RuntimeError):
    """A file was edited since this process began: what it says now need not be what was imported from it."""


@functools.cache
def package_digest() -> str:
    """Hash (hex) of all code of llmsched_env: what stored results and plans depend on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(_dump(_parsed(path)).encode())
    return digest.hexdigest()


@functools.cache
def reachable_digest(module: str, name: str, file: str | None = None) -> str | None:
    """Hash (hex) of what ``name``, at the top level of a module of this project, is made of; ``None`` for another's.

    Args:
        module: as it is imported.
        name: a function's; what is not bound at the top level, such as a lambda, is made of the whole module.
        file: where the function comes from; a module elsewhere that only has the name of one of ours is another's.

    Raises:
        ChangedSourceError: what it is made of was edited since this process began.
    """
    source = _read(module)
    if source is None or (file is not None and Path(file).resolve() != source.path):
        return None
    found: dict[Place, str] = {}
    pending = {(module, name if source.binds(name) else EVERYTHING)}
    while pending:
        place = pending.pop()
        found[place], read = _step(*place)
        pending |= read - found.keys()
    for reached in sorted({module for module, _ in found}):
        one = _read(reached)
        if one is not None and one.changed:
            raise ChangedSourceError(f"{one.path} was edited since this process began.")
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


@functools.cache
def _step(module: str, name: str) -> tuple[str, frozenset[Place]]:
    """The code that binds ``name`` in ``module``, and the places that it reads."""
    source = _read(module)
    submodule = f"{module}.{name}"
    if (source is None or not source.binds(name)) and _read(submodule) is not None:  # from package import module
        return "", frozenset({(submodule, EVERYTHING)})
    if source is None:
        return "", frozenset()  # of another project
    if name == EVERYTHING:
        return "", frozenset((module, one) for one in {*source.imports, *source.definitions, *source.extensions})
    if source.binds(name):
        nodes = source.definitions.get(name, [])
        read = set(source.imports.get(name, ()))
        for part in (part for node in nodes for part in _walk(node, source)):
            if isinstance(part, ast.Name):
                read |= source.places(module, part.id)
            elif isinstance(part, ast.Import | ast.ImportFrom):  # inside a function
                read.update(place for _, place in _imported(part, source))
        # What extends numba takes effect on import, without being named.
        read.update((module, one) for one in source.extensions)
        return "".join(_dump(node) for node in nodes), frozenset(read)
    if source.stars:
        return "", frozenset((star, name) for star in source.stars)
    return "", frozenset({(module, EVERYTHING)} if source.binds("__getattr__") else ())


class _Source(NamedTuple):
    """A module as it was written, by the names at its top level."""

    path: Path
    package: str
    changed: bool
    imports: dict[str, set[Place]]
    stars: set[str]
    definitions: dict[str, list[ast.stmt]]
    extensions: set[str]

    def binds(self, name: str) -> bool:
        return name in self.imports or name in self.definitions

    def places(self, module: str, name: str) -> set[Place]:
        """Where a name that is read in the module may come from."""
        if self.binds(name):
            return {(module, name)}
        return set() if hasattr(builtins, name) else {(star, name) for star in self.stars}


@functools.cache
def _read(module: str) -> _Source | None:
    if module.partition(".")[0] not in OWN:
        return None
    base = _ROOT.joinpath(*module.split("."))
    path = next((one for one in (base.with_suffix(".py"), base / "__init__.py") if one.is_file()), None)
    if path is None:
        return None
    path = path.resolve()
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is not None:
        file = Path(loaded).resolve()
        if file.with_name(f"{file.name.partition('.')[0]}.py") != path:  # an extension module lies beside its source
            return None
    changed = sys.modules["llmsched_env"].IMPORTED_AT_S < path.stat().st_mtime <= time.time()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    source = _Source(path, package, changed, {}, set(), {}, set())
    for node in _parsed(path).body:
        for name in _bound(node):
            source.definitions.setdefault(name, []).append(node)
        for part in (node,) if isinstance(node, ast.FunctionDef | ast.ClassDef) else ast.walk(node):
            if isinstance(part, ast.Import | ast.ImportFrom):
                for name, place in _imported(part, source):
                    if name == EVERYTHING:
                        source.stars.add(place[0])
                    else:
                        source.imports.setdefault(name, set()).add(place)
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(one).startswith(("overload", "intrinsic")) for one in node.decorator_list
        ):
            source.extensions.add(node.name)
    return source


def _imported(node: ast.Import | ast.ImportFrom, source: _Source) -> Iterator[tuple[str, Place]]:
    """What an import binds, and to what."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0], (alias.name, EVERYTHING)
        return
    module = node.module or ""
    if node.level:
        above = source.package.split(".")[: -(node.level - 1) or None]
        module = ".".join([*above, module] if module else above)
    for alias in node.names:
        yield alias.asname or alias.name, (module, alias.name)


def _bound(node: ast.stmt) -> Iterator[str]:
    """Names that a statement at the top level of a module binds or may change, imports aside."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        for part in ast.walk(node):
            if isinstance(part, ast.Global):
                yield from part.names
        return
    targets = _names_alone(node)
    for part in ast.walk(node) if targets is None else targets:
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield part.name
        elif isinstance(part, ast.alias):
            yield part.asname or part.name.partition(".")[0]


def _names_alone(node: ast.stmt) -> list[ast.AST] | None:
    """What a plain assignment binds; ``None`` for another statement, and where an entry or attribute is changed."""
    if isinstance(node, ast.Assign):
        targets = [part for target in node.targets for part in ast.walk(target)]
    elif isinstance(node, ast.AnnAssign):
        targets = [*ast.walk(node.target)]
    else:
        return None
    if any(isinstance(part, ast.Subscript | ast.Attribute) for part in targets):
        return None
    return targets + [part.target for part in ast.walk(node) if isinstance(part, ast.NamedExpr)]


def _walk(node: ast.stmt, source: _Source) -> Iterator[ast.AST]:
    """All parts of a statement but the decorators that compile: those are no part of what is compiled."""
    left_out = {
        decorator
        for decorator in getattr(node, "decorator_list", ())
        if isinstance(decorator, ast.Name)
        and {module for module, _ in source.imports.get(decorator.id, {("", "")})} == {_COMPILER}
    }
    for child in ast.iter_child_nodes(node):
        if child not in left_out:
            yield from ast.walk(child)


def _parsed(path: Path) -> ast.Module:
    """The syntax of a file, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for part in ast.walk(tree):
        body = getattr(part, "body", None)
        if isinstance(body, list):
            body[:] = [node for node in body if not _is_prose(node)]
    return tree


def _is_prose(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _dump(node: ast.AST) -> str:
    return ast.dump(node, annotate_fields=False)
