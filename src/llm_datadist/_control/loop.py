"""The control thread of one instance: an asyncio loop in a daemon thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from llm_datadist._control.threads import start
from llm_datadist._control.workers import Workers
from llm_datadist._errors import LLMStatusCode, fail, finalized

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from llm_datadist._errors import LLMException

__all__ = ["ControlLoop"]

logger = logging.getLogger("llm_datadist")

_T = TypeVar("_T")
_STOP_SECONDS: Final = 2.0
_RESOLVERS: Final = 4


@final
class ControlLoop:
    """Runs coroutines on its own thread. Thread-safe unless noted.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers = Workers(name)
        # Separate workers: a name server that does not answer must not delay other work.
        self.resolvers = Workers(f"{name}-names", limit=_RESOLVERS)
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._submitting = threading.Lock()
        self._open = False
        self._pid = os.getpid()

    def start(self) -> None:
        """Start the thread. Once only.

        Raises:
            LLMException: LLM_FAILED: no thread can be started.
        """
        self._loop = asyncio.new_event_loop()
        try:
            start(self._thread, "init")
        except BaseException:
            self._loop.close()
            raise
        self._open = True

    def run(self, work: Coroutine[Any, Any, _T], operation: str) -> _T:
        """Run `work` on the loop and return its result; an interrupted wait cancels it.

        Raises:
            LLMException: LLM_ENGINE_FINALIZED: the loop was stopped; LLM_FAILED: this is a forked
                child, which has no loop, or the loop's own thread, which cannot wait for itself.
        """
        if os.getpid() != self._pid:
            work.close()
            raise fail(
                LLMStatusCode.LLM_FAILED,
                operation,
                "this process was forked from the one that initialized the instance",
                "initialize an instance of its own in the child",
            )
        if self.is_own_thread:
            work.close()
            raise self.own_thread(operation)
        with self._submitting:
            if not self._open:
                work.close()
                raise finalized(operation)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise finalized(operation) from None
        except BaseException:  # from the work, or from a signal handler
            future.cancel()
            raise

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller runs on the control thread, for example as a log handler."""
        return threading.current_thread() is self._thread

    def own_thread(self, operation: str) -> LLMException:
        """Return the exception of a call that would wait for its own thread."""
        return fail(
            LLMStatusCode.LLM_FAILED,
            operation,
            f"it was called on {self.name}, the library's own thread, for which it has to wait "
            "(log handlers run there, too)",
            "call it on another thread; a logging.handlers.QueueHandler moves handlers to one",
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the background; log its exception. Loop thread only."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def post(self, call: Callable[..., object], *arguments: object) -> None:
        """Call something on the loop soon, if the loop runs. Never blocks or raises."""
        if self._open and os.getpid() == self._pid:
            with contextlib.suppress(RuntimeError):  # the loop was just closed
                self._loop.call_soon_threadsafe(call, *arguments)

    def stop(self) -> None:
        """Cancel all tasks, end the thread and close the loop. Idempotent, bounded."""
        if os.getpid() != self._pid:
            return
        with self._submitting:
            if not self._open:
                return
            self._open = False
            ending = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        try:
            ending.result(_STOP_SECONDS)
        except concurrent.futures.TimeoutError:
            logger.warning("%s: tasks that do not end are left behind", self._thread.name)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _cancel_all(self) -> None:
        own = asyncio.current_task()
        while tasks := [task for task in asyncio.all_tasks() if task is not own]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_STOP_SECONDS / 4)
        for _ in range(3):  # let transports finish closing
            await asyncio.sleep(0)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the control plane failed: %r", error, exc_info=error)
