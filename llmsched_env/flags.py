"""Messages about arguments, in the words of the command line that they were given on."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from llmsched_env.errors import LLMSchedError, PathError
from llmsched_env.storage import user_path

__all__ = ["flags_of", "in_flags", "path_option", "run_command", "warnings_in_flags"]

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "num_clients": "clients",
        "num_requests": "requests",
        "prefill_token_cap": "prefill_cap",
        "load": "loads",
        "requests_per_s": "rate",
        "validation_cases": "cases",
    }
)
"""Argument of Python -> the option's name where that is another."""

ASSIGNED = re.compile(
    r"(?P<lead>^|[.:;?] |, |\b(?:and|but|exceeds|give|needs?|or|pass|set|with) )(?P<name>\w+)"
    r"(?: ?= ?)(?:'(?P<word>[^' ]*)'|(?=\S))",
    re.IGNORECASE,
)
"""``name = value`` where our messages have it: at the beginning of a sentence, or after a word that leads to it."""

NAMED = re.compile(
    r"\b(?:(?:take )?a scenario with|give|leave out|lower|pass|raise|set|take) (?P<names>\w+(?:(?:, | and | or )\w+)*)"
    r"|`(?P<quoted>\w+)`",
    re.IGNORECASE,
)
"""Names by themselves in a remedy, or one in backticks."""

NAME = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b")
"""In a remedy: what has no underscore may be a word of English."""


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Argument that a message may name -> the option of the parser that it was given by."""
    options = {
        action.dest: action.option_strings[-1]
        for action in parser._actions  # which argparse has no public name for
        if action.option_strings and action.nargs != 0
    }
    others = {name: options[option] for name, option in ALIASES.items() if option in options}
    return {**others, **options}


def run_command(
    flags: Mapping[str, str],
    work: Callable[[], int | None],
    interrupted: str = "interrupted: nothing half-written is left behind.",
) -> int:
    """The exit status: the work's, 0 for none; 2 for what cannot be done, in its options' words; 130 for Ctrl-C.

    141 where nobody reads on, as in ``llmsched ... | head``.
    """
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except LLMSchedError as error:
        print(f"error: {in_flags(str(error), flags)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it ends
        return 141


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """The message with options in place of the arguments of Python that they stand for.

    ``name = value`` and ``name='value'`` become ``--option value`` at the beginning of a sentence and after words such
    as 'with' and 'give'; a name by itself becomes ``--option`` in a remedy ('pass num_requests') and in backticks.
    What stands in a call, as ``Scenario(num_clients=5)``, is Python and stays.

    Args:
        message: of an error or a warning.
        flags: argument -> option, as of :func:`flags_of`.
    """

    def assigned(match: re.Match[str]) -> str:
        flag = flags.get(match["name"])
        if flag is None or _in_a_call(message, match.start("name")):
            return match[0]
        return f"{match['lead']}{flag} {match['word'] or ''}"

    def named(match: re.Match[str]) -> str:
        if _in_a_call(message, match.start()):
            return match[0]
        if match["quoted"] is not None:
            return flags.get(match["quoted"], match[0])
        return NAME.sub(lambda name: flags.get(name[0], name[0]), match[0])

    message = ASSIGNED.sub(assigned, message)
    return NAMED.sub(named, message)


def _in_a_call(message: str, place: int) -> bool:
    """Whether a place of a message is between the parentheses of a call."""
    calls: list[bool] = []
    for before, here in zip(" " + message, message[:place], strict=False):
        if here == "(":
            calls.append(before.isidentifier())
        elif here == ")" and calls:
            calls.pop()
    return any(calls)


@contextmanager
def warnings_in_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Show this project's warnings as a line on stderr, with options in place of arguments."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category.__module__.startswith("llmsched_env."):
                print(f"warning: {in_flags(str(message), flags)}", file=sys.stderr)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def path_option(text: str) -> Path:
    """The path of an option, for argparse: a shell leaves the tilde in ``--out=~/results`` as it is.

    Raises:
        argparse.ArgumentTypeError: a home that is not known.
    """
    try:
        return user_path(text)
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
