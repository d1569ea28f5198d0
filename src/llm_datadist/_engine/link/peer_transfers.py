"""Transfers that peers have made with local memory for a request: their log lines and spans.

A peer's notices are its claims. They change nothing, and each peer gets a limited number of lines
and spans.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Final, final

from llm_datadist._control.sockets import printed
from llm_datadist._errors import LLMStatusCode
from llm_datadist._tracing import EndedTransfer, has_tracer, make_peer_span

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._engine.link import messages
    from llm_datadist._links import Link

__all__ = ["MAX_LINES", "MAX_SLOW_LINES", "MAX_SPANS", "PeerTransfers"]

logger = logging.getLogger("llm_datadist")

MAX_SPANS: Final = 2000
"""Per peer and second."""
MAX_LINES: Final = 100
"""At DEBUG, per peer and second."""
MAX_SLOW_LINES: Final = 10
"""Warnings about slow transfers, per peer and minute."""
_SECOND_NS: Final = 1_000_000_000
_MAX_PEERS: Final = 4096


@final
class _Rate:
    """Admits a number of events per peer and period. Takes no lock: two threads may admit one more.

    Args:
        limit: Events.
        period_ns: The period.
        clock_ns: Monotonic clock.
    """

    def __init__(self, limit: int, period_ns: int, clock_ns: Callable[[], int]) -> None:
        self._limit = limit
        self._period_ns = period_ns
        self._clock_ns = clock_ns
        self._since: dict[int, tuple[int, int]] = {}  # cluster id -> (begin, events)

    def admits(self, cluster_id: int) -> bool:
        """Count an event; return whether it is within the limit."""
        now_ns = self._clock_ns()
        begin_ns, events = self._since.get(cluster_id, (now_ns, 0))
        if now_ns - begin_ns >= self._period_ns:
            begin_ns, events = now_ns, 0
        if events >= self._limit:
            return False
        if len(self._since) >= _MAX_PEERS:
            self._since.clear()
        self._since[cluster_id] = begin_ns, events + 1
        return True


@final
class PeerTransfers:
    """Logs and traces what peers say of their transfers. Thread-safe; never blocks.

    Args:
        slow_ms: Duration above which a transfer is logged as a warning; None for never.
        clock_ns: Monotonic clock.
    """

    def __init__(
        self, slow_ms: int | None, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._slow_ns = sys.maxsize if slow_ms is None else slow_ms * 1_000_000
        self._spans = _Rate(MAX_SPANS, _SECOND_NS, clock_ns)
        self._lines = _Rate(MAX_LINES, _SECOND_NS, clock_ns)
        self._slow_lines = _Rate(MAX_SLOW_LINES, 60 * _SECOND_NS, clock_ns)

    def receive(self, link: Link, message: messages.Ended) -> None:
        """Take a peer's notice."""
        traced, logged = has_tracer(), logger.isEnabledFor(logging.DEBUG)
        for each in message.transfers:
            slow = each.duration_ns > self._slow_ns
            if slow and self._slow_lines.admits(link.cluster_id):
                self._log(link, each, logging.WARNING, "slow transfer by a peer: ")
            elif logged and self._lines.admits(link.cluster_id):
                self._log(link, each, logging.DEBUG, "")
            if traced and each.traceparent is not None and self._spans.admits(link.cluster_id):
                _make_span(link, each, each.traceparent)

    @staticmethod
    def _log(link: Link, ended: messages.EndedTransfer, level: int, begin: str) -> None:
        logger.log(
            level,
            "%s%s, request %s, by peer cluster %d at %s, %d bytes over %s, %.1f ms, %s",
            begin,
            ended.operation,
            ended.request_id,
            link.cluster_id,
            printed(link.address),
            ended.num_bytes,
            ended.path,
            ended.duration_ns / 1e6,
            _status(ended),
        )


def _status(ended: messages.EndedTransfer) -> str:
    try:
        return LLMStatusCode(ended.status).name
    except ValueError:  # of a later version
        return f"status {ended.status}"


def _make_span(link: Link, ended: messages.EndedTransfer, traceparent: str) -> None:
    transfer = EndedTransfer(
        ended.operation,
        link.cluster_id,
        link.address,
        ended.path,
        ended.num_bytes,
        ended.duration_ns,
        peer_status=_status(ended),
    )
    make_peer_span(transfer, ended.request_id, traceparent, ended.age_ns)
