"""Limits of this process (ulimit) that instances, or NIXL under them, can run into."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.finding import ok, problem, warning
from llm_datadist.cli.doctor.rdma import SYSFS, device_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["descriptors", "locked_memory", "sizes", "stack"]

_FEWEST_DESCRIPTORS = 128
_FEW_DESCRIPTORS = 1024
_PER_LINK = 10
_LEAST_STACK = 256 << 10
_LEAST_MEMORY = 1 << 30
_MIB = 1 << 20


def _soft(limit: int) -> int | None:
    """Return the soft limit of this process, or None if there is none."""
    soft, _ = resource.getrlimit(limit)
    return None if soft == resource.RLIM_INFINITY else soft


def _size(num_bytes: int | None) -> str:
    return "unlimited" if num_bytes is None else f"{num_bytes / _MIB:,.6g} MiB"


def descriptors() -> Iterator[Finding]:
    """Check the limit of open files: each link needs up to 2 x lanes_per_link + 2."""
    subject, limit = "open files", _soft(resource.RLIMIT_NOFILE)
    if limit is None:
        yield ok(subject, "unlimited")
        return
    seen = f"limit {limit}, enough for some {max(0, limit - 32) // _PER_LINK} links"
    remedy = (
        "raise it: ulimit -n 65536, LimitNOFILE=65536 (systemd), --ulimit nofile=65536 (docker)"
    )
    if limit < _FEWEST_DESCRIPTORS:
        yield problem(subject, seen, remedy)
    elif limit < _FEW_DESCRIPTORS:
        yield warning(subject, seen, remedy)
    else:
        yield ok(subject, seen)


def locked_memory(sysfs: Path = SYSFS) -> Iterator[Finding]:
    """Check the limit of locked memory, which only RDMA needs.

    Args:
        sysfs: Folder of the RDMA devices.
    """
    subject, limit = "locked memory", _soft(resource.RLIMIT_MEMLOCK)
    if limit is None:
        yield ok(subject, "unlimited")
    elif device_names(sysfs):
        yield warning(
            subject,
            f"limit {_size(limit)}, and RDMA devices lock the memory that they reach",
            "raise it: ulimit -l unlimited, LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 "
            "(docker)",
        )
    else:
        yield ok(subject, f"limit {_size(limit)}; only RDMA needs more")


def stack() -> Iterator[Finding]:
    """Check the limit of stacks, which is also the size of those of native threads."""
    subject, limit = "stack", _soft(resource.RLIMIT_STACK)
    if limit is not None and limit < _LEAST_STACK:
        yield warning(
            subject,
            f"limit {_size(limit)}: threads of drivers and of NIXL expect more",
            "raise it: ulimit -s 8192, LimitSTACK=8M (systemd)",
        )
    else:
        yield ok(subject, _size(limit))


def sizes() -> Iterator[Finding]:
    """Check the limits of address space and of file sizes, which hold for pools too."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for subject, number, flag, what in (
        ("address space", resource.RLIMIT_AS, "-v", "an instance takes 70 MiB, as much for a peer"),
        ("file size", resource.RLIMIT_FSIZE, "-f", "pools are memory files"),
    ):
        limit = _soft(number)
        seen = _size(limit) if limit is None else f"limit {_size(limit)}"
        if limit is None or limit >= max(total, _LEAST_MEMORY):
            yield ok(subject, seen)
            continue
        state = problem if limit < _LEAST_MEMORY else warning
        seen = f"{seen}, of {_size(total)} of memory: {what}, and pools come on top"
        yield state(subject, seen, f"raise it: ulimit {flag} unlimited")
