"""How far long work has come: a bar on a terminal, a line now and then elsewhere, as in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

__all__ = ["Progress"]

FIRST_LINE_S = 10.0
LINE_EVERY_S = 30.0
LINE = "{desc}{n:,} of {total:,} {unit}s after {elapsed}, about {remaining} to go{postfix}"


class Progress(tqdm):  # type: ignore[misc]
    """A bar of tqdm on stderr.

    Where stderr is no terminal it writes a plain line after ten seconds and then every half minute, and none where less
    than that is to do.

    Args:
        work: what to go over, if it is a loop.
        total: how much there is to do, where `work` does not tell.
        desc: what is done.
        unit: of what there is so much.
        initial: how much was done before.
        leave: keep the bar when all is done.
        hidden: show nothing at all.
        after_s: show nothing before so many seconds.
    """

    disable: bool

    def __init__(
        self,
        work: Any = None,
        *,
        total: int | None = None,
        desc: str = "",
        unit: str = "step",
        initial: int = 0,
        leave: bool = False,
        hidden: bool = False,
        after_s: float = 0.0,
    ) -> None:
        self.in_lines = not (hasattr(sys.stderr, "isatty") and sys.stderr.isatty())
        """Whether lines are written in place of a bar."""
        shown: dict[str, Any] = {"delay": after_s}
        if self.in_lines:
            shown = dict.fromkeys(("mininterval", "maxinterval", "delay"), FIRST_LINE_S) | {"bar_format": LINE}
        shown |= {"desc": desc and f"{desc}: ", "unit": unit, "leave": leave, "file": sys.stderr}
        super().__init__(work, total=total, initial=initial, disable=hidden, **shown)
        assert hidden or self.total is not None, "say how much there is to do"

    def __iter__(self) -> Iterator[Any]:
        """As tqdm's, which keeps an interval of its own, and counts twice where that changes on the way."""
        try:
            for item in self.iterable:
                yield item
                self.update()
        finally:
            self.close()

    def tell(self, beside: str, line: str) -> None:
        """Show what has come out so far: ``beside`` the bar, or ``line`` as one of its own."""
        if not self.in_lines:
            self.set_postfix_str(beside)
        elif not self.disable:
            self.set_postfix_str(beside, refresh=False)
            self._write(line)

    def _write(self, line: str) -> None:
        print(line, file=self.fp, flush=True)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """As tqdm's; in a log a line, without a carriage return."""
        if not self.in_lines:
            return super().display(msg, pos)
        self.mininterval = self.maxinterval = LINE_EVERY_S
        self._write(str(self) if msg is None else msg)
        return True

    def close(self) -> None:
        """As tqdm's; in a log nothing is left to be wiped out."""
        if not self.in_lines:
            super().close()
        elif not self.disable:
            self.disable = True
            self._decr_instances(self)
