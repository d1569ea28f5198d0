"""Whether processes of this host may read each other's memory: what the fast path needs."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist.cli.doctor.children import ChildFailed, python, run_json
from llm_datadist.cli.doctor.finding import ok, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist.cli.doctor.finding import Finding

__all__ = ["pid_namespace", "same_host_reads"]

_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_NAMESPACE = Path("/proc/self/ns/pid")
_FIRST_NAMESPACE = 0xEFFFFFFC
"""Inode of the host's own pid namespace, fixed in the kernel."""
_UNTIL_THEN = "until then same-host transfers use TCP over loopback"
_YAMA_MEANS = {
    "1": "a process may read the memory of its own children only",
    "2": "only root may read the memory of other processes",
    "3": "no process may read the memory of others, until the next boot",
}


def same_host_reads(yama: Path = _YAMA) -> Iterator[Finding]:
    """Try process_vm_readv between two processes, and find out what forbids it.

    Args:
        yama: File with Yama's restriction.
    """
    subject = "same-host reads"
    try:
        found = run_json(python("read_probe"))
    except ChildFailed as error:
        yield warning(
            subject,
            f"two processes could not be tried: {error}",
            "let this user start processes (ulimit -u, pids.max of the cgroup)",
        )
        return
    number = int(found["errno"])
    scope = _read(yama)
    if number == 0:
        seen = "process_vm_readv works between two processes"
        yield ok(subject, f"{seen} (ptrace_scope {scope})" if scope else seen)
        return
    why, remedy = _forbidden(number, scope, is_filtered=bool(found["own_errno"]))
    yield warning(subject, f"process_vm_readv: {os.strerror(number)}: {why}", remedy)


def _forbidden(number: int, scope: str, *, is_filtered: bool) -> tuple[str, str]:
    """Return what forbids the reads, and the remedy.

    Args:
        number: Errno of a read of another process.
        scope: Yama's restriction.
        is_filtered: Whether a process cannot read itself either.
    """
    if number == errno.ENOSYS or is_filtered:
        why = "the sandbox (seccomp) or the kernel does not have the call"
        remedy = (
            "let the seccomp profile of the container allow process_vm_readv (the capability "
            "SYS_PTRACE does so in docker's)"
        )
    elif scope in _YAMA_MEANS:
        why = f"kernel.yama.ptrace_scope is {scope}: {_YAMA_MEANS[scope]}"
        remedy = (
            "sysctl -w kernel.yama.ptrace_scope=0, or give the processes the capability SYS_PTRACE"
        )
    else:
        why = "a security module or the user's rights forbid it"
        remedy = "run the processes as one user, or give them the capability SYS_PTRACE"
    return why, f"{remedy}; {_UNTIL_THEN}"


def pid_namespace(namespace: Path = _NAMESPACE) -> Iterator[Finding]:
    """Tell whether other containers of this host are out of reach of the fast path.

    Args:
        namespace: Of this process.
    """
    subject = "pid namespace"
    try:
        is_first = namespace.stat().st_ino == _FIRST_NAMESPACE
    except OSError as error:
        yield warning(
            subject,
            f"/proc cannot be read ({error.strerror}), so that no peer is found on this host",
            f"mount /proc; {_UNTIL_THEN}",
        )
        return
    if is_first:
        yield ok(subject, "the host's own")
    else:
        yield warning(
            subject,
            "a container's: its processes read only each other's memory",
            "if instances of one host run in several containers, let these share it (docker --pid, "
            "shareProcessNamespace or hostPID in Kubernetes)",
        )


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
