"""Python functions of recipes: what can be said about one before it runs. What keeps it in is the sandbox."""

from __future__ import annotations

import ast

from libs.common.domain import invalid

LONGEST = 20_000
# The function that is called for each row.
ENTRY = "row"
# What is there to import: the sandbox loads these before it closes the file system.
# fmt: off
MODULES = (
    "base64", "bisect", "calendar", "collections", "collections.abc", "copy", "dataclasses", "datetime", "decimal",
    "difflib", "enum", "fractions", "functools", "hashlib", "heapq", "html", "itertools", "json", "math",
    "operator", "random", "re", "statistics", "string", "textwrap", "time", "typing", "unicodedata", "urllib.parse",
)
# fmt: on


def check_function(source: str, field: str) -> None:
    """Raises INVALID_FIELD, naming `field` and the line, for code that cannot run."""
    if len(source) > LONGEST:
        raise invalid(field, f"is longer than {LONGEST} characters")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise invalid(field, f"line {error.lineno}: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError):
        raise invalid(field, "is no Python that can be read") from None
    if not any(_is_entry(statement) for statement in tree.body):
        raise invalid(field, f"has no `def {ENTRY}(row)`")
    for line, module in _imports(tree):
        if module not in MODULES:
            raise invalid(field, f"line {line} imports {module[:64]}; there are {', '.join(MODULES)}")


def _is_entry(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.FunctionDef) or statement.name != ENTRY:
        return False
    given = statement.args
    needed = len(given.posonlyargs) + len(given.args) - len(given.defaults)
    keywords = [default for default in given.kw_defaults if default is None]
    return bool(given.posonlyargs or given.args) and needed <= 1 and not keywords


def _imports(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and module of every import."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or "."))
    return found
