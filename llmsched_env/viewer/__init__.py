"""Episodes as pictures: a live frame, a block of text, a window.

They read what a `Simulator` records and never change it. Nothing here is imported before the first picture, and the
libraries that draw come with the extra ``viz``.
"""


__all__ = ["Window", "frame", "text"]
