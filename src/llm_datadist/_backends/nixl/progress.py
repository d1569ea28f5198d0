"""What is left of a transfer and what became of the rest, for the threads that carry it out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from llm_datadist._backends.outcomes import Code, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist._backends.nixl.chunks import Chunk
    from llm_datadist._backends.transfer import Transfer

__all__ = ["Work"]


class Work:
    """See the module. Thread-safe."""

    def __init__(self, transfer: Transfer, waiting: Iterator[Chunk]) -> None:
        self.transfer = transfer
        self._ended = False
        self._waiting = waiting
        self._lock = threading.Lock()
        self._moved_bytes = 0
        self._was_left = False
        self._why: Outcome | str = Outcome(Code.OK)

    def has_ended(self) -> bool:
        """Whether something has ended it before all was moved."""
        return self._ended

    def next(self) -> Chunk | None:
        """Return a chunk that nobody has begun."""
        with self._lock:
            return None if self._ended else next(self._waiting, None)

    def count(self, copied: Outcome) -> None:
        """Take note of a chunk; a failed one ends it all."""
        with self._lock:
            self._moved_bytes += copied.moved_bytes
        if copied.code != Code.OK:
            self.end(copied)

    def end(self, why: Outcome | str) -> None:
        """Begin no more chunks; the first reason counts, but an outcome before a detour."""
        with self._lock:
            if not self._ended or (isinstance(self._why, str) and not isinstance(why, str)):
                self._why = why
            self._ended = True

    def leave(self) -> None:
        """Leave what is left to the other threads, for want of a slot."""
        with self._lock:
            self._was_left = True

    def result(self) -> Outcome | str:
        """Return what became of it, when nobody works on it any more."""
        if self._was_left and self.next() is not None:
            return "no landing slot is free"
        if isinstance(self._why, str):
            return self._why
        return self._why._replace(moved_bytes=self._moved_bytes)
