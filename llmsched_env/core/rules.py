"""Rules that compiled loops call by address.

numba's own function types cost some 20 ns a call, as much as an iteration; three plain pointers cost 1 or 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from llmsched_env.core.layout import VIEW, View
from llmsched_env.errors import UnknownFieldError
from llmsched_env.jit import compile_native

__all__ = ["CompiledRule", "RuleFunction", "call_rule", "compile_rule"]

_SIGNATURE = types.int64(numba.from_dtype(VIEW), types.CPointer(types.float64), types.CPointer(types.int64))


class RuleFunction:
    """A rule in two forms that give the same actions: called, it runs as Python; the core runs its machine code.

    Attributes:
        python: the function as it was written.
        handle: what :func:`call_rule` takes: the address of the machine code, or the function itself where compilation
            is off.
    """

    __slots__ = ("_native", "handle", "python")

    def __init__(self, function: Callable[[Any, Any, Any], Any]) -> None:
        self.python = function
        self._native: Any = None
        self.handle: Any = function
        if not numba.config.DISABLE_JIT:
            self._native = _compiled(function)  # kept: the address is valid as long as it is
            self.handle = self._native.address

    def __call__(self, view: Any, parameters: Any, memory: Any) -> int:
        """The action, computed by the Python function."""
        return int(self.python(view, parameters, memory))

    def __reduce__(self) -> tuple[Any, ...]:
        return compile_rule, (self.python,)


def _compiled(function: Callable[[Any, Any, Any], Any]) -> Any:
    try:
        return compile_native(_SIGNATURE, function)
    except KeyError as error:  # all that numba says of a field that a record does not have
        name = error.args[0] if error.args else None
        if isinstance(name, str) and name not in View.__annotations__:
            raise UnknownFieldError(name, View.__annotations__) from None
        raise


def compile_rule(function: Callable[[Any, Any, Any], Any]) -> RuleFunction:
    """Compile ``function(view, parameters, memory) -> action`` so that the core can call it.

    It may read the fields of `View`, ``parameters[i]`` (float) and ``memory[i]`` (int), write ``memory[i]``, and use
    arithmetic, comparisons, loops and ``math``; not ``len`` of the latter two, which are plain pointers in it. Indices
    are not checked, and what is no action is a decode. What it reads beside these has the value of now for good.

    Raises:
        UnknownFieldError: it reads a field that a view does not have.
        numba.errors.NumbaError: it uses what cannot be compiled; the message says which line.
    """
    return RuleFunction(function)


class CompiledRule(NamedTuple):
    """A rule that the core can call: ``function(view, parameters, memory) -> action``.

    Attributes:
        function: made by :func:`compile_rule`.
        parameters: float64, read by the function.
        memory: int64, the initial value of what it may keep between decisions; copied for each episode.
    """

    function: RuleFunction
    parameters: NDArray[np.float64]
    memory: NDArray[np.int64]


def call_rule(handle: Any, view: Any, parameters: Any, memory: Any) -> Any:
    """The action of the rule with that handle, from compiled or interpreted code."""
    return int(handle(view, parameters, memory))


@intrinsic  # type: ignore[untyped-decorator]
def _call_address(typing_context: Any, handle: Any, view: Any, parameters: Any, memory: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        data = [context.make_array(signature.args[i])(context, builder, values[i]).data for i in (2, 3)]
        kind = ir.FunctionType(ir.IntType(64), [pointer] * 3)
        function = builder.inttoptr(values[0], kind.as_pointer())
        return builder.call(function, [builder.bitcast(value, pointer) for value in (values[1], *data)])

    return types.int64(types.int64, view, parameters, memory), codegen


@overload(call_rule)  # type: ignore[untyped-decorator]
def _compiled_call_rule(handle: Any, view: Any, parameters: Any, memory: Any) -> Any:
    def compiled(handle: Any, view: Any, parameters: Any, memory: Any) -> Any:
        return _call_address(handle, view, parameters, memory)

    return compiled
