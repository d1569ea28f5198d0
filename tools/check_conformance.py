"""Check docs/conformance.md: a row per item of the API document's checklist, each with real tests.

A row is `| number | what | tests |`; tests are `path::name` or `path::Class::name`, separated by
commas, in backquotes. The rows `| number.number | what | tests |` are the sentences of an item.
Every row names a test. The tests are looked up in the sources, so nothing needs to be built.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

TABLE = Path("docs/conformance.md")
ITEMS = range(1, 63)
ROW = re.compile(r"^\|\s*(\d+(?:\.\w+)?)\s*\|\s*(.+?)\s*\|\s*(.*?)\s*\|\s*$")
REFERENCE = re.compile(r"`([^`]+)`")


def rows_of(text: str) -> dict[str, str]:
    """Return the tests column of each item and sentence, by its number."""
    rows: dict[str, str] = {}
    for line in text.splitlines():
        match = ROW.match(line)
        if match:
            number = match[1]
            if number in rows:
                raise SystemExit(f"{TABLE}: item {number} has two rows")
            rows[number] = match[3]
    return rows


@cache
def tests_in(path: Path) -> frozenset[str]:
    """The `name` and `Class::name` of every test function in a file."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.update(
                f"{node.name}::{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            )
    return frozenset(name for name in names if name.split("::")[-1].startswith("test_"))


def problem_of(reference: str) -> str | None:
    file, _, name = reference.partition("::")
    path = Path(file)
    if not name:
        return f"{reference}: write path::name"
    if not path.is_file():
        return f"{reference}: no file {file}"
    if name not in tests_in(path):
        return f"{reference}: no test {name} in {file}"
    return None


def main() -> int:
    rows = rows_of(TABLE.read_text())
    problems = [f"item {number}: no row" for number in ITEMS if str(number) not in rows]
    for number, tests in rows.items():
        if int(number.partition(".")[0]) not in ITEMS:
            problems.append(f"item {number}: not in the checklist")
        references = REFERENCE.findall(tests)
        if not references:
            problems.append(f"item {number}: names no test")
        problems += [f"item {number}: {text}" for text in map(problem_of, references) if text]
    sys.stderr.writelines(f"{TABLE}: {line}\n" for line in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
