"""Leak check: operating system resources of this process, before and after.

before = snapshot()
...
assert leaks_since(before) == []
"""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_PROCESS = Path("/proc/self")
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Resources of a process at one moment.

    Attributes:
        fds: Open descriptors and what each refers to.
        threads: Thread ids and names; native threads too.
        children: Child processes and their command names, zombies too.
        mappings: Mapped memfds and shared memory, and how many mappings each has.
        shared_memory: Files in /dev/shm of this user.
    """

    fds: frozenset[tuple[int, str]]
    threads: frozenset[tuple[int, str]]
    children: frozenset[tuple[int, str]]
    mappings: Counter[str]
    shared_memory: frozenset[str]


def snapshot() -> Snapshot:
    """Return the resources of this process."""
    return Snapshot(_fds(), _threads(), _children(), _mappings(), _shared_memory())


def leaks_since(before: Snapshot, within_s: float = 2.0) -> list[str]:
    """Return one line per resource that is held now and was not before; empty means no leak.

    Waits for resources that are being released, such as a thread that is ending or a descriptor
    that the garbage collector closes. Returns as soon as none is left. A file in /dev/shm that
    other programs have mapped, and neither this process nor its children, does not count.

    Args:
        before: The earlier snapshot.
        within_s: How long to wait.
    """
    deadline = time.monotonic() + within_s
    leaks = _difference(before, snapshot())
    while leaks and time.monotonic() < deadline:
        gc.collect()  # each time: a thread may have held a reference until now
        time.sleep(_POLL_S)
        leaks = _difference(before, snapshot())
    return leaks


def _difference(before: Snapshot, after: Snapshot) -> list[str]:
    lines = [f"descriptor {fd}: {target}" for fd, target in sorted(after.fds - before.fds)]
    lines += [f"thread {tid}: {name}" for tid, name in sorted(after.threads - before.threads)]
    lines += [f"process {pid}: {name}" for pid, name in sorted(after.children - before.children)]
    lines += [
        f"mapping of {name}, {count} more"
        for name, count in sorted((after.mappings - before.mappings).items())
    ]
    new = after.shared_memory - before.shared_memory
    others = _mapped_by_others() if new else set()
    lines += [f"shared memory {name}" for name in sorted(new - others)]
    return lines


def _fds() -> frozenset[tuple[int, str]]:
    found = set()
    for link in (_PROCESS / "fd").iterdir():
        try:
            found.add((int(link.name), str(link.readlink())))
        except OSError:  # the descriptor of the listing itself
            continue
    return frozenset(found)


def _threads() -> frozenset[tuple[int, str]]:
    found = set()
    for task in (_PROCESS / "task").iterdir():
        try:
            found.add((int(task.name), _text(task / "comm").strip()))
        except OSError:
            continue
    return frozenset(found)


def _text(path: Path) -> str:
    """Return a file of /proc; names in it may be any bytes, and the kernel cuts them anywhere."""
    return os.fsdecode(path.read_bytes())


def _children() -> frozenset[tuple[int, str]]:
    own = os.getpid()
    return frozenset((pid, name) for pid, (parent, name) in _processes().items() if parent == own)


def _processes() -> dict[int, tuple[int, str]]:
    """Parent and name of each process; works without CONFIG_PROC_CHILDREN."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = _text(stat).partition(" ")
        except OSError:
            continue
        name, _, fields = rest.rpartition(") ")
        found[int(pid)] = int(fields.split()[1]), name.lstrip("(")
    return found


def _mapped_by_others() -> set[str]:
    """Return the files in /dev/shm that only processes not below this one have mapped."""
    processes = _processes()
    own: set[str] = set()
    others: set[str] = set()
    for pid in processes:
        try:
            lines = _text(Path(f"/proc/{pid}/maps")).splitlines()
        except OSError:  # it has ended, or is another user's
            continue
        paths = {line.split(None, 5)[-1] for line in lines if "/dev/shm/" in line}
        names = {path.removeprefix("/dev/shm/").removesuffix(" (deleted)") for path in paths}
        (own if _is_below(pid, processes) else others).update(names)
    return others - own


def _is_below(pid: int, processes: dict[int, tuple[int, str]]) -> bool:
    """Whether a process is this one or one that it, or such a one, has started."""
    for _ in processes:
        if pid == os.getpid() or pid not in processes:
            break
        pid = processes[pid][0]
    return pid == os.getpid()


def _mappings() -> Counter[str]:
    """Count shared memory mappings by path and inode; a split mapping counts once."""
    found: Counter[str] = Counter()
    last = ""
    for line in _text(_PROCESS / "maps").splitlines():
        fields = line.split(None, 5)
        shared = len(fields) > 5 and fields[5].startswith(("/memfd:", "/dev/shm/"))
        name = f"{fields[5]} inode {fields[4]}" if shared else ""
        if name and name != last:
            found[name] += 1
        last = name
    return found


def _shared_memory() -> frozenset[str]:
    if not _SHARED_MEMORY.is_dir():
        return frozenset()
    own = os.getuid()
    found = set()
    for path in _SHARED_MEMORY.iterdir():
        try:
            if path.stat().st_uid == own:
                found.add(path.name)
        except OSError:
            continue
    return frozenset(found)
