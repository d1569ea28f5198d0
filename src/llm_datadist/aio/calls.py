"""Runs blocking calls of an instance on threads, for coroutines that may be canceled."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar, final

from llm_datadist._backends.cancellation import Cancellation

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Calls"]

_T = TypeVar("_T")


@final
class Calls:
    """Threads for the calls of one node.

    Args:
        name: Of the node, for the names of the threads.
        max_calls: Calls that run at the same time; more wait for their turn.
    """

    def __init__(self, name: str, max_calls: int) -> None:
        self._threads = ThreadPoolExecutor(max_calls, f"llm_datadist-{name}")

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
        """Await a short call. If the wait is canceled, let the call end, and undo its result."""
        results: list[_T] = []

        def run() -> _T:
            results.append(call())
            return results[0]

        try:
            return await self._await(run, lambda: None)
        except asyncio.CancelledError:
            for result in results:
                await self._await(lambda result=result: undo(result), lambda: None)  # type: ignore[misc]
            raise

    async def _await(self, run: Callable[[], _T], cancel: Callable[[], object]) -> _T:
        running = self._threads.submit(run)
        ended = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not running.cancel():
                cancel()
                await _settle(ended)
            raise

    def close(self) -> None:
        """Wait for the calls that run, and end the threads."""
        self._threads.shutdown(cancel_futures=True)


async def _settle(future: asyncio.Future[_T]) -> None:
    """Wait for the end of a call, whatever it is, also if this wait is canceled as well."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # retrieved, so that asyncio does not report it
