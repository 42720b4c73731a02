"""The one way that this project compiles a function: numba, cached on disk, with the same meaning as plain Python.

``NUMBA_DISABLE_JIT=1`` runs every compiled function as the Python that it is written in, with identical results.

numba's own cache notices an edit of the function's file, but not of a callee or constant in another file, and then
serves stale machine code. So the cache folder is named by a hash of all that the function can reach
(:mod:`llmsched_env.sources`) and of how it is compiled, and by nothing else: clones share it. A damaged cache file
counts as missing, where numba would raise from its own depths. What has to be compiled first is said on stderr, and
compiled by one process at a time (:mod:`llmsched_env.compiling`). A user's own functions are compiled in every process:
what they reach, nobody can tell, and a rule takes a tenth of a second.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

import llvmlite
import numba
from numba.core import caching

from llmsched_env.compiling import announce, compiling, is_missing
from llmsched_env.sources import reachable_digest
from llmsched_env.storage import cache_dir

__all__ = ["compile_native", "inlined", "jit"]

DIGEST_BYTES = 32

F = TypeVar("F", bound=Callable[..., Any])


NATIVE = {"error_model": "numpy"}
DIRECT = {**NATIVE, "nogil": True}
INLINED = {**DIRECT, "forceinline": True}
"""The ways to compile, as numba's options. Callers hold code of their callees, so a change of one is one of all."""


def jit(function: F) -> F:
    """Compile ``function`` on first call; cached on disk, without the GIL, IEEE arithmetic as Python's."""
    return _compile(function, DIRECT)


def inlined(function: F) -> F:
    """As :func:`jit`, for small functions: always inlined into compiled callers."""
    return _compile(function, INLINED)


def compile_native(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile now, for one signature, to a function with a C address; the result keeps the code alive."""
    with compiling(_name_of(function)):
        return _cached(lambda **cache: numba.cfunc(signature, **NATIVE, **cache)(function), NATIVE)


def _compile(function: F, options: dict[str, Any]) -> F:
    compiled: Any = _cached(lambda **cache: numba.njit(**options, **cache)(function), options)
    if not numba.config.DISABLE_JIT:
        compiled.compile = functools.partial(_compile_with_notice, compiled.compile, _name_of(function))
    return compiled  # type: ignore[no-any-return]


def _compile_with_notice(compile_for: Callable[[Any], Any], name: str, signature: Any) -> Any:
    with compiling(name):
        return compile_for(signature)


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


class _ByContent(caching._CacheLocator):  # type: ignore[misc]
    """Where the compiled form of a function of this project lies: a folder named by all that it is compiled from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return self._folder.name

    def get_disambiguator(self) -> str:
        return ""

    @classmethod
    def from_function(cls, function: Any, file: str) -> _ByContent | None:
        made_of = [reachable_digest(function.__module__, function.__qualname__.partition(".")[0], file)]
        if made_of[0] is None:
            return None
        # Functions that were made by another, or without a name, may share their file and name.
        made_of += _spelled_out(function.__code__, function.__doc__)
        for cell in function.__closure__ or ():
            held = getattr(cell.cell_contents, "py_func", cell.cell_contents)
            if callable(held) and hasattr(held, "__qualname__"):
                made_of.append(reachable_digest(held.__module__, held.__qualname__.partition(".")[0]))
        key = repr((numba.__version__, llvmlite.__version__, _settings.options, (NATIVE, DIRECT, INLINED), made_of))
        digest = hashlib.sha256(key.encode()).hexdigest()
        return cls(cache_dir() / "compiled" / digest[:2] / digest[2:18])


def _spelled_out(code: CodeType, prose: str | None = None) -> Iterator[str]:
    """A function's byte code with its constants and names, but for the docstring and line numbers."""
    yield f"{code.co_code.hex()} {code.co_names} {code.co_freevars}"
    for place, constant in enumerate(code.co_consts):
        if isinstance(constant, CodeType):
            yield from _spelled_out(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant)))
        elif place > 0 or constant != prose:
            yield repr(constant)


class _CheckedCacheFile(caching.IndexDataCacheFile):  # type: ignore[misc]
    """numba's cache files, with a checksum: what was damaged is compiled again."""

    def load(self, key: Any) -> Any:
        found = super().load(key)
        if found is None and is_missing(self._index_path):
            found = super().load(key)
        if found is None:
            announce(cache_dir() / "compiled")
        return found

    def _dump(self, obj: Any) -> bytes:
        data: bytes = super()._dump(obj)
        return hashlib.sha256(data).digest() + data

    def _whole(self, data: bytes) -> Any:
        if hashlib.sha256(data[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
            raise ValueError("checksum")
        return pickle.loads(data[DIGEST_BYTES:])

    def _load_data(self, name: str) -> Any:
        try:
            return self._whole(Path(self._data_path(name)).read_bytes())
        except (ValueError, EOFError, pickle.UnpicklingError):
            return None

    def _load_index(self) -> dict[Any, Any]:
        try:
            with Path(self._index_path).open("rb") as file:
                version, data = pickle.load(file), file.read()
            stamp, overloads = self._whole(data)
        except (OSError, ValueError, EOFError, pickle.UnpicklingError):
            return {}
        current = version == self._version and stamp == self._source_stamp
        return dict(overloads) if current else {}


class _Settings:
    """What numba's classes have to know while a function is decorated, by one thread at a time."""

    lock = threading.RLock()
    options: dict[str, Any] = {}  # noqa: RUF012


_settings = _Settings()


def _cached(compile_with: Callable[..., Any], options: dict[str, Any]) -> Any:
    # numba reads its global CACHE_DIR, and the classes of its cache, when a function is decorated, so they are set for
    # just that long: the cache of a user's own numba code stays as it was.
    config: Any = numba.config
    with _settings.lock:
        previous = config.CACHE_DIR, caching.IndexDataCacheFile, caching.CacheImpl._locator_classes
        options_before, _settings.options = _settings.options, options
        config.CACHE_DIR = str(cache_dir() / "compiled")
        caching.IndexDataCacheFile = _CheckedCacheFile
        caching.CacheImpl._locator_classes = [_ByContent]
        try:
            return compile_with(cache=True)
        except RuntimeError:  # nothing to key a cache by: a user's own function, or a file that has changed
            return compile_with()
        finally:
            config.CACHE_DIR, caching.IndexDataCacheFile, caching.CacheImpl._locator_classes = previous
            _settings.options = options_before
