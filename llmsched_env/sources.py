"""What the environment is made of: a digest of its syntax, without comments and docstrings.

Results and plans that are kept on disk name it, so that they are computed anew when the code changes.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from contextlib import suppress
from pathlib import Path

from llmsched_env.storage import cache_dir, write_whole

__all__ = ["UPPER", "package_digest"]

UPPER = ("agents", "baselines", "engines", "studies")
"""Parts of the package that stand on the environment, and change no result of which they are no part."""


@functools.cache
def package_digest() -> str:
    """Hash (hex) of all code of llmsched_env but its `UPPER` parts: what stored results and plans depend on.

    To parse it all takes some tenths of a second, so the digest of these very files is kept in the cache folder.
    """
    folder = Path(__file__).parent
    paths = [path for path in sorted(folder.rglob("*.py")) if path.relative_to(folder).parts[0] not in UPPER]
    as_written = hashlib.sha256(sys.version.encode())
    for path in paths:
        as_written.update(path.read_bytes())
    kept = cache_dir() / "digests" / as_written.hexdigest()
    with suppress(OSError, UnicodeDecodeError):
        found = kept.read_text(encoding="ascii")
        if len(found) == len(as_written.hexdigest()):
            return found
    digest = hashlib.sha256()
    for path in paths:
        digest.update(ast.dump(_parsed(path), annotate_fields=False).encode())
    with suppress(OSError), write_whole(kept) as temporary:
        temporary.write_text(digest.hexdigest(), encoding="ascii")
    return digest.hexdigest()


def _parsed(path: Path) -> ast.Module:
    """The syntax of a file, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for part in ast.walk(tree):
        body = getattr(part, "body", None)
        if isinstance(body, list):
            body[:] = [node for node in body if not _is_prose(node)]
    return tree


def _is_prose(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
