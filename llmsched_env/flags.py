"""Messages about arguments, in the words of the command line that they were given on."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from llmsched_env.errors import PathError
from llmsched_env.storage import user_path

__all__ = ["in_flags", "path_option", "warnings_in_flags"]


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """The message with options in place of the arguments of Python that they stand for.

    ``name = value`` and ``name='value'`` become ``--option value``. A name by itself is replaced where it is no word of
    English, that is, where it has an underscore.

    Args:
        message: of an error or a warning.
        flags: argument -> option, as ``{"num_requests": "--requests"}``.
    """
    for name, flag in flags.items():
        start = rf"(?<![\w.'-]){name}"
        message = re.sub(rf"{start} ?= ?'([^' ]*)'", rf"{flag} \1", message)
        message = re.sub(rf"{start} ?= ?", f"{flag} ", message)
        if "_" in name:
            message = re.sub(rf"{start}(?![\w='])", flag, message)
    return message


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
