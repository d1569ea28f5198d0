"""Reports of ended transfers, from the transfer threads to the model's thread."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_datadist.integrations.vllm.transfer_counts import TransferCounts

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIRST_WAIT_S = 0.002
_LONGEST_WAIT_S = 0.02
"""Also the longest delay of a new request that arrives while only transfers are pending."""


@dataclass(slots=True)
class Ended:
    """Requests whose transfers have ended.

    Attributes:
        sent: Requests whose blocks vLLM may reuse.
        loaded: Requests whose loads have ended, completely or not.
        failed: Those of `loaded` that lack blocks.
        failed_blocks: The local blocks that they lack.
    """

    sent: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    failed_blocks: set[int] = field(default_factory=set)


class Reports:
    """Collects ended transfers, and lets a worker without a model step wait for them.

    Thread-safe.

    Attributes:
        counts: For vLLM's metrics.
    """

    def __init__(self) -> None:
        self.counts: TransferCounts = TransferCounts()
        self._changed = threading.Condition()
        self._ended = Ended()
        self._num_changes = 0
        self._num_seen = 0
        self._quiet_since = time.monotonic()

    def note_change(self) -> None:
        """Wake the waiting model's thread, because a transfer has begun or ended."""
        with self._changed:
            self._num_changes += 1
            self._changed.notify_all()

    def add_sent(self, request_id: str) -> None:
        """Report a request whose blocks vLLM may reuse."""
        with self._changed:
            self._ended.sent.add(request_id)
            self.note_change()

    def count_released(self, reason: str) -> None:
        """Count a request whose blocks were kept for a consumer, and are not any more."""
        self.counts.add("requests_held", by=-1)
        self.counts.add("requests_released", reason)

    def add_loaded(self, request_id: str, failed_blocks: Iterable[int]) -> None:
        """Report a request whose load has ended, with the local blocks that it lacks."""
        missing = set(failed_blocks)
        with self._changed:
            self._ended.loaded.add(request_id)
            if missing:
                self._ended.failed.add(request_id)
                self._ended.failed_blocks |= missing
            self.note_change()

    def take(self) -> Ended:
        """Return what has ended since the last call."""
        with self._changed:
            ended, self._ended = self._ended, Ended()
            return ended

    def wait_while_quiet(self) -> None:
        """Wait for the next change, at most for a time that grows while nothing changes."""
        with self._changed:
            now = time.monotonic()
            if self._num_changes == self._num_seen:
                quiet_s = now - self._quiet_since
                wait_s = max(_FIRST_WAIT_S, min(_LONGEST_WAIT_S, quiet_s / 8))
                self._changed.wait_for(lambda: self._num_changes != self._num_seen, wait_s)
            else:
                self._quiet_since = now
            self._num_seen = self._num_changes
