"""Markdown out of what the code says: tables, docstrings, slugs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([^`]+)`")


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table, with bars inside of cells escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def slug(name: str) -> str:
    """The file name of an environment's page: "LLMSched/GSM8K-v0" has "gsm8k-v0"."""
    return name.rpartition("/")[2].lower()


def plain(text: str) -> str:
    """reStructuredText of a docstring as Markdown: roles and literals become code."""
    parts = re.split(r"(``.+?``|`[^`]+`)", ROLE.sub(r"``\1``", text), flags=re.DOTALL)
    return "".join(
        f"`{part.strip('`')}`" if part.startswith("`") else re.sub(r"([*<>])", r"\\\1", part) for part in parts
    )


def paragraphs(documented: Any) -> list[str]:
    """Of a docstring, without its sections of arguments and errors."""
    text = inspect.getdoc(documented) or ""
    return [part for part in text.split("\n\n") if not re.match(r"(Args|Raises|Attributes|Returns):\n", part)]


def sentence(text: str) -> str:
    """The first one, on one line."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z(`])", " ".join(text.split()), maxsplit=1)[0]


def arguments(documented: Any) -> dict[str, str]:
    """What a docstring says of each argument, by name."""
    section = (inspect.getdoc(documented) or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.+(?:\n     .+)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
