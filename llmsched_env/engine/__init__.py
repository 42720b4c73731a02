"""The engine: one simulated episode, in typed Python that Cython compiles when the package is built."""

from __future__ import annotations

import warnings

from llmsched_env.extensions import compiled

__all__ = ["compiled"]

# A rule of a user's own, compiled against classes that have changed since, would read other fields than it means.
warnings.filterwarnings("error", r"llmsched_env\.engine\.\S+ size changed", RuntimeWarning)
