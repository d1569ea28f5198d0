"""What peers say about own memory: a reason to look, never to believe.

A peer that met a fault sends a notice, because memory that it reads by itself fails without its
owner's knowledge. The owner's own thread then looks at the memory, and marks what this process
cannot read either. So a notice that is wrong, or a lie, marks nothing; and as looking takes time,
each peer gets a limited amount of it.

The thread serves nobody else and holds nothing while it looks: memory that never answers keeps it,
and neither a cache that is unregistered, nor the instance's end, nor other peers.
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

    Look = Callable[[Sequence[int], Sequence[int], int], list[bool]]
    Found = Callable[[Link, LocalCache, Faulted, list[Piece]], None]

__all__ = ["MAX_BYTES", "MAX_WAITING", "FaultNotices"]

logger = logging.getLogger("llm_datadist")

MAX_WAITING: Final = 16
"""Notices that wait, of all peers together."""
MAX_BYTES: Final = 1 << 30
"""That one peer can have looked at in a second; of ranges it is MAX_RANGES."""
_SECOND_NS: Final = 1_000_000_000
_LOOK_NS: Final = 1_000_000_000  # at one notice
_PIECES_AT_ONCE: Final = 64  # between two looks at whether the instance has ended
_COMPLAINT_NS: Final = 60 * _SECOND_NS
_MAX_PEERS: Final = 4096


class _Spent(NamedTuple):
    """What a peer has had looked at since a moment."""

    since_ns: int
    ranges: int
    bytes: int


@final
class FaultNotices:
    """Looks at what peers complain of. Thread-safe; nothing here blocks the caller.

    Args:
        registry: The own caches.
        look: `Node.probe`.
        found: Called on the worker for each notice that was looked at to its end, with the pieces
            that cannot be read: none, when the peer was wrong.
        clock_ns: Monotonic clock.
    """

    def __init__(
        self,
        registry: CacheRegistry,
        look: Look,
        found: Found,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._registry = registry
        self._look = look
        self._found = found
        self._clock_ns = clock_ns
        self._workers = Workers("llm_datadist-faults", limit=1, idle_seconds=0.0)
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        self._spent: dict[int, _Spent] = {}  # by cluster id
        self._dropped: Counter[int] = Counter()
        self._complained_ns: dict[int, int] = {}

    def receive(self, link: Link, message: Faulted) -> None:
        """Take a peer's notice; it is looked at later, or dropped when there are too many."""
        cache = self._registry.accessible_at(message.entry)
        if cache is None:
            return  # another life of the cache, no cache, or one that the peer may not touch
        if cache.device is not None:
            return  # this process cannot tell; the peer remembers for itself
        with self._lock:
            if self._closed:
                return
            admitted = self._waiting < MAX_WAITING and self._admit(link.cluster_id, message)
            self._waiting += admitted
        if not admitted:
            self._complain(link.cluster_id)
            return
        call = self._workers.submit(self._attend, link, cache, message)
        call.add_done_callback(self._attended)

    def close(self) -> None:
        """Look at nothing more; does not wait for a look that is under way."""
        with self._lock:
            self._closed = True
        self._workers.dismiss()

    def _attend(self, link: Link, cache: LocalCache, message: Faulted) -> None:
        bad = self._unreadable(_pieces(cache, message))
        if bad is not None:
            self._found(link, cache, message, bad)

    def _attended(self, call: Future[None]) -> None:
        with self._lock:
            self._waiting -= 1
        if call.exception() is not None:
            logger.error("a notice of a fault is not looked at", exc_info=call.exception())

    def _unreadable(self, pieces: list[Piece]) -> list[Piece] | None:
        """Return the pieces that this process cannot read; None if it did not look at all."""
        deadline_ns = self._clock_ns() + _LOOK_NS
        bad: list[Piece] = []
        for first in range(0, len(pieces), _PIECES_AT_ONCE):
            if self._closed:
                return None
            part = pieces[first : first + _PIECES_AT_ONCE]
            readable = self._look([p.addr for p in part], [p.size for p in part], deadline_ns)
            bad += [piece for piece, good in zip(part, readable, strict=False) if not good]
            if len(readable) < len(part):
                return bad or None
        return bad

    def _admit(self, cluster_id: int, message: Faulted) -> bool:
        """Count what a peer asks for; False if it is more than it may. With the lock held."""
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

    def _complain(self, cluster_id: int) -> None:
        """Log that notices are dropped, once a minute for each peer."""
        now_ns = self._clock_ns()
        with self._lock:
            self._dropped[cluster_id] += 1
            last_ns = self._complained_ns.get(cluster_id)
            if last_ns is not None and now_ns - last_ns < _COMPLAINT_NS:
                return
            if len(self._complained_ns) >= _MAX_PEERS:
                self._complained_ns.clear()
            self._complained_ns[cluster_id] = now_ns
            count = self._dropped.pop(cluster_id)
        logger.warning(
            "%d notices of faults by cluster %d are not looked at: it sends more than %d ranges or "
            "%d bytes in a second, or %d of all peers wait",
            count,
            cluster_id,
            MAX_RANGES,
            MAX_BYTES,
            MAX_WAITING,
        )


def _pieces(cache: LocalCache, message: Faulted) -> list[Piece]:
    """Return the slots and blocks that a notice is about, MAX_RANGES of them at most."""
    found = (piece for addr, size in message.ranges for piece in cache.layout.locate(addr, size))
    return list(itertools.islice(found, MAX_RANGES))
