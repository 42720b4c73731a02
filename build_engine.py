"""Write a .pxd beside each file of the engine, from its annotations: what Cython needs to compile plain Python files.

Classes become extension types, annotated fields C fields, functions with a C return type C functions without the GIL.
A module of constants becomes an enum; a module that has only C functions becomes inline functions.
"""

from __future__ import annotations

import ast
from pathlib import Path

TYPES = {
    "longlong": "long long",
    "ulonglong": "unsigned long long",
    "int": "int",
    "bint": "bint",
    "double": "double",
    "float": "float",
    "char": "char",
    "uchar": "unsigned char",
    "schar": "signed char",
    "Py_ssize_t": "Py_ssize_t",
    "void": "void",
}


def c_type(node: ast.expr | None) -> str | None:
    """The C type that an annotation names; ``None`` where it is none (a class of the engine is not)."""
    if isinstance(node, ast.Subscript):
        base = c_type(node.value)
        return None if base is None else f"{base}[{ast.unparse(node.slice).strip(chr(40) + chr(41))}]"
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cython":
        return TYPES[node.attr]
    return None


def declared(node: ast.expr | None) -> str:
    """How a field or an argument of this annotation is declared."""
    if node is None:
        return "object"
    found = c_type(node)
    return ast.unparse(node) if found is None else found


def is_c_function(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and c_type(node.returns) is not None


def signature(node: ast.FunctionDef) -> str:
    arguments = [
        "self" if argument.arg == "self" else f"{declared(argument.annotation)} {argument.arg}" for argument in node.args.args
    ]
    return f"{c_type(node.returns)} {node.name}({', '.join(arguments)}) noexcept nogil"


def kind(tree: ast.Module) -> str:
    """constants, inline or module."""
    body = [
        node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
    ]
    if body and all(isinstance(node, ast.FunctionDef) for node in body) and any(map(is_c_function, body)):
        return "inline"
    if body and all(isinstance(node, ast.Assign | ast.AnnAssign) for node in body):
        return "constants"
    return "module"


def pxd(source: str, package: str) -> str:
    """The text of the .pxd of a file."""
    tree = ast.parse(source)
    what = kind(tree)
    lines = ["# Written by build_engine.py from the annotations of the .py beside it."]
    if what == "constants":
        values: dict[str, object] = {}
        exec(compile(tree, package, "exec"), values)
        lines.append("cdef enum:")
        for name, value in values.items():
            if isinstance(value, int) and name.isupper():
                lines.append(f"    {name} = {value}")
        return "\n".join(lines) + "\n"
    lines.append("cimport cython")
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package):
            lines.append(f"from {node.module} cimport {', '.join(alias.name for alias in node.names)}")
        elif isinstance(node, ast.ClassDef):
            bases = f"({ast.unparse(node.bases[0])})" if node.bases else ""
            lines.append(f"cdef class {node.name}{bases}:")
            body = []
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    name = part.target.id
                    shown = "" if name.startswith("_") else "readonly "
                    body.append(f"    cdef {shown}{declared(part.annotation)} {name}")
                elif isinstance(part, ast.FunctionDef) and is_c_function(part):
                    body.append(f"    cdef {signature(part)}")
            lines += body or ["    pass"]
        elif isinstance(node, ast.FunctionDef) and is_c_function(node):
            if what == "inline":
                lines.append(f"cdef inline {signature(node)}:")
                for part in node.body:
                    lines.append("    " + ast.unparse(part).replace("\n", "\n    "))
            else:
                lines.append(f"cdef {signature(node)}")
    return "\n".join(lines) + "\n"


def write(folder: Path, package: str) -> list[Path]:
    """Write the .pxd files of a folder; returns the files to compile."""
    modules = []
    for file in sorted(folder.glob("*.py")):
        if file.name == "__init__.py":
            continue
        source = file.read_text(encoding="utf-8")
        text, target = pxd(source, package), file.with_suffix(".pxd")
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
        if kind(ast.parse(source)) == "module":
            modules.append(file)
    return modules
