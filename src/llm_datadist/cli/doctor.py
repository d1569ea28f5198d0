"""The command `llm-datadist doctor`: what this machine has to offer to transfers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_PTRACE_MEANING = {
    "0": "processes of one user may read each other's memory",
    "1": "restricted: a process must allow its peers to read its memory",
    "2": "only root may read the memory of other processes",
    "3": "no process may read the memory of others",
}


def doctor() -> None:
    """Show versions and what this machine allows."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name in ("llm-datadist", "numpy", "msgspec"):
        table.add_row(name, _installed(name))
    table.add_row("python", platform.python_version())
    table.add_row("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    table.add_row("cores", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")
    table.add_row("ptrace scope", _ptrace_scope())
    Console().print(table, highlight=False)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _ptrace_scope() -> str:
    try:
        scope = _PTRACE_SCOPE.read_text().strip()
    except OSError:
        return "no restriction by Yama"
    return f"{scope} ({_PTRACE_MEANING.get(scope, 'unknown')})"
