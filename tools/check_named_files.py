"""Fail when a comment, a docstring or a page names a file that does not exist.

A name such as `memory/entries.h` stands for every file of the tree whose path ends with it. Links
must lead to their target. A page may name what it has the reader save: "save this as `a.py`".
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = re.compile(r"(?<![\w./<>*{}$-])(?:[\w.-]+/)*[\w-][\w.-]*\.(?:md|py|cc|h)\b(?![\w/<>*({])")
SAVED = re.compile(r"[Ss]ave this as `([\w.-]+)`")
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
C_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
Line = tuple[int, str]


def tree() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [path for path in map(Path, listing.splitlines()) if path.is_file()]


def numbered(text: str, first: int) -> Iterator[Line]:
    yield from enumerate(text.splitlines(), first)


def python_prose(text: str) -> Iterator[Line]:
    """Comments and docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield from numbered(node.value.value, node.lineno)


def c_prose(text: str) -> Iterator[Line]:
    for match in C_COMMENT.finditer(text):
        yield from numbered(match[0], text.count("\n", 0, match.start()) + 1)


def page_prose(text: str) -> Iterator[Line]:
    yield from numbered(text, 1)


PROSE = {".py": python_prose, ".cc": c_prose, ".h": c_prose, ".md": page_prose}


def problems_of(path: Path, endings: set[str]) -> Iterator[str]:
    text = path.read_text()
    known = endings | set(SAVED.findall(text))
    for number, line in PROSE[path.suffix](text):
        links = LINK.findall(line) if path.suffix == ".md" else []
        for target in links:
            if not (path.parent / target).exists():
                yield f"{path}:{number}: the link leads to {target}, which does not exist"
        for name in NAME.findall(LINK.sub("]", line)):
            if name.removeprefix("./") not in known:
                yield f"{path}:{number}: no file {name}"


def main() -> int:
    paths = tree()
    endings = {"/".join(path.parts[start:]) for path in paths for start in range(len(path.parts))}
    problems = [
        problem for path in paths if path.suffix in PROSE for problem in problems_of(path, endings)
    ]
    sys.stderr.writelines(line + "\n" for line in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
