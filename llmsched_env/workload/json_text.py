"""JSON as recordings have it: keys of the first object, objects line by line, numbers checked; complaints say where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsched_env.errors import FileFormatError
from llmsched_env.workload.requests import MAX_TOKENS

__all__ = ["first_keys", "json_lines", "json_number", "json_tokens", "json_whole", "token_list"]

TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?|[{}\[\]]', re.DOTALL)

WHOLE = "a whole number of tokens"


def first_keys(start: str) -> list[str]:
    """Keys of the first object of a text that begins with ``{`` or ``[``, as far as the text goes."""
    depth = 0
    keys: list[str] = []
    for match in TOKEN.finditer(start):
        mark = match[0]
        if mark in "{[":
            depth += 1
        elif mark in "}]":
            depth -= 1
            if mark == "}" and depth == start.startswith("["):
                break
        elif match[2] is not None and depth == 1 + start.startswith("["):
            keys.append(match[1])
    return keys


def json_lines(path: Path, text: str, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a text with one JSON object a line; blank lines are skipped, decimals come as ``Decimal``.

    Args:
        path: the file, for messages.
        text: its contents.
        example: what a line should look like, for messages.

    Raises:
        FileFormatError: a line that is not one object, or no line.
    """
    decode = json.JSONDecoder(parse_float=Decimal, parse_constant=Decimal).decode
    empty = True
    for line, record in enumerate(text.split("\n"), start=1):
        if not record or record.isspace():
            continue
        try:
            entry = decode(record)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise FileFormatError(path, f"is not JSON ({error}): write one object a line.", line=line) from None
        if not isinstance(entry, dict):
            raise FileFormatError(path, f"is not a JSON object: write {example}", line=line)
        empty = False
        yield line, entry
    if empty:
        raise FileFormatError(path, f"is empty: write {example}", line=1)


def json_whole(path: Path, text: str) -> Any:
    """The value of a text that is one JSON document.

    Raises:
        FileFormatError: it is not, or only its beginning.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = not text[error.pos :].strip() or error.msg.startswith("Unterminated")
        problem = f"is {'cut off' if cut else 'not JSON'} ({error}): write or fetch it again."
        raise FileFormatError(path, problem, line=error.lineno) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets without end
        raise FileFormatError(path, f"is not JSON ({error}): write it again.") from None


def json_tokens(path: Path, line: int, key: str, value: Any, least: int) -> int:
    """A value as a number of tokens, at least ``least``.

    Raises:
        FileFormatError: it is none.
    """
    number = json_number(path, line, key, value, least, MAX_TOKENS, WHOLE)
    if number != int(number):
        raise FileFormatError(path, f"{str(value)[:40]} is not whole: write {WHOLE}.", line=line, column=key)
    return int(number)


def json_number(
    path: Path, line: int | None, key: str, value: Any, least: int, most: int, meaning: str, which: str = ""
) -> Any:
    """A value that is a finite number in ``[least, most]``; ``which`` is what messages say before it.

    Raises:
        FileFormatError: it is not.
    """
    shown = repr(value) if isinstance(value, str) else str(value)
    shown = which + (shown if len(shown) <= 40 else shown[:37] + "...")
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not Decimal(value).is_finite():
        problem = f"{shown} is not a finite number: write {meaning}, in [{least}, {most}]."
    elif not least <= value <= most:
        problem = f"{shown} is out of range: write {meaning}, in [{least}, {most}]."
    else:
        return value
    raise FileFormatError(path, problem, line=line, column=key)


def token_list(path: Path, key: str, values: list[Any], least: int) -> NDArray[np.int64]:
    """(n,) token counts of at least ``least`` from a list.

    Raises:
        FileFormatError: an entry that is none, by its place in the list, from 0.
    """
    if set(map(type, values)) != {int} or min(values) < least or max(values) > MAX_TOKENS:
        for i, value in enumerate(values):
            number = json_number(path, None, key, value, least, MAX_TOKENS, WHOLE, f"entry {i}: ")
            if number != int(number):
                raise FileFormatError(path, f"entry {i}: {number} is not whole: write {WHOLE}.", column=key)
    return np.array(values, np.int64)
