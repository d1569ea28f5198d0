"""A process that loads what peers say about their engine, before this one does.

UCX takes a peer's address and keys for what another UCX has written: a wrong byte can end the
process that loads them, by an assertion or a wild read. Which bytes those are is UCX's own business
and changes with its versions; so nothing here parses them. A process of their own loads them first.
If it ends, only that peer has lost something.
"""

from __future__ import annotations

import json
import logging
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from llm_datadist._backends.nixl import trial_process
from llm_datadist._backends.nixl.trial_process import read_frame, write_frame

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_datadist._backends.nixl.bindings import Wheel

__all__ = ["Trial", "TrialTimeoutError"]

logger = logging.getLogger("llm_datadist")

_PROGRAM: Final = str(Path(trial_process.__file__).with_suffix(".py"))
_START_S: Final = 20.0
_ROUND_S: Final = 5.0
_AT_A_TIME: Final = 256
_PATIENCE: Final = 3


class TrialTimeoutError(Exception):
    """There was no answer in the time that there is; nothing is known of what was asked about."""


class _EndedError(Exception):
    """The process has ended, or was ended."""


@final
class Trial:
    """See the module. Thread-safe.

    The process is started at once, and again whenever it has ended; a caller waits for it.

    Args:
        wheel: The loaded wheel.
        engine: "UCX" or "LIBFABRIC".
        params: The engine's own parameters.
    """

    def __init__(self, wheel: Wheel, engine: str, params: Mapping[str, str]) -> None:
        self._start_frame = json.dumps(wheel.trial_settings(engine, params)).encode()
        self._environment = wheel.trial_environment()
        self._lock = threading.Lock()  # held by who asks
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._closed = False
        with self._lock, suppress(_EndedError):
            self._start()

    def accepted(
        self, agent: str, connection: bytes, pieces: Sequence[bytes], until: float
    ) -> list[int]:
        """Return the numbers of the pieces that can be loaded after the connection.

        None of those that are asked about together when one ends the process.

        Args:
            agent: Whose they have to be.
            connection: What connects; was accepted before.
            pieces: What comes after it.
            until: time.monotonic() of the deadline.

        Raises:
            TrialTimeoutError: See there.
        """
        good: list[int] = []
        at = failures = 0
        while at < len(pieces) and failures < _PATIENCE:
            some = pieces[at : at + _AT_A_TIME]
            loaded, why_not = self.loaded(agent, [connection, *some], until)
            good += range(at, at + loaded - 1)
            at += loaded - 1
            if why_not:
                logger.debug("a region of %s cannot be loaded: %s", agent, why_not)
                if loaded == 0:  # any of them may have ended the process
                    break
                failures += 1
                at += 1
        return good

    def loaded(self, agent: str, pieces: Sequence[bytes], until: float) -> tuple[int, str]:
        """Load pieces, one after the other; return how many could be, and why the next one not.

        Raises:
            TrialTimeoutError: See there.
        """
        if not self._lock.acquire(timeout=max(until - time.monotonic(), 0)):
            raise TrialTimeoutError
        try:
            return self._ask(agent, pieces, until)
        except _EndedError:
            ended = self._end()
            with suppress(_EndedError):
                self._start()
            return 0, f"a process that loaded it has ended ({ended})"
        finally:
            self._lock.release()

    def _ask(self, agent: str, pieces: Sequence[bytes], until: float) -> tuple[int, str]:
        """Put a question and read the answer."""
        if why_not := self._why_not_ready(until):
            return 0, why_not
        process = self._running()
        assert process.stdin is not None
        try:
            write_frame(process.stdin, json.dumps([agent, len(pieces)]).encode())
            for piece in pieces:
                write_frame(process.stdin, piece)
            process.stdin.flush()
        except OSError as error:
            raise _EndedError from error
        ends = min(until, time.monotonic() + _ROUND_S)
        try:
            loaded, why_not, is_last = json.loads(self._answer(ends))
        except TrialTimeoutError:
            self._end()
            with suppress(_EndedError):
                self._start()
            if ends < until:
                return 0, "loading it does not come to an end"
            raise
        if is_last:
            self._end()
            with suppress(_EndedError):
                self._start()
        return int(loaded), str(why_not)

    def _why_not_ready(self, until: float) -> str:
        """Wait until the process can be asked; say why it never can."""
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it was ended between two questions
        try:
            if self._process is None:
                self._start()
            if not self._is_ready:
                told = self._answer(min(until, time.monotonic() + _START_S))
                if told:
                    self._end()
                    why_not = told.decode(errors="replace")
                    return f"the process that tries it cannot start NIXL ({why_not})"
                self._is_ready = True
        except _EndedError as error:
            return f"the process that tries it cannot be started ({str(error) or self._end()})"
        return ""

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise _EndedError
        return self._process

    def _answer(self, until: float) -> bytes:
        stream = self._running().stdout
        assert stream is not None
        left_s = max(until - time.monotonic(), 0)
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        if not poll.poll(left_s * 1000):
            raise TrialTimeoutError
        try:
            return read_frame(stream)
        except (EOFError, OSError) as error:
            raise _EndedError from error

    def _start(self) -> None:
        if self._closed:
            raise _EndedError("the instance was finalised")
        try:
            process = subprocess.Popen(
                [sys.executable or "", "-I", "-S", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the application
            )
        except (OSError, ValueError) as error:
            raise _EndedError(error) from error
        self._process, self._is_ready = process, False
        assert process.stdin is not None
        with suppress(OSError):  # it has ended; the next question tells that
            write_frame(process.stdin, self._start_frame)
            process.stdin.flush()

    def _end(self) -> str:
        """End the process; return how it had ended."""
        process, self._process = self._process, None
        if process is None:
            return "the instance was finalised"
        process.kill()
        code = process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        with suppress(ValueError):
            return signal.Signals(-code).name
        return f"exit status {code}"

    def close(self) -> None:
        """End the process. Idempotent."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()  # who asks has an answer at once
        with self._lock:
            self._end()
