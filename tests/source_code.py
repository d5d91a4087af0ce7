"""The modules of the package as syntax trees, each parsed once per process, for the tests that read source code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nearcast

PACKAGE = Path(nearcast.__file__).resolve().parent
MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
def parse_module(path: Path) -> ast.Module:
    """Return the tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def list_nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a module."""
    return tuple(ast.walk(parse_module(path)))


def find_imports(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    """Yield the imports of a module: whether each is only for the type checker, and whether it is inside a function."""
    waiting: list[tuple[ast.AST, bool, bool]] = [(parse_module(path), False, False)]
    while waiting:
        node, typing_only, inside = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, typing_only, inside
            continue
        typing_only |= isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        inside |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):  # an import is a statement
            below = getattr(node, field, ())
            waiting += [(each, typing_only, inside) for each in below] if isinstance(below, list) else []


def name_of(path: Path) -> str:
    """Return the path of a module below the package."""
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    """Return the folder or the module at the top of the package that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")
