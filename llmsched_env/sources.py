"""What this package is made of: a digest of its syntax, without comments and docstrings.

Results and plans that are kept on disk name it, so that they are computed anew when the code changes.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

__all__ = ["package_digest"]


@functools.cache
def package_digest() -> str:
    """Hash (hex) of all code of llmsched_env: what stored results and plans depend on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(ast.dump(_parsed(path), annotate_fields=False).encode())
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
