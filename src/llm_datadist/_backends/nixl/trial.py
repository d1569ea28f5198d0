"""The trial process: loads the engine metadata of peers before this process does.

UCX trusts that another UCX has written a peer's address and keys: a wrong byte can end the process
that loads them, by an assertion or a wild read. The format is private to UCX and changes with its
versions, so it is not parsed. If the trial process ends, only that peer is not used with NIXL.
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

    from llm_datadist._backends.nixl.bindings import NixlBindings

logger = logging.getLogger("llm_datadist")

_PROGRAM: Final = str(Path(trial_process.__file__).with_suffix(".py"))
_START_S: Final = 20.0
_ROUND_S: Final = 5.0
_GROUP: Final = 256
_MAX_FAILURES: Final = 3


class TrialTimeoutError(Exception):
    """The trial did not finish by the deadline; nothing is known about the metadata."""


class _EndedError(Exception):
    """The process has ended."""


@final
class Trial:
    """See the module. Thread-safe.

    The process is started at once, and again when it has ended; callers wait for it.

    Args:
        bindings: NIXL's.
        engine: "UCX" or "LIBFABRIC".
        params: Parameters of the engine.
    """

    def __init__(self, bindings: NixlBindings, engine: str, params: Mapping[str, str]) -> None:
        self._start_frame = json.dumps(bindings.trial_settings(engine, params)).encode()
        self._environment = bindings.trial_environment()
        self._lock = threading.Lock()  # held during a trial
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._closed = False
        self._restart()

    def accepted(
        self, agent: str, connection: bytes, pieces: Sequence[bytes], until: float
    ) -> list[int]:
        """Return the indices of the pieces that can be loaded after the connection.

        Pieces are tried in groups; if one ends the process, its whole group is refused.

        Args:
            agent: Name of the peer's agent.
            connection: Its connection metadata, accepted before.
            pieces: Metadata of its regions.
            until: time.monotonic() of the deadline.

        Raises:
            TrialTimeoutError: The deadline has passed.
        """
        good: list[int] = []
        at = failures = 0
        while at < len(pieces) and failures < _MAX_FAILURES:
            group = pieces[at : at + _GROUP]
            loaded, why_not = self.loaded(agent, [connection, *group], until)
            good += range(at, at + loaded - 1)
            at += loaded - 1
            if why_not:
                logger.debug("a region of %s cannot be loaded: %s", agent, why_not)
                if loaded == 0:  # any of the group may have ended the process
                    break
                failures += 1
                at += 1
        return good

    def loaded(self, agent: str, pieces: Sequence[bytes], until: float) -> tuple[int, str]:
        """Load pieces in order; return how many were loaded, and why the next one was not.

        Raises:
            TrialTimeoutError: The deadline has passed.
        """
        if not self._lock.acquire(timeout=max(until - time.monotonic(), 0)):
            raise TrialTimeoutError
        try:
            return self._try(agent, pieces, until)
        except _EndedError:
            ended = self._restart()
            return 0, f"a process that loaded it has ended ({ended})"
        finally:
            self._lock.release()

    def _try(self, agent: str, pieces: Sequence[bytes], until: float) -> tuple[int, str]:
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
            loaded, why_not, is_last = json.loads(self._reply(ends))
        except TrialTimeoutError:
            self._restart()
            if ends < until:
                return 0, "loading it does not come to an end"
            raise
        if is_last:
            self._restart()
        return int(loaded), str(why_not)

    def _why_not_ready(self, until: float) -> str:
        """Wait until the process can try pieces; return why it never can, or ""."""
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it ended between two trials
        try:
            if self._process is None:
                self._start()
            if not self._is_ready:
                problem = self._reply(min(until, time.monotonic() + _START_S))
                if problem:
                    self._end()
                    why_not = problem.decode(errors="replace")
                    return f"the process that tries it cannot start NIXL ({why_not})"
                self._is_ready = True
        except _EndedError as error:
            return f"the process that tries it cannot be started ({str(error) or self._end()})"
        return ""

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise _EndedError
        return self._process

    def _reply(self, until: float) -> bytes:
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
            raise _EndedError("the instance was finalized")
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
        with suppress(OSError):  # it has ended, which the next trial notices
            write_frame(process.stdin, self._start_frame)
            process.stdin.flush()

    def _restart(self) -> str:
        """End the process, if there is one, and start another; return how it ended."""
        ended = self._end()
        with suppress(_EndedError):
            self._start()
        return ended

    def _end(self) -> str:
        """End the process; return how it ended."""
        process, self._process = self._process, None
        if process is None:
            return "the instance was finalized"
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
            process.kill()  # ends a running trial at once
        with self._lock:
            self._end()
