"""Arrays of the engine: as memoryviews, whose items are Python's numbers where the engine runs uncompiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def view_of(array: NDArray[Any]) -> Any:
    """The memory of a NumPy array, which its owner no longer writes to."""
    return memoryview(array)  # type: ignore[arg-type]  # Buffer is a name of Python 3.12's


def int32s(count: int, value: int = 0) -> Any:
    """(count,) int32."""
    return view_of(np.full(count, value, np.int32))


def int64s(count: int, value: int = 0) -> Any:
    """(count,) int64."""
    return view_of(np.full(count, value, np.int64))


def zero_words(count: int) -> Any:
    """(count,) uint64 of zeros: an empty set of `llmsched_env.engine.bitset`."""
    return view_of(np.zeros(count, np.uint64))
