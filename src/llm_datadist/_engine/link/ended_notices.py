"""Notices to peers that transfers for requests have ended, so that both ends know the request.

They may be lost: a transfer never waits for one, a peer that does not read them costs no memory,
and nothing depends on them but log lines and spans.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, final

from llm_datadist._engine.link.messages import MAX_ENDED, Ended, EndedTransfer, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist import _tracing
    from llm_datadist._engine.link.data_plane import DataPlane
    from llm_datadist._links import Link, LinkTable

__all__ = ["MAX_QUEUED", "PAUSE_SECONDS", "EndedNotices"]

MAX_QUEUED: Final = 4096
"""Notices of all links together; further ones are dropped."""
PAUSE_SECONDS: Final = 0.05
"""After a message: what ends meanwhile is sent together."""


class _Item(NamedTuple):
    link: Link
    request_id: str
    traceparent: str | None
    transfer: _tracing.EndedTransfer
    ended_ns: int


@final
class EndedNotices:
    """Sends notices of transfers that this instance has made. Thread-safe; takes no lock.

    The first one is sent at once, by the control thread; those that follow at short intervals share
    a message, and cost the caller little more than the append to a queue.

    Args:
        links: The links; its `hooks.on_unlink` sends what is queued.
    """

    def __init__(self, links: LinkTable) -> None:
        self._links = links
        self._queue: deque[_Item] = deque()
        self._scheduled = False
        links.hooks.on_unlink = self._send_queued

    def end(
        self, trace: _tracing.RequestTrace, link: Link | None, transfer: _tracing.EndedTransfer
    ) -> None:
        """Make the span of a transfer that has just ended, and queue the notice to its peer."""
        traceparent = trace.end(transfer)
        if link is None:
            return
        data: DataPlane = link.data
        if not data.takes_ended:
            return
        if len(self._queue) >= MAX_QUEUED:
            data.lost_notices += 1
            return
        item = _Item(link, trace.request_id, traceparent, transfer, time.monotonic_ns())
        self._queue.append(item)
        if not self._scheduled:  # two threads may both schedule it, which does no harm
            self._scheduled = True
            self._links.post(self._send)

    def _send(self) -> None:
        self._send_queued()
        self._links.post(self._after_pause, PAUSE_SECONDS)

    def _after_pause(self) -> None:
        self._scheduled = False  # before the look: what is queued after it schedules again
        if self._queue:
            self._scheduled = True
            self._send()

    def _send_queued(self) -> None:
        """Send what is queued now. Control thread only."""
        by_link: dict[Link, list[_Item]] = {}
        for _ in range(len(self._queue)):
            item = self._queue.popleft()
            by_link.setdefault(item.link, []).append(item)
        for link, items in by_link.items():
            rest = iter(items)
            while some := list(islice(rest, MAX_ENDED)):
                if not self._links.try_notify(link, encode(_message(some))):
                    data: DataPlane = link.data
                    data.lost_notices += len(some)


def _message(items: Sequence[_Item]) -> Ended:
    now_ns = time.monotonic_ns()
    return Ended(
        tuple(
            EndedTransfer(
                item.request_id,
                item.traceparent,
                item.transfer.operation,
                item.transfer.path,
                item.transfer.num_bytes,
                item.transfer.error.status_code if item.transfer.error is not None else 0,
                item.transfer.duration_ns,
                now_ns - item.ended_ns,
            )
            for item in items
        )
    )
