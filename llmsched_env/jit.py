"""The one way that this project compiles a function: numba, cached on disk, with the same meaning as plain Python.

``NUMBA_DISABLE_JIT=1`` runs every compiled function as the Python that it is written in, with identical results.

numba's own cache notices an edit of the function's file, but not of a callee or constant in another file, and then
serves stale machine code. So the cache folder is named by a hash of every source file of the package. A damaged
cache file counts as missing, where numba would raise from its own depths.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching

from llmsched_env.storage import cache_dir

__all__ = ["compile_native", "inlined", "jit", "sources_digest"]

DIGEST_BYTES = 32

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def sources_digest() -> str:
    """Hash (hex) of numba's version and of the package's sources: what compiled code and stored plans depend on."""
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
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


class _CheckedCacheFile(caching.IndexDataCacheFile):  # type: ignore[misc]
    """numba's cache files, with a checksum: what was damaged is compiled again."""

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


_settings_lock = threading.RLock()


def _cached(compile_with: Callable[..., Any]) -> Any:
    # numba reads its global CACHE_DIR, and the class of its cache files, when a function is decorated, so they are set
    # for just that long, one thread at a time: the cache of a user's own numba code stays as it was.
    settings: Any = numba.config
    with _settings_lock:
        previous = settings.CACHE_DIR, caching.IndexDataCacheFile
        settings.CACHE_DIR = str(cache_dir() / "compiled" / sources_digest()[:16])
        caching.IndexDataCacheFile = _CheckedCacheFile
        try:
            return compile_with(cache=True)
        except RuntimeError:  # no source file to key a cache by: an interactive session
            return compile_with()
        finally:
            settings.CACHE_DIR, caching.IndexDataCacheFile = previous
