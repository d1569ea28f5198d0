"""Lets a worker without a model step wait for its transfers, instead of asking in a busy loop."""

from __future__ import annotations

import threading
import time

__all__ = ["Changes"]

_FIRST_WAIT_S = 0.002
_LONGEST_WAIT_S = 0.02
"""Also how much later than otherwise a new request is noticed while only transfers are pending."""


class Changes:
    """Counts what transfers begin and bring about; thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._seen = 0
        self._quiet_since = time.monotonic()

    def notify(self) -> None:
        """Say that a transfer has begun, or that there is something to report."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_while_quiet(self) -> None:
        """Return at the next change, or after a while that grows with the time nothing changed."""
        with self._changed:
            now = time.monotonic()
            if self._count == self._seen:
                quiet_s = now - self._quiet_since
                wait_s = max(_FIRST_WAIT_S, min(_LONGEST_WAIT_S, quiet_s / 8))
                self._changed.wait_for(lambda: self._count != self._seen, wait_s)
            else:
                self._quiet_since = now
            self._seen = self._count
