"""The sizes that CONTRIBUTING.md sets: files of at most 400 lines, functions of at most 60."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("raycd", "jobs", "serve", "tune")


def python(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def test_no_file_is_longer_than_400_lines() -> None:
    files = python(*ROOMS, "tests")
    assert len(files) > 500
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in files}
    assert {path: count for path, count in lines.items() if count > 400} == {}


def test_no_function_outside_of_the_tests_is_longer_than_60_lines() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": size
        for path in python(*ROOMS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
        if (size := node.end_lineno - node.lineno + 1) > 60
    }
    assert long == {}
