"""The sizes that CONTRIBUTING promises."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("data_shards", "encoder", "train", "index_build", "launch")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines; its docstring is free."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def test_a_docstring_is_not_counted():
    function = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n').body[0]
    assert isinstance(function, ast.FunctionDef)
    assert code_lines(function) == 3


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_can_be_read_at_a_glance(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES, "split the file"
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = {node.name: code_lines(node) for node in functions if code_lines(node) > MAX_FUNCTION_LINES}
    assert not long, "split these functions"
