"""Libraries that only extras need, imported when the first picture is drawn, or file written."""

from __future__ import annotations

import importlib
from typing import Any

from llmsched_env.errors import MissingExtraError

__all__ = ["extra_module", "viz_module"]


def viz_module(name: str, library: str, purpose: str) -> Any:
    """Import a module of the extra ``viz``.

    Args:
        name: the module ("PIL.ImageDraw").
        library: the distribution that holds it ("pillow").
        purpose: what it is needed for, as the subject of a sentence.

    Raises:
        MissingExtraError: it is not installed.
    """
    return extra_module(name, library, purpose, "viz")


def extra_module(name: str, library: str, purpose: str, extra: str) -> Any:
    """The same of any extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {library}, which cannot be imported ({error}): install the extra {extra!r}, "
            f"pip install 'llmsched-env[{extra}]' (from a clone: pip install -e '.[{extra}]')."
        ) from error
