"""Fail when a source file is longer than the limit: 500 lines, test files 600.

The generated stub of the native module has no limit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIMIT_LINES = 500
TEST_LIMIT_LINES = 600
SUFFIXES = {".py", ".pyi", ".cc", ".h", ".sh", ".md", ".toml", ".cmake", ".txt"}
CHECKED_NAMES = {"Makefile", "run"}
GENERATED = {"_native.pyi"}


def limit_of(path: Path) -> int:
    return TEST_LIMIT_LINES if path.parts[0] == "tests" else LIMIT_LINES


def is_source(path: Path) -> bool:
    if "text" in path.parts or "data" in path.parts:  # data that happens to be text
        return False
    if path.name in GENERATED:
        return False
    return path.suffix in SUFFIXES or path.name in CHECKED_NAMES


def main() -> int:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    too_long = []
    for path in map(Path, listing.splitlines()):
        if not path.is_file() or not is_source(path):
            continue
        lines = len(path.read_bytes().splitlines())
        if lines > limit_of(path):
            too_long.append(f"{path}: {lines} lines, limit {limit_of(path)}")
    sys.stderr.writelines(line + "\n" for line in too_long)
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
