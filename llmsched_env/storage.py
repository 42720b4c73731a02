"""Where things are kept on disk, and how: whole or not at all."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path

import platformdirs

from llmsched_env.errors import PathError

__all__ = ["cache_dir", "output_file", "output_folder", "user_path", "write_whole"]

_log = logging.getLogger(__name__)

CACHE_VARIABLE = "LLMSCHED_CACHE_DIR"


@functools.cache
def cache_dir() -> Path:
    """The folder for everything that can be rebuilt: ``$LLMSCHED_CACHE_DIR``, or the user's cache folder; absolute.

    A relative ``$LLMSCHED_CACHE_DIR`` counts from the working folder of the first call, and is made absolute for the
    processes that this one starts. Where the folder cannot be written, or the user has no home, it is one of the user's
    own among the temporary files, used again by later processes.

    Raises:
        PathError: no temporary folder can be written either.
    """
    named = os.environ.get(CACHE_VARIABLE, "").strip()
    try:
        wanted = user_path(named).absolute() if named else _home_cache()
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            pass
    except OSError as error:
        folder = _temporary_cache()
        why = (
            str(error).rstrip(".")
            if isinstance(error, PathError)
            else f"it cannot be written ({error.strerror or error})"
        )
        _log.warning(
            "cache folder %s: %s. Assignments and plans are kept in %s. Set %s to a writable folder.",
            named or "of the user",
            why,
            folder,
            CACHE_VARIABLE,
        )
        return folder
    if named:
        os.environ[CACHE_VARIABLE] = str(wanted)
    return wanted


def user_path(path: Path | str) -> Path:
    """A path as users write it, with ``~`` for their home.

    Raises:
        PathError: it begins with ``~``, and that user or home is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise PathError(f"{path} begins with a home folder that is not known: write the whole path.") from None


def _home_cache() -> Path:
    """The user's cache folder.

    Raises:
        PathError: the user has no home.
    """
    try:
        folder = Path(platformdirs.user_cache_dir("llmsched_env"))
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # older versions of platformdirs answer with a folder '~' in the working folder
        raise PathError("there is no home folder for this user id")
    return folder


def _temporary_cache() -> Path:
    """A folder of this user among the temporary files.

    What lies in it is run, so it must be nobody else's. Where the usual name is taken, it is a folder of this process,
    which is removed at its end, also where multiprocessing ends it.

    Raises:
        PathError: none can be made.
    """
    try:
        usual = Path(tempfile.gettempdir()) / f"llmsched_env-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
        usual.mkdir(mode=0o700, exist_ok=True)
        if _is_own(usual):
            with tempfile.TemporaryFile(dir=usual):
                return usual
    except OSError:
        pass
    try:
        own = Path(tempfile.mkdtemp(prefix="llmsched_env-"))
    except OSError as error:
        raise PathError(
            f"no folder for a cache can be written ({error.strerror or error}): set {CACHE_VARIABLE} to one that can."
        ) from error
    Finalize(None, shutil.rmtree, (own,), {"ignore_errors": True}, exitpriority=0)
    return own


def _is_own(folder: Path) -> bool:
    """Whether a folder, not a link to one, belongs to this user and nobody else can write to it."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True  # each user has temporary files of their own there
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


@contextmanager
def write_whole(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it there when the block ends well; otherwise leave no trace.

    Raises:
        PathError: the folder cannot be created or written, or the path is no file but a device or a pipe.
    """
    path = user_path(path)
    _check_replaceable(path)
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


def output_file(path: Path | str) -> Path:
    """Make sure now, before the long work, that a file for results can be written; its folder is created.

    Raises:
        PathError: it is a folder, a device or a pipe, or its folder cannot be created or written.
    """
    path = user_path(path)
    _check_replaceable(path)
    output_folder(path.resolve().parent)
    return path


def _check_replaceable(path: Path) -> None:
    """A file is written beside its path and then moved there, which puts it in the place of a device such as /dev/null.

    Raises:
        PathError: something other than a file is there.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # nothing is there, or the writing will complain
    if stat.S_ISREG(mode):
        return
    kind = "folder" if stat.S_ISDIR(mode) else "device or a pipe, and would be replaced"
    raise PathError(f"cannot write {path}: it is a {kind}. Give the path of a file.")


def output_folder(path: Path | str) -> Path:
    """Create a folder for results and make sure now, before the long work, that it can be written.

    Raises:
        PathError: it is a file, or cannot be created or written.
    """
    path = user_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise PathError(f"cannot write to folder {path}: {error.strerror or error}. Choose another.") from error
