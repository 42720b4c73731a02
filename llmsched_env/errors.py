"""What can go wrong at the door, one class per cause.

Every message names the thing, the value, the limit and the remedy. The classes also derive from the built-in
exception that a caller would expect (``ValueError``, ``OSError``...), so generic handlers keep working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = [
    "BusyError",
    "CacheError",
    "ConfigError",
    "EpisodeOverError",
    "FileFormatError",
    "InvalidActionError",
    "LLMSchedError",
    "MissingExtraError",
    "PathError",
    "SolverError",
    "UnknownArgumentError",
    "UnknownFieldError",
    "UnknownNameError",
    "WorkerError",
    "WorkloadError",
]


class LLMSchedError(Exception):
    """Base class of every error that this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled as their class called with the message; not every class here takes one.
        return _restored, (type(self), self.args, self.__dict__.copy())


def _restored(kind: type[LLMSchedError], args: tuple[Any, ...], attributes: dict[str, Any]) -> LLMSchedError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigError(LLMSchedError, ValueError):
    """An argument, or a combination of arguments, that no simulation can honour."""


class WorkloadError(LLMSchedError, ValueError):
    """Requests that cannot be served as given (empty, non-positive token counts, NaN, times that go back)."""


class FileFormatError(WorkloadError):
    """A file that could be read but not understood; says which line and column.

    Args:
        path: the file.
        problem: what is wrong and how to mend it.
        line: 1-based line number in the file, header included.
        column: the column's name, where one is at fault.
    """

    def __init__(self, path: Path | str, problem: str, *, line: int | None = None, column: str | None = None) -> None:
        self.path, self.line, self.column = Path(path), line, column
        where = str(path)
        if line is not None:
            where += f", line {line}"
        if column is not None:
            where += f", column {column!r}"
        super().__init__(f"{where}: {problem}")


class PathError(LLMSchedError, OSError):
    """A path that cannot be read from or written to."""


class CacheError(LLMSchedError):
    """A cache entry that is damaged. Never reaches a user: the entry is rebuilt."""


class SolverError(LLMSchedError, RuntimeError):
    """No usable MIP solver, or a solver that returned no solution."""


class InvalidActionError(LLMSchedError, ValueError):
    """An action outside the action space (an infeasible one inside it is not an error)."""


class MissingExtraError(LLMSchedError, ImportError):
    """An optional library that is not installed."""


class EpisodeOverError(LLMSchedError, RuntimeError):
    """``step`` before ``reset``, or after the episode has ended."""


class BusyError(LLMSchedError, RuntimeError):
    """An episode was to be changed while it runs: by another thread, or by the rule that it asks."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is running: give each thread one of its own, and do not step or reset from inside a rule "
            "(Simulator.fork makes another episode)."
        )


class WorkerError(LLMSchedError, RuntimeError):
    """A worker process that died, or an error in one that cannot be carried over as it is."""


class InvalidViewError(LLMSchedError, TypeError):
    """A policy was asked about something that is no view, an observation say.

    Args:
        policy: the policy's name.
        given: what it was asked about.
    """

    def __init__(self, policy: str, given: object) -> None:
        super().__init__(
            f"policy {policy!r} was asked about a {type(given).__name__}: act takes a view, as "
            "env.unwrapped.simulator.view is, not an observation."
        )


class UnknownNameError(LLMSchedError, ValueError):
    """A name that is not in a registry, with the nearest ones that are.

    Args:
        kind: what was looked up, in the singular ("policy").
        name: what the user wrote.
        known: the names that exist.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        self.kind, self.name, self.close_matches = kind, name, _close(name, names)
        super().__init__(f"unknown {kind} {name!r}.{_hint(self.close_matches)} Known: {', '.join(names)}.")


class UnknownArgumentError(UnknownNameError, TypeError):
    """A keyword argument that does not exist, with the nearest ones that do.

    It reads as Python's own: libraries try an argument (``frameskip``) and wait for "unexpected keyword argument".

    Args:
        name: what the user wrote; or a whole message, where there is nothing else: ``gymnasium.make`` raises the error
            again with more text.
        known: the arguments that exist.
    """

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        names = sorted(known)
        self.kind, self.name, self.close_matches = "argument", name, _close(name, names)
        if names:
            name = f"got an unexpected keyword argument {name!r}.{_hint(self.close_matches)} Known: {', '.join(names)}."
        Exception.__init__(self, name)


class UnknownFieldError(UnknownNameError, AttributeError):  # type: ignore[misc]  # both have a name
    """A field that a view does not have, with the nearest ones that it has.

    Args:
        name: what the user wrote.
        known: the fields that exist.
    """

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        UnknownNameError.__init__(self, "field of a view", name, known)


def _close(name: object, names: list[str]) -> list[str]:
    return difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)


def _hint(close_matches: list[str]) -> str:
    return f" Did you mean {' or '.join(map(repr, close_matches))}?" if close_matches else ""
