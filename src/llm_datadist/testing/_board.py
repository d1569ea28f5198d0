"""Inbox, events and barriers of one end of a connection, with bounded waits."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

from llm_datadist.testing.exits import GroupClosed, Value

if TYPE_CHECKING:
    from collections.abc import Callable


def _never() -> Exception | None:
    return None


class Board:
    """Received messages, events and barrier releases. Thread-safe.

    Args:
        hopeless: Called by waits: returns an exception if the wait can never be fulfilled, else
            None. Called again after `poke`; it must not take a lock that a caller of Board holds.
    """

    def __init__(self, hopeless: Callable[[], Exception | None] = _never) -> None:
        self._hopeless = hopeless
        self._ended = False
        self._changed = threading.Condition()
        self._inbox: deque[Value] = deque()
        self._events: dict[str, Value] = {}
        self._released: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()

    def deliver(self, value: Value) -> None:
        with self._changed:
            self._inbox.append(value)
            self._changed.notify_all()

    def set_event(self, name: str, value: Value) -> None:
        with self._changed:
            self._events[name] = value
            self._changed.notify_all()

    def release(self, barrier: str) -> None:
        with self._changed:
            self._released[barrier] += 1
            self._changed.notify_all()

    def end(self) -> None:
        """Note that the other end is done, so that unfulfilled waits raise."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def poke(self) -> None:
        """Make waits call `hopeless` again."""
        with self._changed:
            self._changed.notify_all()

    @property
    def events(self) -> dict[str, Value]:
        with self._changed:
            return dict(self._events)

    def receive(self, timeout_s: float) -> Value:
        with self._changed:
            self._wait(lambda: bool(self._inbox), timeout_s, "a message")
            return self._inbox.popleft()

    def event(self, name: str, timeout_s: float) -> Value:
        with self._changed:
            self._wait(lambda: name in self._events, timeout_s, f"event {name!r}")
            return self._events[name]

    def arrive(self, barrier: str) -> int:
        """Arrive at a barrier; return the number of the release to wait for."""
        with self._changed:
            self._passed[barrier] += 1
            return self._passed[barrier]

    def pass_barrier(self, barrier: str, release: int, timeout_s: float) -> None:
        with self._changed:
            self._wait(
                lambda: self._released[barrier] >= release, timeout_s, f"barrier {barrier!r}"
            )

    def wait_end(self, timeout_s: float | None) -> bool:
        """Wait until the other end is done; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout_s)

    def _wait(self, fulfilled: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not fulfilled():
            if reason := self._hopeless():
                raise reason
            if self._ended:
                raise GroupClosed
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no {what} within {timeout_s:g} s")
            self._changed.wait(left_s)
