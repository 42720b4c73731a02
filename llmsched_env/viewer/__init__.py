"""Episodes as pictures: a live frame, a block of text, a window.

They read what a `Simulator` records and never change it. The libraries that draw come with the extra ``viz`` and are
imported when the first picture is drawn.
"""

from llmsched_env.viewer.frame import frame
from llmsched_env.viewer.text import text
from llmsched_env.viewer.window import Window

__all__ = ["Window", "frame", "text"]
