"""Where nodes find the addresses of others: a file that all of them can write."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["FileDirectory"]


@final
class FileDirectory:
    """A JSON object of names and addresses in a file, changed under a lock of the file.

    The file is made when it is missing, readable and writable by its owner only: a process that can
    write it decides where nodes connect. Entries of nodes that ended without `close` stay until a
    node of that name comes back.

    Args:
        path: The file; on a file system with locks (`flock`) if several machines use it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

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

    def _locked(self, kind: int) -> TextIO:
        file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
        try:
            fcntl.flock(file, kind)  # until the file is closed
        except BaseException:
            file.close()
            raise
        return file

    def _read(self, file: TextIO) -> dict[str, str]:
        text = file.read()
        try:
            entries = json.loads(text or "{}")
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
