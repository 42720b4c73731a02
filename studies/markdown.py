"""Markdown: tables, and pages with tables between markers."""

from __future__ import annotations

from collections.abc import Sequence

from llmsched_env.errors import PathError

__all__ = ["grid", "replaced"]


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(page: str, name: str, text: str) -> str:
    """The page with ``text`` between the markers of that name.

    Raises:
        PathError: the page has no such markers, or has them twice.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise PathError(f"the page has {page.count(begin)} lines '{begin.strip()}': exactly one has to be there.")
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{text}\n{end}{tail}"
