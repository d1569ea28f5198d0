"""Threads that post parts of a transfer concurrently, each with its own worker of the engine.

The engine assigns its workers to threads in turn, at their first call. The threads of this module
start together, so no two of them share a worker; the application's threads may.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Final, final

from llm_datadist._backends.cancellation import check_canceled
from llm_datadist._control.workers import Workers, settle

if TYPE_CHECKING:
    from collections.abc import Callable


_PERIOD_S: Final = 0.05
"""How often the caller asks whether it is canceled."""


@final
class PostingThreads:
    """See the module. Thread-safe.

    Args:
        count: Number of threads.
    """

    def __init__(self, count: int) -> None:
        self._idle = count
        self._lock = threading.Lock()
        self._workers = Workers("llm-datadist-nixl", count)

    def run(self, part: Callable[[], None], stop: Callable[[], None]) -> None:
        """Run `part` on each idle thread; return when all have ended.

        Without an idle thread it runs on the caller's. The parts must share the work, and must end
        soon after `stop` is called, which happens if the caller is interrupted: no part outlives
        this call.
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

        parts: list[Future[None]] = [Future() for _ in range(count)]
        try:
            for future in parts:
                self._workers.enqueue(future, begin)
            while wait(parts, _PERIOD_S).not_done:
                check_canceled()
        except BaseException:
            stop()
            settle(parts)
            raise
        finally:
            with self._lock:
                self._idle += count
        if not ended:
            part()
        for error in filter(None, ended):
            raise error

    def dismiss(self) -> None:
        """Let the threads end when idle."""
        self._workers.dismiss()
