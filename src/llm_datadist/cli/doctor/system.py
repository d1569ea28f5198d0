"""Versions, the kernel, and the processor cores that this process may use."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.finding import ok, problem, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["cores", "kernel", "versions"]

_PACKAGES = ("llm-datadist", "numpy", "msgspec")
_OLDEST_KERNEL = (4, 18)
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_FEWEST_CORES = 2


def versions() -> Iterator[Finding]:
    """Name the versions of what a report of a problem needs."""
    found = [f"{name} {_installed(name)}" for name in _PACKAGES]
    yield ok("versions", ", ".join([*found, f"Python {platform.python_version()}"]))


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def kernel(release: str | None = None) -> Iterator[Finding]:
    """Check the version of the kernel.

    Args:
        release: As `uname -r` prints it; None for that of this machine.
    """
    release = platform.release() if release is None else release
    seen = f"Linux {release}, {platform.machine()}"
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < _OLDEST_KERNEL:
        oldest = ".".join(map(str, _OLDEST_KERNEL))
        yield problem(
            "kernel",
            f"{seen}: older than any that is tested",
            f"run a kernel of version {oldest} or later",
        )
    else:
        yield ok("kernel", seen)


def cores(quota: Path = _QUOTA) -> Iterator[Finding]:
    """Check how many processor cores the threads of transfers can use.

    Args:
        quota: File with the time limit of this process's cgroup.
    """
    usable, total = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    seen, share = f"{usable} usable of {total}", float(usable)
    if (limit := _limit(quota)) is not None:
        seen, share = f"{seen}, for the time of {limit:g} (cgroup)", min(share, limit)
    if share < _FEWEST_CORES:
        yield warning(
            "cores",
            f"{seen}: transfers take time from the program's own threads",
            "give the process two cores or more (taskset, cpuset, the CPU limit of the container)",
        )
    else:
        yield ok("cores", seen)


def _limit(quota: Path) -> float | None:
    """Return how many cores' time a cgroup may use; None without a limit."""
    try:
        most, period = quota.read_text().split()
        return int(most) / int(period)
    except (OSError, ValueError):
        return None
