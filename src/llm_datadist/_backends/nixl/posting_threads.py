"""Threads that post transfers side by side, each with a worker of the engine to itself.

The engine gives its workers to threads in turn, as they first come to it. The threads of this
module come together, so that no two of them share one; the application's own threads may.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, final

from llm_datadist._control.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PostingThreads"]


@final
class PostingThreads:
    """See the module. Thread-safe.

    Args:
        count: How many threads.
    """

    def __init__(self, count: int) -> None:
        self._idle = count
        self._lock = threading.Lock()
        self._workers = Workers("llm-datadist-nixl", count)

    def run(self, part: Callable[[], None], stop: Callable[[], None]) -> None:
        """Run a part of the same work on each thread that is idle; return when all have ended.

        The caller's thread does it alone where none is, or none can be had. Parts have to share
        what there is to do, and end soon after `stop` was called, which is where the caller is
        interrupted: no part outlives this call.
        """
        with self._lock:
            count, self._idle = self._idle, 0
        ended: list[BaseException | None] = []

        def begin() -> None:
            try:
                part()
            except BaseException as error:
                ended.append(error)
            else:
                ended.append(None)

        parts: list[Future[None]] = []
        try:
            for _ in range(count):
                parts.append(self._workers.submit(begin))
            wait(parts)
        except BaseException:
            stop()
            wait(parts)
            raise
        finally:
            with self._lock:
                self._idle += count
        if not ended:
            part()
        for error in filter(None, ended):
            raise error

    def dismiss(self) -> None:
        """Let the threads go."""
        self._workers.dismiss()
