"""Episodes as pictures: a live frame, a block of text, a window.

They read what a `Simulator` records and never change it. The libraries that draw come with the extra ``viz`` and are
imported when the first picture is drawn.
"""

from llmsched_env.viewer.extras import viz_module
from llmsched_env.viewer.frame import check_size, frame
from llmsched_env.viewer.text import text
from llmsched_env.viewer.window import Window, pygame_module

__all__ = ["Window", "check", "frame", "text"]


def check(width: int, height: int, *, window: bool = False) -> None:
    """Whether frames of this size can be drawn, and shown in a window: to be asked before long work.

    Raises:
        ConfigError: a size that is odd or too small.
        MissingExtraError: a library is not installed.
    """
    check_size(width, height)
    viz_module("PIL.ImageDraw", "pillow", "Drawing a frame")
    if window:
        pygame_module()
