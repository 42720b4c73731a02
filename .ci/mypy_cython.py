"""A plugin of mypy: ``cython.longlong`` is an ``int`` to it, ``cython.longlong[::1]`` a `cython.Array` (typings/)."""

from __future__ import annotations

from collections.abc import Callable

from mypy.plugin import AnalyzeTypeContext, Plugin
from mypy.types import NoneType, Type

WHOLE = {"longlong", "ulonglong", "int", "uint", "uchar", "schar", "char", "Py_ssize_t"}
KINDS = {
    **dict.fromkeys(WHOLE, "builtins.int"),
    "bint": "builtins.bool",
    "double": "builtins.float",
    "float": "builtins.float",
}


def analyzed(context: AnalyzeTypeContext) -> Type:
    """What an annotation stands for."""
    if context.type.args:
        return context.api.named_type("cython.Array", [])
    name = context.type.name.rpartition(".")[2]
    return NoneType() if name == "void" else context.api.named_type(KINDS[name], [])


class Cython(Plugin):
    """The plugin."""

    def get_type_analyze_hook(self, fullname: str) -> Callable[[AnalyzeTypeContext], Type] | None:
        """Ours for the names of ``cython`` that are types."""
        module, _, name = fullname.rpartition(".")
        return analyzed if module == "cython" and name in {*KINDS, "void"} else None


def plugin(version: str) -> type[Plugin]:
    """What mypy asks for."""
    return Cython
