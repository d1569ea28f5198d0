"""Worker processes: start, messages and end."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from llm_datadist.cli.demo.channel import Channel
from llm_datadist.cli.demo.messages import Failed, FromWorker, Setup, ToWorker
from llm_datadist.cli.demo.settings import DemoError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

# One BLAS thread per process: with more, results depend on how the work is split.
_ONE_THREAD = dict.fromkeys(
    (
        "OPENBLAS_NUM_THREADS",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    ),
    "1",
)
_SILENCE_S = 120.0
_EXIT_S = 5.0
_KILL_S = 2.0


class Worker:
    """One child process and the channel to it. Leaving the context ends the process."""

    def __init__(self, setup: Setup) -> None:
        self.role = setup.role
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        router_sock, worker_sock = socket.socketpair()
        with worker_sock:
            # In a new session, so that Ctrl-C reaches only the router, which ends the workers.
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-m", "llm_datadist.cli.demo.worker", str(worker_sock.fileno())],
                pass_fds=[worker_sock.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                env=os.environ | _ONE_THREAD,
                start_new_session=True,
            )
        # Only a stopped worker leaves a message half sent or half read for so long.
        router_sock.settimeout(_SILENCE_S)
        self.channel: Channel = Channel(router_sock)
        self.send(setup)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._end(_EXIT_S if kind is None else 0.0)
        finally:
            self.channel.close()
            self._stderr.close()

    def send(self, message: ToWorker) -> None:
        """Send a message.

        Raises:
            DemoError: The process has ended.
        """
        try:
            self.channel.send(message)
        except OSError:
            raise self.ended() from None

    def ended(self) -> DemoError:
        """Return the error for a process that has closed its channel."""
        try:
            status = self.process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            reason = "closed its channel"
        else:
            reason = f"was ended by signal {-status}" if status < 0 else f"ended, status {status}"
        tail = "\n".join(self.output().splitlines()[-15:])
        written = f"; its output ends with:\n{tail}" if tail else ""
        return DemoError(f"the {self.role} process {reason} before its work was done{written}")

    def output(self) -> str:
        """Return what the process has written to its standard output and error."""
        return os.pread(self._stderr.fileno(), 1 << 20, 0).decode("utf-8", "replace").strip()

    def _end(self, grace_s: float) -> None:
        # A closed channel ends a worker; signals are needed if it cannot run.
        if grace_s:
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                pass
            else:
                return
        self.process.terminate()
        try:
            self.process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class WorkerSelector:
    """Waits for messages of several workers at once."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._selector = selectors.DefaultSelector()
        for worker in workers:
            self._selector.register(worker.channel, selectors.EVENT_READ, worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def drop(self, worker: Worker) -> None:
        """Stop receiving from a worker that has sent its last message."""
        self._selector.unregister(worker.channel)

    def receive(self, silence_s: float = _SILENCE_S) -> list[tuple[Worker, FromWorker]]:
        """Wait for messages; return one of each worker that has sent any.

        Raises:
            DemoError: A worker ended or failed, or none sent a message for `silence_s`.
        """
        started = time.monotonic()
        ready = self._selector.select(silence_s)
        if not ready:
            waited = time.monotonic() - started
            roles = " and ".join(key.data.role for key in self._selector.get_map().values())
            raise DemoError(f"no message from {roles} for {waited:.0f} s")
        return [self._take(key.data) for key, _ in ready]

    @staticmethod
    def _take(worker: Worker) -> tuple[Worker, FromWorker]:
        try:
            message = worker.channel.receive()
        except TimeoutError:
            raise DemoError(f"the {worker.role} process stopped within a message") from None
        if message is None:
            raise worker.ended()
        if isinstance(message, Failed):
            detail = f"\n{message.detail}" if message.detail else ""
            raise DemoError(f"the {worker.role} process failed: {message.problem}{detail}")
        if not isinstance(message, FromWorker):
            raise DemoError(f"the {worker.role} process sent {message!r}")
        return worker, message
