"""Where things are kept on disk, and how: whole or not at all."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from llmsched_env.errors import PathError

__all__ = ["cache_dir", "output_folder", "write_whole"]

_log = logging.getLogger(__name__)

CACHE_VARIABLE = "LLMSCHED_CACHE_DIR"


@functools.cache
def cache_dir() -> Path:
    """The folder for everything that can be rebuilt: ``$LLMSCHED_CACHE_DIR``, or the user's cache folder.

    Falls back to a temporary folder of this process where that one cannot be written: slower, never fatal.
    """
    wanted = Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("llmsched_env"))
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError as error:
        own = Path(tempfile.mkdtemp(prefix="llmsched_env-"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        _log.warning(
            "cache folder %s cannot be written (%s): compiled code and assignments are kept for this process only. "
            "Set %s to a writable folder.",
            wanted,
            error.strerror or error,
            CACHE_VARIABLE,
        )
        return own


@contextmanager
def write_whole(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it there when the block ends well; otherwise leave no trace.

    Raises:
        PathError: the folder cannot be created or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise PathError(f"cannot write {path}: {error.strerror or error}. Choose a writable folder.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise PathError(f"cannot write {path}: {error.strerror or error}. Choose a writable folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def output_folder(path: Path | str) -> Path:
    """Create a folder for results and make sure now, before the long work, that it can be written.

    Raises:
        PathError: it is a file, or cannot be created or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise PathError(f"cannot write to folder {path}: {error.strerror or error}. Choose another.") from error
