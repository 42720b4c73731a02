"""While code is compiled: it is said on stderr, done by one process at a time, and left out of rates of progress.

A first use takes a minute or more of one core. Whoever begins to compile a function holds a lock beside its cache file;
another process that needs the same function waits, and then reads what was written.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: two processes may compile the same function, which costs time only
    fcntl = None  # type: ignore[assignment]

__all__ = ["add_seconds", "announce", "compiling", "is_missing", "seconds_compiling", "wait_silently"]

STAGES = {
    "llmsched_env.core.transition.start_episode": ("the simulator", "about a minute"),
    "llmsched_env.core.loops.step": ("the simulator", "about a minute"),
    "llmsched_env.core.loops.advance_once": ("whole episodes", "some ten seconds"),
    "llmsched_env.core.loops.run_rule": ("whole episodes", "some ten seconds"),
    "llmsched_env.core.fleet": ("many copies at once", "one to two minutes"),
    "baselines.search": ("beam search", "about a minute"),
    "baselines.foresight": ("the planner foresight", "about a minute"),
    "agents.arena": ("training episodes", "some ten seconds"),
}
"""What compiling a function, or those of a module, is for, and what it takes of one core. The others take seconds."""


class _Span(threading.local):
    """What this thread compiles: the outermost function, and the lock that it holds."""

    def __init__(self) -> None:
        self.function = ""
        self.lock: IO[bytes] | None = None


_span = _Span()
_told: set[tuple[str, str]] = set()
_silent = False

_clock = threading.Lock()
_running, _since_s, _total_s = 0, 0.0, 0.0


def seconds_compiling() -> float:
    """Seconds in which this process has compiled, loaded compiled code or waited for it, up to now."""
    with _clock:
        return _total_s + (time.monotonic() - _since_s if _running else 0.0)


def add_seconds(seconds: float) -> None:
    """Count seconds in which others compiled what this process waits for."""
    global _total_s  # noqa: PLW0603
    with _clock:
        _total_s += seconds


def wait_silently() -> None:
    """Say nothing of waiting in this process, one of several workers: what is compiled is said where it is."""
    global _silent  # noqa: PLW0603
    _silent = True


@contextmanager
def compiling(function: str) -> Iterator[None]:
    """Around the compilation of ``function``, a module and a name with a dot between; its callees' are inside."""
    global _running, _since_s, _total_s  # noqa: PLW0603
    if _span.function:
        yield
        return
    _span.function = function
    with _clock:
        _since_s = _since_s if _running else time.monotonic()
        _running += 1
    try:
        yield
    finally:
        _span.function = ""
        if _span.lock is not None:
            _span.lock.close()
            _span.lock = None
        with _clock:
            _running -= 1
            _total_s += 0.0 if _running else time.monotonic() - _since_s


def is_missing(cache_file: str) -> bool:
    """Take the lock for what is not in ``cache_file``, unless this thread holds one; whether to look again.

    After a wait, or where another process finished first, it may be there.
    """
    if not _span.function or _span.lock is not None:
        return False
    with suppress(OSError):  # a folder that cannot be written, or one without locks
        Path(cache_file).parent.mkdir(parents=True, exist_ok=True)
        _span.lock = Path(f"{cache_file}.lock").open("wb")  # noqa: SIM115  # held until the span ends
        if fcntl is not None:
            try:
                fcntl.flock(_span.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not _silent:
                    _say("waiting for another process that compiles {stage} for this machine.")
                fcntl.flock(_span.lock, fcntl.LOCK_EX)
    return _span.lock is not None


def announce(folder: Path) -> None:
    """Say what this thread is about to compile, unless it takes seconds only."""
    _say(f"compiling {{stage}} for this machine: {{takes}} of one core, once; kept in {folder}.")


def _say(text: str) -> None:
    """A line on stderr, once for each stage."""
    function = _span.function
    stage, takes = STAGES.get(function) or STAGES.get(function.rpartition(".")[0]) or ("", "")
    if not stage:
        return
    if (text, stage) in _told:
        return
    _told.add((text, stage))
    line = "llmsched_env: " + text.replace("{stage}", stage).replace("{takes}", takes)
    bars: Any = sys.modules.get("tqdm")
    if bars is not None and sys.stderr.isatty():  # above the bars, not amid them
        bars.tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)
