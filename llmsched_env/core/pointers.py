"""Arrays by address, compiled and interpreted alike."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

__all__ = ["array_at", "prefetch"]


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _as_pointer(typing_context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


def array_at(address: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The array of ``shape`` and ``dtype`` that lies at ``address``."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(int(address)), kind).reshape(shape)


@overload(array_at)  # type: ignore[untyped-decorator]
def _compiled_array_at(address: Any, shape: Any, dtype: Any) -> Any:
    def compiled(address: Any, shape: Any, dtype: Any) -> Any:
        return carray(_as_pointer(address), shape, dtype)

    return compiled


def prefetch(address: Any) -> None:
    """Ask for the cache line at ``address``, to be there soon; says nothing about whether it may be read."""


@intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _prefetch(typing_context: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # To read, to keep, data.
        builder.call(function, [builder.inttoptr(args[0], pointer), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@overload(prefetch)  # type: ignore[untyped-decorator]  # numba is untyped
def _compiled_prefetch(address: Any) -> Any:
    def compiled(address: Any) -> Any:
        _prefetch(address)

    return compiled
