"""Write a .pxd beside each file of a compiled package, from its annotations: what Cython needs to compile plain Python.

- A class becomes an extension type and its annotated fields C fields. From Python, those of `View` are read-only, and a
  leading underscore hides one. Classes that are decorated, or derive from something else, stay Python's.
- A method that no class of the folder redefines is final and inline: a call of it in its own file is a plain one.
  Where it is only final, Cython looks it up in a table of the object's all the same, as calls from other files do.
- A function or method whose return annotation is a ``cython`` type becomes a C function without the GIL. Any other
  stays what it is, and is not in the .pxd.
- ``import math`` becomes C's.
- A file of integer constants becomes an enum, and a file that has only C functions becomes inline functions. Neither is
  compiled on its own: their users import the file and write ``codes.DECODE`` and ``bitset.insert(...)``.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

__all__ = ["COMPILED", "compiled_files", "needed_files", "pxd", "write"]

ROOT = Path(__file__).parent

COMPILED = ("llmsched_env/engine/*.py", "llmsched_env/offline/kernels/*.py")
"""The files that are written to be compiled, relative to this one."""

C_TYPES = {
    "longlong": "long long",
    "ulonglong": "unsigned long long",
    "int": "int",
    "uint": "unsigned int",
    "bint": "bint",
    "double": "double",
    "float": "float",
    "char": "char",
    "uchar": "unsigned char",
    "schar": "signed char",
    "Py_ssize_t": "Py_ssize_t",
    "void": "void",
}

PYTHON_TYPES = {"float": "double", "str": "str", "bytes": "bytes", "list": "list", "dict": "dict", "tuple": "tuple"}
"""What Cython makes of annotations that are no C types. Others are objects."""

ENUM_LIMIT = 2**31

CIMPORT = re.compile(r"^from ([\w.]+) cimport (.+)$", re.MULTILINE)


class NotCompilableError(ValueError):
    """The file says something that has no C form."""


class _File:
    """One file and what it declares."""

    def __init__(self, path: Path, package: str) -> None:
        self.path = path
        self.package = package
        self.tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        # Bases come before what derives from them.
        self.classes = {alias.asname or alias.name for _, aliases in self._from_package() for alias in aliases}
        self.own_classes: set[str] = set()
        for node in self.tree.body:
            if not isinstance(node, ast.ClassDef) or node.decorator_list or node.keywords:
                continue
            if all(ast.unparse(base) in self.classes for base in node.bases):
                self.own_classes.add(node.name)
                self.classes.add(node.name)

    def fail(self, node: ast.AST, problem: str) -> NotCompilableError:
        return NotCompilableError(f"{self.path}:{getattr(node, 'lineno', 0)}: {problem}")

    def kind(self) -> str:
        """constants, inline or module."""
        body = [node for node in self.tree.body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)]
        if body and all(isinstance(node, ast.FunctionDef) for node in body) and all(map(self.is_c_function, body)):
            return "inline"
        if body and all(isinstance(node, ast.Assign | ast.AnnAssign) for node in body):
            return "constants"
        return "module"

    def _from_package(self) -> Iterator[tuple[str, list[ast.alias]]]:
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{self.package}."):
                yield str(node.module), node.names

    def imports(self) -> Iterator[str]:
        """What it imports from its package and is a C declaration there, as a cimport."""
        for module, aliases in self._from_package():
            cimported = aliases
            path = self.path.parent.joinpath(*module.split(".")[self.package.count(".") + 1 :]).with_suffix(".py")
            if path.is_file():
                there = _File(path, self.package)
                declared = there.own_classes | {node.name for node in there.tree.body if there.is_c_function(node)}
                cimported = [alias for alias in aliases if alias.name in declared]
            if cimported:
                yield f"from {module} cimport {', '.join(map(ast.unparse, cimported))}"

    def c_type(self, node: ast.expr | None) -> str | None:
        """The C type that an annotation names; ``None`` where it names none (a class of the engine is none)."""
        if isinstance(node, ast.Subscript):
            base = self.c_type(node.value)
            if base is None:
                return None
            axes = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return f"{base}[{', '.join(map(ast.unparse, axes))}]"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cython":
            if node.attr not in C_TYPES:
                raise self.fail(node, f"cython.{node.attr} is none of {', '.join(C_TYPES)}.")
            return C_TYPES[node.attr]
        return None

    def declaration(self, node: ast.expr) -> str:
        """How a field or an argument with this annotation is declared."""
        found = self.c_type(node)
        if found is not None:
            return found
        name = ast.unparse(node)
        return name if name in self.classes else PYTHON_TYPES.get(name.partition("[")[0], "object")

    def is_c_function(self, node: ast.stmt) -> TypeGuard[ast.FunctionDef]:
        return isinstance(node, ast.FunctionDef) and self.c_type(node.returns) is not None

    def signature(self, node: ast.FunctionDef) -> str:
        given = node.args
        if given.vararg or given.kwarg or given.kwonlyargs:
            raise self.fail(node, f"{node.name} returns a C type, so it takes positional arguments only.")
        arguments = []
        for place, argument in enumerate(given.args):
            if argument.arg == "self" and place == 0:
                arguments.append("self")
                continue
            if argument.annotation is None:
                raise self.fail(argument, f"{node.name} returns a C type, so {argument.arg} needs an annotation.")
            default = "=*" if place >= len(given.args) - len(given.defaults) else ""
            arguments.append(f"{self.declaration(argument.annotation)} {argument.arg}{default}")
        return f"{self.c_type(node.returns)} {node.name}({', '.join(arguments)}) noexcept nogil"

    def constants(self) -> Iterator[str]:
        yield "cdef enum:"
        names: dict[str, object] = {}
        exec(compile(self.tree, str(self.path), "exec"), names)
        for name, value in names.items():
            if not name.isupper():
                continue
            if not isinstance(value, int) or not -ENUM_LIMIT <= value < ENUM_LIMIT:
                raise NotCompilableError(f"{self.path}: {name} = {value!r} is no integer of 32 bits.")
            yield f"    {name} = {int(value)}"

    def definitions(self) -> dict[str, tuple[str, frozenset[str]]]:
        """The base and the methods of each class of the folder."""
        files = sorted(self.path.parent.glob("*.py"))
        return _definitions(tuple((file, file.stat().st_mtime_ns) for file in files))

    def is_final(self, node: ast.ClassDef, method: str) -> bool:
        """Whether no class defines it too that derives from this one or the other way round.

        What a base in another folder defines is not known, so nothing is final of what derives from one.
        """
        lines = self.definitions()
        if any(base not in lines for base in _line(lines, node.name)):
            return False
        return not any(
            method in methods and (node.name in _line(lines, name) or name in _line(lines, node.name))
            for name, (_, methods) in lines.items()
            if name != node.name
        )

    def class_body(self, node: ast.ClassDef) -> Iterator[str]:
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                if ast.unparse(part.annotation).startswith("ClassVar"):
                    continue
                name = part.target.id
                shown = "" if name.startswith("_") else "readonly " if node.name == "View" else "public "
                yield f"    cdef {shown}{self.declaration(part.annotation)} {name}"
            elif isinstance(part, ast.FunctionDef) and self.is_c_function(part):
                final = self.is_final(node, part.name)
                if final:
                    yield "    @cython.final"
                yield f"    cdef {'inline ' if final else ''}{self.signature(part)}"

    def declarations(self) -> Iterator[str]:
        inline = self.kind() == "inline"
        yield "cimport cython"
        if any(isinstance(node, ast.Import) and node.names[0].name == "math" for node in self.tree.body):
            yield "from libc cimport math"
        yield from self.imports()
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and node.name in self.own_classes:
                yield f"cdef class {node.name}{'(' + ast.unparse(node.bases[0]) + ')' if node.bases else ''}:"
                yield from list(self.class_body(node)) or ["    pass"]
            elif isinstance(node, ast.FunctionDef) and self.is_c_function(node):
                yield f"cdef {'inline ' if inline else ''}{self.signature(node)}{':' if inline else ''}"
                if inline:
                    for part in node.body:
                        yield "    " + ast.unparse(part).replace("\n", "\n    ")


@functools.cache
def _definitions(files: tuple[tuple[Path, int], ...]) -> dict[str, tuple[str, frozenset[str]]]:
    """The base and the methods of each class of these files, each with the time of its last change."""
    found = {}
    for file, _ in files:
        for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
            if isinstance(node, ast.ClassDef):
                base = ast.unparse(node.bases[0]) if node.bases else ""
                methods = frozenset(part.name for part in node.body if isinstance(part, ast.FunctionDef))
                found[node.name] = base, methods
    return found


def _line(classes: dict[str, tuple[str, frozenset[str]]], name: str) -> list[str]:
    """What a class derives from."""
    found: list[str] = []
    while name in classes and classes[name][0] not in (*found, ""):
        name = classes[name][0]
        found.append(name)
    return found


def pxd(path: Path, package: str) -> str:
    """The text of the .pxd of a file of ``package``.

    Raises:
        NotCompilableError: it says something that has no C form.
    """
    file = _File(path, package)
    lines = file.constants() if file.kind() == "constants" else file.declarations()
    return "\n".join(["# Written by build_engine.py from the annotations of the .py beside it.", *lines]) + "\n"


def compiled_files(root: Path = ROOT) -> list[Path]:
    """Files below ``root`` that are written to be compiled, the declarations among them included."""
    return sorted(file for pattern in COMPILED for file in root.glob(pattern) if file.name != "__init__.py")


def write(files: list[Path], root: Path = ROOT) -> dict[str, Path]:
    """Write the .pxd beside each of these files, and remove those of files that are gone.

    Returns those that Cython compiles, by the names of their modules.
    """
    modules = {}
    for folder in {file.parent for file in files}:
        for declared in folder.glob("*.pxd"):
            if not declared.with_suffix(".py").exists():
                declared.unlink()
    for file in files:
        package = ".".join(file.parent.relative_to(root).parts)
        text, target = pxd(file, package), file.with_suffix(".pxd")
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
        if _File(file, package).kind() == "module":
            modules[f"{package}.{file.stem}"] = file
    return modules


def needed_files(file: Path, root: Path = ROOT) -> list[Path]:
    """A file and all .pxd that its compilation reads, in a fixed order; they have been written."""
    found = [file]
    open_ends = [file.with_suffix(".pxd")]
    while open_ends:
        declared = open_ends.pop()
        if declared in found or not declared.is_file():
            continue
        found.append(declared)
        for module, names in CIMPORT.findall(declared.read_text(encoding="utf-8")):
            place = root.joinpath(*module.split("."))
            open_ends.append(place.with_suffix(".pxd"))
            open_ends += [place / f"{name.split()[0]}.pxd" for name in names.split(",")]
    return sorted(found)
