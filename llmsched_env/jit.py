"""The one way that this project compiles a function: numba, cached on disk, with the same meaning as plain Python.

``NUMBA_DISABLE_JIT=1`` runs every compiled function as the Python that it is written in, with identical results.

numba's own cache notices an edit of the function's file, but not of a callee or constant in another file, and then
serves stale machine code. So the cache folder is named by a hash of all that the module's functions can reach
(:mod:`llmsched_env.sources`), and by nothing else: clones share it. A damaged cache file counts as missing, where numba
would raise from its own depths. What has to be compiled first is said on stderr: it takes minutes.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching

from llmsched_env.sources import reachable_digest
from llmsched_env.storage import cache_dir

__all__ = ["compile_native", "inlined", "jit"]

DIGEST_BYTES = 32

F = TypeVar("F", bound=Callable[..., Any])


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
    if not numba.config.DISABLE_JIT:
        _announce_compilation(compiled)
    return compiled


_STAGES = {
    "llmsched_env.core.fleet": ("many copies at once", "one to two minutes"),
    "llmsched_env.core.loops": ("the simulator", "one to two minutes"),
    "baselines.search": ("beam search", "one to two minutes"),
    "agents.network": ("agents' networks", "about a minute"),
    "agents.arena": ("agents' episodes", "one to two minutes"),
}
"""What compiling the functions of these modules is for, and what it takes of one core."""

_announced: set[str] = set()


def _announce_compilation(dispatcher: Any) -> None:
    """Have it say so on stderr, once a stage, before it compiles what is not on disk."""
    cache, stage = dispatcher._cache, _STAGES.get(dispatcher.py_func.__module__)
    if stage is None:
        return
    load = cache.load_overload

    def load_or_announce(signature: Any, target: Any) -> Any:
        found = load(signature, target)
        if found is None and stage[0] not in _announced:
            _announced.add(stage[0])
            print(
                f"llmsched_env: compiling {stage[0]} for this machine: {stage[1]} of one core, once; kept in "
                f"{cache_dir() / 'compiled'}.",
                file=sys.stderr,
                flush=True,
            )
        return found

    cache.load_overload = load_or_announce


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
    def from_function(cls, function: Any, _: str) -> _ByContent | None:
        reached = reachable_digest(function.__module__, function.__qualname__.partition(".")[0])
        if reached is None:
            return None
        digest = hashlib.sha256(f"{numba.__version__} {reached}".encode()).hexdigest()
        return cls(cache_dir() / "compiled" / digest[:2] / digest[2:18])


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
    # numba reads its global CACHE_DIR, and the classes of its cache, when a function is decorated, so they are set for
    # just that long, one thread at a time: the cache of a user's own numba code stays as it was.
    settings: Any = numba.config
    with _settings_lock:
        previous = settings.CACHE_DIR, caching.IndexDataCacheFile, caching.CacheImpl._locator_classes
        settings.CACHE_DIR = str(cache_dir() / "compiled")
        caching.IndexDataCacheFile = _CheckedCacheFile
        caching.CacheImpl._locator_classes = [_ByContent, *previous[2]]
        try:
            return compile_with(cache=True)
        except RuntimeError:  # no source file to key a cache by: an interactive session
            return compile_with()
        finally:
            settings.CACHE_DIR, caching.IndexDataCacheFile, caching.CacheImpl._locator_classes = previous
