"""Fail when modules of the package import each other in a circle.

Imports for the type checker (`if TYPE_CHECKING`) and imports in functions count too: a module that
needs the type of another one needs its file to be understood.
"""

from __future__ import annotations

import ast
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path("src")

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SOURCES.rglob("*.py*")):
        if path.suffix in {".py", ".pyi"}:
            parts = path.relative_to(SOURCES).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path) -> Iterator[str]:
    """Dotted names that a module imports, each down to the name that is bound."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def graph_of(paths: dict[str, Path]) -> Graph:
    graph = {}
    for name, path in paths.items():
        targets = {
            target if target in paths else target.rpartition(".")[0]
            for target in imported(name, path)
        }
        graph[name] = (targets & paths.keys()) - {name}
    return graph


def shortest_circle(graph: Graph, start: str) -> list[str]:
    """Return a shortest way from a module back to itself; empty if there is none."""
    came_from = {start: ""}
    queue = deque([start])
    while queue:
        name = queue.popleft()
        for target in sorted(graph[name]):
            if target == start:
                way = [start]
                while name != start:
                    way.append(name)
                    name = came_from[name]
                return [start, *reversed(way)]
            if target not in came_from:
                came_from[target] = name
                queue.append(target)
    return []


def main() -> int:
    graph = graph_of(modules())
    reported: set[str] = set()
    for name in graph:
        circle = shortest_circle(graph, name)
        if circle and not reported & set(circle):
            sys.stderr.write("import circle: " + " -> ".join(circle) + "\n")
            reported |= set(circle)
    return 1 if reported else 0


if __name__ == "__main__":
    sys.exit(main())
