"""Where nodes find the addresses of others: a file that all of them can write."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

__all__ = ["FileDirectory"]

_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.05


@final
class FileDirectory:
    """A JSON object of names and addresses in a file, changed under a lock of the file.

    The file is made when it is missing, readable and writable by its owner only: a process that can
    write it decides where nodes connect. Entries of nodes that ended without `close` stay until a
    node of that name comes back.

    Args:
        path: The file; on a file system with locks (`flock`) if several machines use it.
        lock_timeout_s: How long to wait for another process that has locked the file.

    Every method raises OSError if the file cannot be opened or belongs to another user, if every
    user can write it, or after `lock_timeout_s`; and ValueError if it is no directory of nodes.
    """

    def __init__(self, path: str | os.PathLike[str], lock_timeout_s: float = 5.0) -> None:
        self._path = Path(path)
        self._lock_timeout_s = lock_timeout_s

    def __str__(self) -> str:
        return f"the file {self._path}"

    def announce(self, name: str, address: str) -> None:
        """Write the address of a node, in place of an earlier one."""
        with self._locked(fcntl.LOCK_EX) as file:
            self._write(file, self._read(file) | {name: address})

    def withdraw(self, name: str, address: str) -> None:
        """Remove a node, unless it has another address by now."""
        with self._locked(fcntl.LOCK_EX) as file:
            entries = self._read(file)
            if entries.get(name) == address:
                del entries[name]
                self._write(file, entries)

    def find(self, name: str) -> str | None:
        """Return the address of a node; None if it is not in the file."""
        with self._locked(fcntl.LOCK_SH) as file:
            return self._read(file).get(name)

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[TextIO]:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            problem = f"{self}, the directory of nodes, cannot be opened: {error.strerror}"
            remedy = "give the path of a file that this user can make or write"
            raise OSError(error.errno, f"{problem}; {remedy}") from error
        try:
            self._check_owner(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            self._lock(file, kind)
            try:
                yield file
            finally:
                # Not left to the end of the file: a process that was forked meanwhile has it, too.
                fcntl.flock(file, fcntl.LOCK_UN)

    def _check_owner(self, descriptor: int) -> None:
        """Refuse a file that another user may have made, in a folder such as /tmp."""
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{self} is no regular file; give the path of another one")
        if found.st_uid not in {os.geteuid(), 0} or found.st_mode & stat.S_IWOTH:
            mode = stat.S_IMODE(found.st_mode)
            raise PermissionError(
                f"{self} belongs to user {found.st_uid}, with mode {mode:o}: other users "
                "could say where nodes connect; use a file of this user that others cannot write"
            )

    def _lock(self, file: TextIO, kind: int) -> None:
        deadline = time.monotonic() + self._lock_timeout_s
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            try:
                return fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"{self} has been locked by another process for {self._lock_timeout_s} s; "
                        "end that process, or let it go on"
                    ) from None
            time.sleep(backoff.next())

    def _read(self, file: TextIO) -> dict[str, str]:
        try:
            entries = json.loads(file.read() or "{}")
            if not isinstance(entries, dict):
                raise ValueError("it has no JSON object")
            if not all(isinstance(value, str) for value in entries.values()):
                raise ValueError("an address is no text")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self} is no directory of nodes ({error}); give the path of another file"
            ) from error
        return dict(entries)

    @staticmethod
    def _write(file: TextIO, entries: dict[str, str]) -> None:
        file.seek(0)
        file.write(json.dumps(entries, indent=1) + "\n")
        file.truncate()
