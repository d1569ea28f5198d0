"""Log lines that are written under a lock reach their handlers once it is free.

A handler is the program's own: it may take locks of its own, or call this library, and would wait
for ever for a lock that the thread which logs holds.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["later"]

_logger: Final = logging.getLogger("llm_datadist")


@final
class _Held(threading.local):
    """Of one thread: how many blocks of `later` it is in, and what it has logged there."""

    depth = 0

    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []


_held = _Held()


def _passes(record: logging.LogRecord) -> bool:
    if not _held.depth:
        return True
    _held.records.append(record)
    return False


_logger.addFilter(_passes)


@contextmanager
def later() -> Iterator[None]:
    """Keep what this thread logs until the block, or the outermost of nested ones, is left.

    Goes before the lock: `with later(), self._lock:`.
    """
    _held.depth += 1
    try:
        yield
    finally:
        _held.depth -= 1
        if not _held.depth:
            records, _held.records = _held.records, []
            for record in records:
                _logger.handle(record)
