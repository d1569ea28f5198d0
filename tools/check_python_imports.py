"""Check what the import-layer contracts cannot say about the Python sources.

* Only `_backends` and `_devices` import the native module, which is no Python file.
* Only `_options` reads the process's environment.
* The command line imports public names of the package, as any program would.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "llm_datadist"
SOURCES = Path("src") / PACKAGE
NATIVE_USERS = {"_backends", "_devices"}
ENVIRONMENT_READERS = {"_options", "cli", "testing"}
PUBLIC_USERS = {"cli"}


def imported(node: ast.stmt) -> list[str]:
    """Dotted names that an import statement names, each down to the name that is bound."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def problems_of(path: Path) -> Iterator[str]:
    part = path.relative_to(SOURCES).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(node):
                parts = name.split(".")
                if parts[0] != PACKAGE or len(parts) < 2:
                    continue
                if parts[1] == "_native" and part not in NATIVE_USERS:
                    yield f"{where}: only {' and '.join(sorted(NATIVE_USERS))} use the native core"
                elif part in PUBLIC_USERS and parts[1].startswith("_"):
                    yield f"{where}: {part} imports public names only, not {name}"
        elif (
            isinstance(node, ast.Attribute)
            and node.attr in {"environ", "getenv"}
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            and part not in ENVIRONMENT_READERS
        ):
            yield f"{where}: only _options reads the environment"


def main() -> int:
    problems = [problem for path in sorted(SOURCES.rglob("*.py")) for problem in problems_of(path)]
    sys.stderr.writelines(line + "\n" for line in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
