"""Events that take little memory until something waits for them.

An event of asyncio or threading makes a queue for waiters at once, 0.8 KiB, and a process may have
thousands of links with several events each. Nothing waits for most of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import final

__all__ = ["LoopEvent", "ThreadEvent"]


@final
class LoopEvent:
    """An `asyncio.Event` that is small until something waits for it. Loop thread only."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: asyncio.Event | None = None

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it and wake all that wait."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        """Make later calls of `wait` wait until it is set again."""
        if self._is_set:  # then nothing waits for `_event` any more
            self._is_set = False
            self._event = None

    async def wait(self) -> None:
        """Return once it has been set, also if it was cleared since."""
        if self._is_set:
            return
        if self._event is None:
            self._event = asyncio.Event()
        await self._event.wait()


@final
class ThreadEvent:
    """A `threading.Event` that is small until something waits for it, and is set only once.

    It has no lock: a signal handler that interrupts a method may call any method.
    """

    __slots__ = ("_gates", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._gates: list[threading.Lock] = []  # a locked one for each thread that waits

    def is_set(self) -> bool:
        """Return whether it is set. Never blocks."""
        return self._is_set

    def set(self) -> None:
        """Set it and wake all that wait. Never blocks."""
        self._is_set = True
        with contextlib.suppress(IndexError):  # until none is left
            while True:
                self._gates.pop().release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for `timeout` seconds; return whether it is set."""
        if self._is_set:
            return True
        gate = threading.Lock()
        gate.acquire()
        self._gates.append(gate)
        try:
            if not self._is_set:  # otherwise `set` may not have seen the gate
                gate.acquire(timeout=-1 if timeout is None else max(timeout, 0.0))
        finally:
            with contextlib.suppress(ValueError):  # `set` has taken it
                self._gates.remove(gate)
        return self._is_set
