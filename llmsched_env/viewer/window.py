"""A window that shows an episode while it runs."""

from __future__ import annotations

import os
from typing import Any

from llmsched_env.errors import ConfigError
from llmsched_env.simulator import Simulator
from llmsched_env.viewer.extras import viz_module
from llmsched_env.viewer.frame import frame

__all__ = ["Window", "pygame_module"]


def pygame_module() -> Any:
    """What shows windows.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    return viz_module("pygame", "pygame-ce", "A window (render_mode='human')")


class Window:
    """A window with the live timeline; it opens at the first :meth:`show`.

    If the user closes it, later calls of :meth:`show` do nothing: a run is never lost to a closed window.

    Args:
        fps: most frames a second; :meth:`show` waits so as not to exceed it.
        width: pixels.
        height: pixels.

    Attributes:
        is_open: whether it is on the screen.

    Raises:
        MissingExtraError: pygame-ce is not installed.
    """

    def __init__(self, fps: int, *, width: int = 960, height: int = 600) -> None:
        self._pygame = pygame_module()
        self._fps, self._size = fps, (width, height)
        self._screen: Any = None
        self._clock: Any = None
        self._dismissed = False

    @property
    def is_open(self) -> bool:
        """Whether it is on the screen."""
        return self._screen is not None

    def show(self, simulator: Simulator) -> None:
        """Show the episode so far.

        Raises:
            ConfigError: there is no display, or the episode was not recorded.
        """
        if self._dismissed:
            return
        pygame = self._pygame
        if self._screen is None:
            self._open()
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            self.close()
            self._dismissed = True
            return
        width, height = self._size
        pixels = frame(simulator, width=width, height=height)
        self._screen.blit(pygame.image.frombuffer(pixels.tobytes(), self._size, "RGB"), (0, 0))
        pygame.display.flip()
        self._clock.tick(self._fps)

    def _open(self) -> None:
        pygame = self._pygame
        try:
            pygame.display.init()
            self._screen = pygame.display.set_mode(self._size)
        except pygame.error as error:
            raise ConfigError(
                f"render_mode='human' cannot open a window ({error}): use 'rgb_array' where there is no display."
            ) from error
        pygame.display.set_caption("LLMSched: clients × time")
        self._clock = pygame.time.Clock()

    def close(self) -> None:
        """Close the window; closing twice is harmless."""
        if self._screen is not None:
            self._screen = None
            self._pygame.display.quit()
