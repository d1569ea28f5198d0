"""Delay log records that are written under a lock until it is released.

Handlers belong to the program: one that takes a lock of its own, or calls this library, could
deadlock on a lock that the logging thread holds.
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
    """Per thread: the nesting depth of `later`, and the records that were delayed."""

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
    """Delay the log records of this thread until the outermost block of `later` ends.

    Must come before the lock: `with later(), self._lock:`.
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
