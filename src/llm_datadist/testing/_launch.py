"""Starts a peer as a process or a thread, and sends it signals."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from llm_datadist.testing.exits import Exit, Exited, Finished, Killed, Raised
from llm_datadist.testing.member import run_peer

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from llm_datadist.testing._wire import Connection, Message

_CHILD = "import sys; from llm_datadist.testing.member import main; main(int(sys.argv[1]))"
_STOP_WITHIN_S = 5.0


def _wait_readable(*fds: int) -> list[int]:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll()]


class Launched(ABC):
    """A running peer, seen from outside."""

    pid: int | None = None

    @abstractmethod
    def read(self, connection: Connection) -> tuple[list[Message], bool]:
        """Wait for messages; return them and whether the peer has ended."""

    @abstractmethod
    def exit(self, report: Finished | Raised | None) -> Exit:
        """Reap a peer that has ended; return how it ended, given its report."""

    def signal(self, number: int) -> None:
        """Send a signal to the peer's process."""
        raise RuntimeError("a peer that is a thread takes no signals; use PeerGroup('process')")

    def wait_stopped(self) -> None:
        """Wait until every thread of the process has stopped."""
        raise RuntimeError("a peer that is a thread does not stop")


class LaunchedThread(Launched):
    """A peer that is a thread of this process."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self._thread = threading.Thread(
            target=run_peer, args=(sock, lambda: None), name=f"peer-{name}", daemon=True
        )
        self._thread.start()

    def read(self, connection: Connection) -> tuple[list[Message], bool]:
        return connection.read()

    def exit(self, report: Finished | Raised | None) -> Exit:
        self._thread.join()
        return report if report is not None else Exited(1)


class LaunchedProcess(Launched):
    """A peer that is a fresh interpreter."""

    def __init__(
        self, sock: socket.socket, env: Mapping[str, str], command_prefix: Sequence[str]
    ) -> None:
        with sock:
            self._process = subprocess.Popen(
                [*command_prefix, sys.executable, "-c", _CHILD, str(sock.fileno())],
                pass_fds=[sock.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **env},
            )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)

    def read(self, connection: Connection) -> tuple[list[Message], bool]:
        # The process's end counts, not the socket's: a child of the peer may hold a copy of that.
        if self._pidfd in _wait_readable(connection.fileno(), self._pidfd):
            return connection.drain(), True
        messages, gone = connection.read()
        if gone:
            _wait_readable(self._pidfd)
        return messages, gone

    def exit(self, report: Finished | Raised | None) -> Exit:
        status = self._process.wait()
        os.close(self._pidfd)
        if status < 0:
            return Killed(-status)
        if report is None or (isinstance(report, Finished) and status != 0):
            return Exited(status)
        return report

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait_stopped(self) -> None:
        deadline = time.monotonic() + _STOP_WITHIN_S
        while not self._stopped():
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} has not stopped in {_STOP_WITHIN_S:g} s")
            time.sleep(0.001)

    def _stopped(self) -> bool:
        states = []
        for stat in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # a thread that ended meanwhile
                state = stat.read_bytes().rpartition(b")")[2]  # the name before may be any bytes
                states.append(state.split()[0].decode())
        return bool(states) and all(state in "TtZX" for state in states)
