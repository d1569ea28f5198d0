"""Runs blocking calls of an instance on threads, for coroutines that may be canceled."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar, final

from llm_datadist._backends.cancellation import Cancellation
from llm_datadist._types.checks import check_int

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["Calls", "until_done"]

_T = TypeVar("_T")


@final
class Calls:
    """Threads for the calls of one node.

    Args:
        name: Of the node, for the names of the threads.
        max_calls: Calls that run at the same time; more wait for their turn.

    Raises:
        TypeError, ValueError: max_calls is not an integer, or below 1.
    """

    def __init__(self, name: str, max_calls: int) -> None:
        self._name = name
        self._threads = ThreadPoolExecutor(
            check_int("max_calls", max_calls, 1), f"llm_datadist-{name}"
        )

    async def transfer(self, call: Callable[[], _T]) -> _T:
        """Await a transfer. If the wait is canceled, cancel the transfer, and wait until it ends.

        So a canceled wait ends when no byte of the transfer lands any more, at either end.
        """
        cancellation = Cancellation()

        def run() -> _T:
            with cancellation:
                return call()

        return await self._await(run, cancellation.cancel)

    async def finish(self, call: Callable[[], _T], undo: Callable[[_T], object]) -> _T:
        """Await a short call. If the wait is canceled, let the call end, and undo its result.

        What `undo` raises is ignored: the wait ends with CancelledError in any case.
        """
        results: list[_T] = []

        def run() -> _T:
            results.append(call())
            return results[0]

        try:
            return await self._await(run, lambda: None)
        except asyncio.CancelledError:
            for result in results:
                with contextlib.suppress(RuntimeError):  # closed, which has undone everything
                    await _settle(asyncio.wrap_future(self._submit(partial(undo, result))))
            raise

    async def _await(self, run: Callable[[], _T], cancel: Callable[[], object]) -> _T:
        running = self._submit(run)
        ended = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not running.cancel():
                cancel()
                await _settle(ended)
            raise

    def _submit(self, call: Callable[[], _T]) -> Future[_T]:
        try:
            return self._threads.submit(call)
        except RuntimeError as error:
            raise RuntimeError(f"node {self._name!r} is closed; make another one") from error

    def close(self) -> None:
        """Wait for all calls, and end the threads.

        The instance is finalized before, so that calls end at once, those that still wait for a
        thread with the error of a finalized instance.
        """
        self._threads.shutdown()


async def until_done(future: asyncio.Future[_T]) -> _T:
    """Await a future. A wait that is canceled goes on until it is done, and raises then."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await _settle(future)
        raise


async def _settle(future: asyncio.Future[_T]) -> None:
    """Wait for the end of a call, whatever it is, also if this wait is canceled as well."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # retrieved, so that asyncio does not report it
