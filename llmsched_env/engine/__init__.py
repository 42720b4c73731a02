"""The engine: one simulated episode, in typed Python that Cython compiles when the package is built."""

from __future__ import annotations

from llmsched_env.extensions import compiled

__all__ = ["compiled"]
