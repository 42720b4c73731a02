"""The inner loops of the offline step: typed Python, compiled as the engine is (`llmsched_env/extensions.py`).

Arrays are read and written through memoryviews, so that items are Python's numbers where this runs uncompiled.
"""

from __future__ import annotations

from llmsched_env.extensions import compiled

__all__ = ["compiled"]
