"""Arrays of the engine: as memoryviews, whose items are Python's numbers where the engine runs uncompiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE_BYTES, WORD_BYTES = 64, 8


class Region:
    """A stretch of memory for the arrays of many episodes, so that they lie close together.

    NumPy asks for large pages for arrays of 4 MiB and more: with a thousand episodes in as many places, most of a step
    would be spent on looking up where its pages are.

    Args:
        size: in bytes.

    Attributes:
        block: (size,) uint8, from the beginning of a line on.
        taken: bytes in use.
        begun: place at which the arrays of an episode begin.
    """

    block: Any
    taken: Any
    begun: Any

    def __init__(self, size: int) -> None:
        memory = np.empty(size + LINE_BYTES, np.uint8)
        first = -int(memory.ctypes.data) % LINE_BYTES
        self.block = memory[first : first + size]
        self.taken = 0
        self.begun = 0

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return len(self.block) - int(self.taken)

    def end_part(self) -> None:
        """The next episode begins an odd number of cache lines after the last: in another part of a cache."""
        self.taken += -self.taken % LINE_BYTES
        if (self.taken - self.begun) // LINE_BYTES % 2 == 0:
            self.taken += LINE_BYTES
        self.begun = self.taken

    def array(self, shape: tuple[int, ...], kind: Any) -> Any:
        """An array in it, or elsewhere where it is full. Short ones share a line of memory."""
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        start = self.taken
        if start % LINE_BYTES + size > LINE_BYTES:
            start += -start % LINE_BYTES
        if start + size > len(self.block):
            return np.empty(shape, kind)
        self.taken = start - (-size // WORD_BYTES) * WORD_BYTES
        return np.ndarray(shape, kind, self.block, start)


_region: ContextVar[Region | None] = ContextVar("region", default=None)
"""Where this thread makes arrays."""


@contextmanager
def arrays_in(region: Region) -> Iterator[None]:
    """Take the arrays of what is made inside, by this thread, from this region."""
    before = _region.set(region)
    try:
        yield
    finally:
        _region.reset(before)


def _new(shape: tuple[int, ...], kind: Any) -> Any:
    region = _region.get()
    return np.empty(shape, kind) if region is None else region.array(shape, kind)


def view_of(array: NDArray[Any]) -> Any:
    """The memory of a NumPy array, which its owner no longer writes to."""
    return memoryview(array)  # type: ignore[arg-type]  # Buffer is a name of Python 3.12's


def table_of(array: NDArray[Any]) -> Any:
    """The memory of a copy of it."""
    out = _new(array.shape, array.dtype)
    out[...] = array
    return view_of(out)


def filled(count: int, value: int, kind: Any) -> Any:
    """(count,) times ``value``."""
    out = _new((count,), kind)
    out.fill(value)
    return view_of(out)


def int32s(count: int, value: int = 0) -> Any:
    """(count,) int32."""
    return filled(count, value, np.int32)


def int64s(count: int, value: int = 0) -> Any:
    """(count,) int64."""
    return filled(count, value, np.int64)


def zero_words(count: int) -> Any:
    """(count,) uint64 of zeros: an empty set of `llmsched_env.engine.bitset`."""
    return filled(count, 0, np.uint64)
