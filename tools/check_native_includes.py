"""Check the include edges of native/ against the libraries' edges in CMakeLists.txt.

The rule is written once, as the USES of each `ldd_library` call; a directory may include itself and
what its library uses, directly or not. The library `lanes_target` is that of native/lanes/target.
`bind` is the module's own directory: it may include every other one, and it alone may include
nanobind or Python.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

NATIVE = Path("native")
LIBRARY = re.compile(r"^ldd_library\((\w+)\s+SOURCES\s+\S+(?:\s+USES\s+([^)]*))?\)", re.MULTILINE)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
BINDING_HEADERS = ("nanobind/", "Python.h", "pybind11/")


def direct_edges(cmake: str) -> dict[str, set[str]]:
    """The directories that each directory's library names in USES."""
    return {
        directory_of(name): {directory_of(used.removeprefix("ldd_")) for used in uses.split()}
        for name, uses in LIBRARY.findall(cmake)
    }


def directory_of(library: str) -> str:
    return library.replace("_", "/")


def reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    open_ends = [start]
    while open_ends:
        for used in edges.get(open_ends.pop(), set()):
            if used not in found:
                found.add(used)
                open_ends.append(used)
    return found


def problems_of(path: Path, allowed: set[str], directories: set[str]) -> list[str]:
    directory = path.relative_to(NATIVE).parent.as_posix()
    problems = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        kind, target = match.groups()
        where = f"{path}:{number}"
        if target.startswith(BINDING_HEADERS):
            if directory != "bind":
                problems.append(f"{where}: only native/bind may include {target}")
        elif kind == '"':
            included = target.rpartition("/")[0]
            if included not in directories:
                problems.append(f'{where}: write "{target}" as its path from native/')
            elif included != directory and included not in allowed:
                problems.append(f"{where}: {directory} may not include {included} ({target})")
            elif not (NATIVE / target).is_file():
                problems.append(f"{where}: no such file {target}")
    return problems


def main() -> int:
    edges = direct_edges(Path("CMakeLists.txt").read_text())
    if not edges:
        sys.stderr.write("CMakeLists.txt has no ldd_library call that this check understands\n")
        return 1
    edges["bind"] = set(edges)
    sources = sorted([*NATIVE.rglob("*.cc"), *NATIVE.rglob("*.h")])
    directories = {path.relative_to(NATIVE).parent.as_posix() for path in sources}
    problems = [
        f"native/{name}: no ldd_library in CMakeLists.txt" for name in directories - set(edges)
    ]
    for path in sources:
        directory = path.relative_to(NATIVE).parent.as_posix()
        problems += problems_of(path, reachable(edges, directory), directories)
    sys.stderr.writelines(line + "\n" for line in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
