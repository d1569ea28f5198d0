"""Daemon threads for calls that may block, so that the control loop never does.

A `concurrent.futures.ThreadPoolExecutor` does not fit: it joins its threads and refuses work before
exit handlers run, in one of which an instance finalizes itself, and a stuck call would keep the
process alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, final

from llm_datadist._control.threads import start
from llm_datadist._errors import LLMException

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Workers", "settle"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_IDLE_SECONDS: Final = 5.0


@final
class Workers:
    """Runs calls on threads that are started on demand and end when idle. Thread-safe.

    Args:
        name: Prefix of the threads' names.
        limit: Maximum number of threads; further calls queue.
        idle_seconds: How long an idle thread stays.
    """

    def __init__(self, name: str, limit: int = 64, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._name = name
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = self._idle = self._busy = 0
        self._dismissed = False

    def submit(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Queue a call; the future gets its result or exception.

        The future gets LLM_FAILED immediately when there is no thread and none can be started.
        """
        future: Future[_T] = Future()
        self.enqueue(future, partial(call, *args, **kwargs))
        return future

    def enqueue(self, future: Future[_T], call: Callable[[], _T]) -> None:
        """Queue a call for a future that the caller has made; otherwise as `submit`.

        If a signal handler raises while this runs, the caller has the future and can `settle` it.
        """
        with self._changed:
            self._jobs.append((future, call))
            if len(self._jobs) > self._idle and self._threads < self._limit:
                self._start_thread()
            self._changed.notify_all()

    async def run(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a call and await it. Canceling the wait does not stop the call."""
        return await self.outcome(self.submit(call, *args, **kwargs))

    async def outcome(self, future: Future[_T]) -> _T:
        """Await a submitted call. Canceling the wait does not stop the call."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[_T] = loop.create_future()

        def deliver(done: Future[_T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no task waits
                loop.call_soon_threadsafe(_deliver, waiter, done)

        future.add_done_callback(deliver)
        return await waiter

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no call is queued or running; return False after the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._busy, seconds)

    def dismiss(self) -> None:
        """End threads as soon as they are idle. Further calls are still possible."""
        with self._changed:
            self._dismissed = True
            self._changed.notify_all()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"{self._name}-worker", daemon=True)
        self._threads += 1  # before: a signal handler may raise once the thread runs
        try:
            start(thread, "the call")
        except LLMException as error:
            self._threads -= 1
            if not self._threads:  # otherwise a running thread takes it
                self._jobs.pop()[0].set_exception(error)

    def _serve(self) -> None:
        while (job := self._take()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # delivered through the future
                    future.set_exception(error)
            del future, call, job
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def _take(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: bool(self._jobs) or self._dismissed, self._idle_seconds)
            self._idle -= 1
            if not self._jobs:
                self._threads -= 1
                return None
            self._busy += 1
            return self._jobs.popleft()


def settle(futures: Sequence[Future[Any]]) -> None:
    """Cancel the calls that no thread has begun, and wait for the others.

    None of them runs any more when this ends. What signal handlers raise meanwhile is raised then.
    """
    raised: BaseException | None = None
    waiting = True
    while waiting:
        try:
            wait([future for future in futures if not future.cancel()])
            waiting = False
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


def _deliver(waiter: asyncio.Future[_T], done: Future[_T]) -> None:
    if waiter.done():
        return
    error = done.exception()
    if isinstance(error, Exception):
        waiter.set_exception(error)
    elif error is not None:  # such as SystemExit, which would end the loop
        problem = RuntimeError(f"the call raised {error!r}")
        problem.__cause__ = error
        waiter.set_exception(problem)
    else:
        waiter.set_result(done.result())
