"""Values of environments, compared to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """The same structure, types and bits."""
    if isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for key in other:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(other, tuple) or (isinstance(other, np.ndarray) and other.dtype == object):
        assert len(one) == len(other), where
        for left, right in zip(one, other, strict=True):
            assert_same(left, right, where)
    elif other is None:
        assert one is None, where
    else:
        left, right = np.asarray(one), np.asarray(other)
        assert left.dtype == right.dtype, where
        # Nearly always they are the same bytes, which takes a tenth of the time to see.
        if left.shape != right.shape or left.tobytes() != right.tobytes():
            np.testing.assert_array_equal(left, right, err_msg=where)
