"""The syntax trees of the project's files, for the tests that look at all of them: each is made and walked once."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def nodes_of(tree: ast.Module) -> tuple[ast.AST, ...]:
    """What `ast.walk` gives, in its order."""
    return tuple(ast.walk(tree))
