"""Text files as users have them: compressed with gzip or plain; other containers are named."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from llmsched_env.errors import FileFormatError, PathError
from llmsched_env.storage import user_path

__all__ = ["file_name", "file_version", "read_start", "read_text"]

GZIP = b"\x1f\x8b"
MAX_UNPACKED_BYTES = 2**32
"""Most that a compressed file may hold: a file of some MB could fill any memory."""

UNPACK = "unpack it first, or compress it with gzip, which is read as it is."
CONTAINERS = (
    (0, b"PK\x03\x04", f"is a zip archive (as Excel files are): {UNPACK}"),
    (0, b"BZh", f"is compressed with bzip2: {UNPACK}"),
    (0, b"\xfd7zXZ\0", f"is compressed with xz: {UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"is compressed with zstd: {UNPACK}"),
    (0, b"\x04\x22\x4d\x18", f"is compressed with lz4: {UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"is a 7z archive: {UNPACK}"),
    (257, b"ustar", f"is a tar archive: {UNPACK}"),
    (0, b"PAR1", "is a Parquet file: write it as CSV (pandas.read_parquet(...).to_csv(..., index=False))."),
    (0, b"ARROW1", "is an Arrow file: write it as CSV (pandas.read_feather(...).to_csv(..., index=False))."),
    (0, b"\x93NUMPY", "is a numpy array: write it as CSV."),
    (0, b"SQLite format 3", "is an SQLite database: write the table as CSV."),
    (0, b"version https://git-lfs", "is a pointer of Git LFS and not the file: fetch that with git lfs pull."),
    (0, b"<!DOCTYPE html", "is a web page and not the file: download the file itself (on GitHub: Raw)."),
    (0, GZIP, "is compressed twice: unpack it once."),
    (0, b"\xff\xfe", "is UTF-16: save it as UTF-8."),
    (0, b"\xfe\xff", "is UTF-16: save it as UTF-8."),
    (0, b"<html", "is a web page and not the file: download the file itself (on GitHub: Raw)."),
)
"""Where a kind of file that is no table in text has its mark, the mark, and what is said."""


def file_name(path: Path) -> str:
    """What tables call a file: its name without its ending, and without ``.gz``."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def file_version(path: Path, kind: str = "CSV") -> tuple[int, int]:
    """Time of modification in ns and size in bytes; ``kind`` is what messages call the file.

    Raises:
        PathError: the file cannot be read.
    """
    try:
        status = user_path(path).stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, kind, error) from error
    return status.st_mtime_ns, status.st_size


def read_text(path: Path, kind: str = "CSV") -> str:
    """The text of a UTF-8 file, without a byte order mark; ``kind`` is what messages call it.

    Raises:
        PathError: no such file, a folder, or no permission.
        FileFormatError: not UTF-8, with null characters, damaged, another container than gzip, or more than
            :data:`MAX_UNPACKED_BYTES` when it is unpacked.
    """
    data = _bytes(path, kind, None)
    _refuse_containers(path, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileFormatError(
            path, f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as {kind} UTF-8.", line=line
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise FileFormatError(path, f"has a null character: save the file as {kind} UTF-8.", line=line)
    return text


def read_start(path: Path, count: int) -> str:
    """The first ``count`` bytes of a file as text, whatever they are, without blank space at the front.

    Raises:
        PathError, FileFormatError: as :func:`read_text`, as far as the beginning shows it.
    """
    data = _bytes(path, "trace", count)
    _refuse_containers(path, data)
    return data.decode("utf-8-sig", errors="replace").lstrip()


def _bytes(path: Path, kind: str, count: int | None) -> bytes:
    """The first ``count`` bytes of a file, or all of them, unpacked."""
    try:
        with user_path(path).open("rb") as file:
            if not file.read(len(GZIP)).startswith(GZIP):
                file.seek(0)
                return file.read(-1 if count is None else count)
            file.seek(0)
            with gzip.open(file) as unpacked:
                data = unpacked.read(MAX_UNPACKED_BYTES + 1 if count is None else count)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileFormatError(path, f"is compressed, and damaged ({error}): fetch or compress it again.") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise _unreadable(path, kind, error) from error
    if len(data) > MAX_UNPACKED_BYTES:
        raise FileFormatError(
            path, f"is compressed, and holds more than {MAX_UNPACKED_BYTES} bytes: unpack it, or cut it into parts."
        )
    return data


def _refuse_containers(path: Path, data: bytes) -> None:
    for offset, mark, problem in CONTAINERS:
        if data[offset : offset + len(mark)] == mark:
            raise FileFormatError(path, problem)


def _unreadable(path: Path, kind: str, error: Exception) -> PathError:
    if isinstance(error, PathError):
        return error
    reason = getattr(error, "strerror", None) or error
    return PathError(f"cannot read {path}: {reason}. Give the path of a readable {kind} file.")
