"""Table of the leases that peers hold on local caches. No I/O; the clock is an argument."""

from __future__ import annotations

import heapq
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np

from llm_datadist._types.lease import LeaseEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from llm_datadist._types.lease import LeaseEndReason

    Blocks: TypeAlias = NDArray[np.uint32]

Holder: TypeAlias = tuple[int, int]
"""(link id, lease id); the peer chooses the lease id, which is unique on its link only."""

MOST_LEASES = 1 << 16
MOST_BLOCKS = 1 << 22
"""Per link, so that a peer cannot make the table grow without limit."""

_SPARE_ENTRIES = 64


class BookFull(Exception):
    """The link has reached the limit of leases or leased blocks."""


@dataclass(slots=True)
class _Entry:
    cluster_id: int
    cache_id: int
    blocks: Blocks
    expires_ns: int


@final
class LeaseBook:
    """Leases that peers hold. Thread-safe.

    Args:
        clock_ns: Monotonic clock.
    """

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._entries: dict[Holder, _Entry] = {}
        self._by_link: dict[int, set[Holder]] = {}
        self._by_cache: dict[int, set[Holder]] = {}
        self._num_blocks: dict[int, int] = {}  # by link
        self._expiries: list[tuple[int, Holder]] = []  # a heap; those of renewed leases are stale

    def grant(
        self, holder: Holder, cluster_id: int, cache_id: int, blocks: Blocks, ttl_ns: int
    ) -> None:
        """Add a lease.

        Args:
            holder: Link and lease id.
            cluster_id: The peer, for `LeaseEnd`.
            cache_id: The local cache.
            blocks: Ascending, without repetition.
            ttl_ns: Lifetime, counted from now.

        Raises:
            BookFull: The link has too many leases or blocks already.
            ValueError: The link already has a lease with that id.
        """
        link_id = holder[0]
        with self._lock:
            of_link = self._by_link.setdefault(link_id, set())
            total = self._num_blocks.get(link_id, 0) + len(blocks)
            if holder in self._entries:
                raise ValueError(f"there is a lease {holder[1]} already")
            if len(of_link) >= MOST_LEASES or total > MOST_BLOCKS:
                raise BookFull
            expires_ns = self._clock_ns() + ttl_ns
            self._entries[holder] = _Entry(cluster_id, cache_id, blocks, expires_ns)
            of_link.add(holder)
            self._by_cache.setdefault(cache_id, set()).add(holder)
            self._num_blocks[link_id] = total
            heapq.heappush(self._expiries, (expires_ns, holder))

    def renew(self, holder: Holder, ttl_ns: int) -> bool:
        """Restart a lease's lifetime; return False if the lease is over."""
        with self._lock:
            entry = self._entries.get(holder)
            now_ns = self._clock_ns()
            if entry is None or entry.expires_ns <= now_ns:
                return False
            entry.expires_ns = now_ns + ttl_ns
            heapq.heappush(self._expiries, (entry.expires_ns, holder))
            if len(self._expiries) > 2 * len(self._entries) + _SPARE_ENTRIES:
                self._expiries = [(e.expires_ns, holder) for holder, e in self._entries.items()]
                heapq.heapify(self._expiries)
            return True

    def release(self, holder: Holder) -> list[LeaseEnd]:
        """End a lease because its holder released it."""
        return self._end([holder], "released")

    def end_link(self, link_id: int) -> list[LeaseEnd]:
        """End every lease of a link."""
        return self._end(self._by_link.get(link_id, ()), "peer lost")

    def end_cache(self, cache_id: int) -> list[LeaseEnd]:
        """End every lease on a cache."""
        return self._end(self._by_cache.get(cache_id, ()), "cache gone")

    def expire(self) -> list[LeaseEnd]:
        """End the leases that have expired."""
        ended = []
        with self._lock:
            now_ns = self._clock_ns()
            while self._expiries and self._expiries[0][0] <= now_ns:
                _, holder = heapq.heappop(self._expiries)
                entry = self._entries.get(holder)
                if entry is not None and entry.expires_ns <= now_ns:
                    ended.append(self._remove(holder, "expired"))
        return ended

    def next_expiry_ns(self) -> int | None:
        """Return when `expire` must run next, None for never; it may find nothing to do."""
        with self._lock:
            return self._expiries[0][0] if self._expiries else None

    def leased(self, cache_id: int) -> frozenset[int]:
        """Return the blocks of a cache that are leased now."""
        with self._lock:
            now_ns = self._clock_ns()
            entries = (self._entries[holder] for holder in self._by_cache.get(cache_id, ()))
            blocks = [entry.blocks for entry in entries if entry.expires_ns > now_ns]
        if not blocks:
            return frozenset()
        return frozenset(np.concatenate(blocks).tolist())

    def num_lent(self) -> tuple[int, int]:
        """Return how many leases there are, and how many blocks they name together."""
        with self._lock:
            return len(self._entries), sum(self._num_blocks.values())

    def _end(self, holders: Iterable[Holder], reason: LeaseEndReason) -> list[LeaseEnd]:
        with self._lock:
            now_ns = self._clock_ns()
            ended = []
            for holder in tuple(holders):
                entry = self._entries.get(holder)
                if entry is not None:
                    is_over = entry.expires_ns <= now_ns
                    ended.append(self._remove(holder, "expired" if is_over else reason))
            return ended

    def _remove(self, holder: Holder, reason: LeaseEndReason) -> LeaseEnd:
        entry = self._entries.pop(holder)
        link_id = holder[0]
        self._num_blocks[link_id] -= len(entry.blocks)
        for index, key in ((self._by_link, link_id), (self._by_cache, entry.cache_id)):
            index[key].discard(holder)
            if not index[key]:
                del index[key]
        if link_id not in self._by_link:
            del self._num_blocks[link_id]
        return LeaseEnd(entry.cluster_id, entry.cache_id, tuple(entry.blocks.tolist()), reason)
