"""Progress of one transfer, shared by the threads that carry it out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, final

from llm_datadist._backends.outcomes import Code, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist._backends.nixl.chunks import Chunk
    from llm_datadist._backends.transfer import Transfer


@final
class Progress:
    """Hands out a transfer's chunks and adds up what became of them. Thread-safe."""

    def __init__(self, transfer: Transfer, chunks: Iterator[Chunk]) -> None:
        self.transfer = transfer
        self._chunks = chunks
        self._lock = threading.Lock()
        self._moved_bytes = 0
        self._is_aborted = False
        self._has_lacked_slot = False
        self._reason: Outcome | str = Outcome(Code.OK)

    @property
    def is_aborted(self) -> bool:
        """Whether the transfer ends before all of it is moved."""
        return self._is_aborted

    def next_chunk(self) -> Chunk | None:
        """Return a chunk that no thread has started; None when there is none, or after an abort."""
        with self._lock:
            return None if self._is_aborted else next(self._chunks, None)

    def add(self, outcome: Outcome) -> None:
        """Count a chunk's bytes; abort if it failed."""
        with self._lock:
            self._moved_bytes += outcome.moved_bytes
        if outcome.code != Code.OK:
            self.abort(outcome)

    def abort(self, reason: Outcome | str) -> None:
        """Start no more chunks. The first reason counts, but an outcome before a text."""
        with self._lock:
            if not self._is_aborted or isinstance(self._reason, str) > isinstance(reason, str):
                self._reason = reason
            self._is_aborted = True

    def no_slot(self) -> None:
        """Leave the remaining chunks to other threads: the calling one got no slot."""
        with self._lock:
            self._has_lacked_slot = True

    def result(self) -> Outcome | str:
        """Return the outcome, or why the lanes must do it, when all threads have ended."""
        if self._has_lacked_slot and self.next_chunk() is not None:
            return "no landing slot is free"
        if isinstance(self._reason, str):
            return self._reason
        return self._reason._replace(moved_bytes=self._moved_bytes)
