"""Notices of peers about faults in local memory: the memory is probed before it is marked.

A peer that met a fault sends a notice, because the owner does not notice a failed read by a peer.
A thread of the owner then probes the memory, and marks what this process cannot read either. So a
wrong or forged notice marks nothing; and as probing takes time, each peer gets a limited amount.

The thread does nothing else and holds no lock or entry while it probes: memory that never answers
blocks this thread only, and neither unregister_cache nor finalize nor other peers.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, final

from llm_datadist._control.workers import Workers
from llm_datadist._engine.link.messages import MAX_RANGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from llm_datadist._engine.link.messages import Faulted
    from llm_datadist._links import Link
    from llm_datadist._plan.layout import Piece
    from llm_datadist._registry import CacheRegistry, LocalCache

    Probe = Callable[[Sequence[int], Sequence[int], int], list[bool]]
    OnProbed = Callable[[Link, LocalCache, Faulted, list[Piece]], None]

__all__ = ["MAX_BYTES", "MAX_WAITING", "FaultNotices"]

logger = logging.getLogger("llm_datadist")

MAX_WAITING: Final = 16
"""Queued notices of all peers together."""
MAX_BYTES: Final = 1 << 30
"""Probed per peer and second; the limit of ranges is MAX_RANGES."""
_SECOND_NS: Final = 1_000_000_000
_PROBE_NS: Final = 1_000_000_000  # per notice
_PIECES_AT_ONCE: Final = 64  # between two checks whether the instance has ended
_WARNING_NS: Final = 60 * _SECOND_NS
_MAX_PEERS: Final = 4096


class _Spent(NamedTuple):
    """What was probed for one peer since a moment."""

    since_ns: int
    ranges: int
    bytes: int


@final
class FaultNotices:
    """Probes memory after notices of peers. Thread-safe; never blocks the caller.

    Args:
        registry: The local caches.
        probe: `Node.probe`.
        on_probed: Called on the worker after each notice was probed, with the pieces that cannot
            be read: none when the peer was wrong.
        clock_ns: Monotonic clock.
    """

    def __init__(
        self,
        registry: CacheRegistry,
        probe: Probe,
        on_probed: OnProbed,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._registry = registry
        self._probe = probe
        self._on_probed = on_probed
        self._clock_ns = clock_ns
        self._workers = Workers("llm_datadist-faults", limit=1, idle_seconds=0.0)
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        self._spent: dict[int, _Spent] = {}  # by cluster id
        self._dropped: Counter[int] = Counter()
        self._warned_ns: dict[int, int] = {}

    def receive(self, link: Link, message: Faulted) -> None:
        """Queue a peer's notice; drop it when there are too many."""
        cache = self._registry.accessible_at(message.entry)
        if cache is None:
            return  # another generation of the cache, no cache, or an inaccessible one
        if cache.device is not None:
            return  # this process cannot probe it; the peer keeps its own mark
        with self._lock:
            if self._closed:
                return
            admitted = self._waiting < MAX_WAITING and self._admit(link.cluster_id, message)
            self._waiting += admitted
        if not admitted:
            self._warn(link.cluster_id)
            return
        call = self._workers.submit(self._handle, link, cache, message)
        call.add_done_callback(self._finished)

    def close(self) -> None:
        """Stop probing; does not wait for a probe that is running."""
        with self._lock:
            self._closed = True
        self._workers.dismiss()

    def _handle(self, link: Link, cache: LocalCache, message: Faulted) -> None:
        bad = self._unreadable(_pieces(cache, message))
        if bad is not None:
            self._on_probed(link, cache, message, bad)

    def _finished(self, call: Future[None]) -> None:
        with self._lock:
            self._waiting -= 1
        if call.exception() is not None:
            logger.error("a notice of a fault was not handled", exc_info=call.exception())

    def _unreadable(self, pieces: list[Piece]) -> list[Piece] | None:
        """Return the pieces that this process cannot read; None if none was probed."""
        deadline_ns = self._clock_ns() + _PROBE_NS
        bad: list[Piece] = []
        for first in range(0, len(pieces), _PIECES_AT_ONCE):
            if self._closed:
                return None
            part = pieces[first : first + _PIECES_AT_ONCE]
            readable = self._probe([p.addr for p in part], [p.size for p in part], deadline_ns)
            bad += [piece for piece, good in zip(part, readable, strict=False) if not good]
            if len(readable) < len(part):
                return bad or None
        return bad

    def _admit(self, cluster_id: int, message: Faulted) -> bool:
        """Count a notice against the peer's limit; return False beyond it. The lock is held."""
        now_ns = self._clock_ns()
        spent = self._spent.get(cluster_id)
        if spent is None or now_ns - spent.since_ns >= _SECOND_NS:
            if len(self._spent) >= _MAX_PEERS:
                self._spent.clear()
            spent = _Spent(now_ns, 0, 0)
        ranges = spent.ranges + len(message.ranges)
        num_bytes = spent.bytes + sum(size for _, size in message.ranges)
        if ranges > MAX_RANGES or num_bytes > MAX_BYTES:
            return False
        self._spent[cluster_id] = _Spent(spent.since_ns, ranges, num_bytes)
        return True

    def _warn(self, cluster_id: int) -> None:
        """Log that notices are dropped, once a minute per peer."""
        now_ns = self._clock_ns()
        with self._lock:
            self._dropped[cluster_id] += 1
            last_ns = self._warned_ns.get(cluster_id)
            if last_ns is not None and now_ns - last_ns < _WARNING_NS:
                return
            if len(self._warned_ns) >= _MAX_PEERS:
                self._warned_ns.clear()
            self._warned_ns[cluster_id] = now_ns
            count = self._dropped.pop(cluster_id)
        logger.warning(
            "%d notices of faults by cluster %d were dropped: it sends more than %d ranges or %d "
            "bytes in a second, or %d of all peers are queued",
            count,
            cluster_id,
            MAX_RANGES,
            MAX_BYTES,
            MAX_WAITING,
        )


def _pieces(cache: LocalCache, message: Faulted) -> list[Piece]:
    """Return the slots and blocks of a notice, at most MAX_RANGES."""
    found = (piece for addr, size in message.ranges for piece in cache.layout.locate(addr, size))
    return list(itertools.islice(found, MAX_RANGES))
