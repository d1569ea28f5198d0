"""Command `llm-datadist doctor`: checks what transfers can use on this machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from llm_datadist.cli.doctor_probe import Probe, probe

_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_PTRACE_MEANING = {
    "0": "processes of one user may read each other's memory",
    "1": "restricted: a process must allow its peers to read its memory",
    "2": "only root may read the memory of other processes",
    "3": "no process may read the memory of others",
}


def doctor() -> None:
    """Show versions, relevant system settings, and whether blocks move between two processes.

    Exit status: 0 blocks move, 1 they do not; the last row says why.
    """
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name in ("llm-datadist", "numpy", "msgspec"):
        table.add_row(name, _installed(name))
    table.add_row("python", platform.python_version())
    table.add_row("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    table.add_row("cores", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")
    table.add_row("ptrace scope", _ptrace_scope())
    found = probe()
    for name, text in _rows(found):
        table.add_row(name, text)
    console.print(table, highlight=False)
    if found.problem:
        raise typer.Exit(1)


def _rows(found: Probe) -> list[tuple[str, str]]:
    if found.problem:
        return [("two processes", f"blocks do not move: {found.problem}")]
    return [
        ("two processes", f"blocks move over backend {found.path} ({found.reasons})"),
        (
            "pull, push",
            f"{found.pull_gb_per_s:.1f} and {found.push_gb_per_s:.1f} GB/s, 64 KiB blocks",
        ),
        ("one block", f"{found.one_block_us:.0f} us for a pull of 64 KiB"),
    ]


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
