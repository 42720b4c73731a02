"""The one way that this project compiles a function: numba, cached on disk, with the same meaning as plain Python.

``NUMBA_DISABLE_JIT=1`` runs every compiled function as the Python that it is written in, with identical results.

numba's own cache notices an edit of the function's file, but not of a callee or constant in another file, and then
serves stale machine code. So the cache folder is named by a hash of every source file of the package that may be
compiled into another.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

from llmsched_env.storage import cache_dir

__all__ = ["compile_native", "inlined", "jit", "sources_digest"]

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def sources_digest() -> str:
    """Hash (hex) of numba's version and of the sources that may be compiled into another: what results depend on."""
    package = Path(__file__).parent
    sources = [Path(__file__), *sorted(package.glob("core/*.py")), *sorted(package.glob("offline/*.py"))]
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def jit(function: F) -> F:
    """Compile ``function`` on first call; cached on disk, without the GIL, IEEE arithmetic as Python's."""
    return _compile(function)


def inlined(function: F) -> F:
    """As :func:`jit`, for small functions: always inlined into compiled callers."""
    return _compile(function, forceinline=True)


def compile_native(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile now, for one signature, to a function with a C address; the result keeps the code alive."""
    return _cached(lambda **options: numba.cfunc(signature, error_model="numpy", **options)(function))


def _compile(function: F, **options: bool) -> F:
    compiled: F = _cached(lambda **cache: numba.njit(nogil=True, error_model="numpy", **options, **cache)(function))
    return compiled


def _cached(compile_with: Callable[..., Any]) -> Any:
    # numba reads its global CACHE_DIR when a function is decorated, so it is set for just that long: the cache of a
    # user's own numba code stays where it was.
    settings: Any = numba.config
    previous = settings.CACHE_DIR
    settings.CACHE_DIR = str(cache_dir() / "compiled" / sources_digest()[:16])
    try:
        return compile_with(cache=True)
    except RuntimeError:  # no source file to key a cache by: an interactive session
        return compile_with()
    finally:
        settings.CACHE_DIR = previous
