"""What one end of a connection has been told and its threads wait for."""

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
    """Inbox, events and barrier releases, with waits. Thread-safe.

    Args:
        hopeless: Asked by a wait that is not fulfilled: an exception when nothing can fulfil it any
            more. Asked again after `poke`; it must not take a lock that a caller of Board holds.
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
        """The other end is done; waits that are not fulfilled raise."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def poke(self) -> None:
        """Let waits ask again whether they are hopeless."""
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
        """Count one more passage of a barrier; return the release that lets it through."""
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
