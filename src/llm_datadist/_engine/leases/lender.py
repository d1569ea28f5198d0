"""The owner's side of leases: grants them, expires them, reports their end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, final

import numpy as np

from llm_datadist._engine.leases.book import MOST_BLOCKS, MOST_LEASES, BookFull, LeaseBook
from llm_datadist._engine.link.messages import Granted, Refused, encode
from llm_datadist._errors import LLMStatusCode
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._types import BlocksCacheKey, Cache, CacheKey, CacheKeyByIdAndIndex

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.leases.book import Blocks
    from llm_datadist._engine.link.messages import Lend, Release, Renew
    from llm_datadist._links import Link
    from llm_datadist._registry import LocalCache
    from llm_datadist._types.lease import LeaseEnd

logger = logging.getLogger("llm_datadist")

_INVALID = LLMStatusCode.LLM_PARAM_INVALID
_NOT_EXIST = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
_KEYS = {1: BlocksCacheKey, 2: CacheKeyByIdAndIndex, 3: CacheKey}


class _RefusedError(Exception):
    """The lease is refused; the arguments are those of `Refused`."""


@final
class Lender:
    """Grants leases on the caches of one instance. Thread-safe.

    A lease protects nothing by itself: the owner's scheduler asks for the leased blocks, and must
    not reuse them.
    """

    def __init__(self, instance: Instance) -> None:
        self._cluster_id = instance.cluster_id
        self._registry = instance.registry
        self._links = instance.links
        self._book = LeaseBook(time.monotonic_ns)
        self._lock = threading.Lock()
        self._alarm_ns: int | None = None
        self._callback: Callable[[LeaseEnd], object] | None = None
        self._unreported: deque[LeaseEnd] = deque()
        self._reporting = False

    def leased_blocks(self, cache: Cache) -> frozenset[int]:
        """See CacheManager.leased_blocks."""
        return self._book.leased(self._registry.find("leased_blocks", cache).cache_id)

    def num_lent(self) -> tuple[int, int]:
        """Return how many leases peers have, and how many blocks these name together."""
        return self._book.num_lent()

    def on_end(self, callback: Callable[[LeaseEnd], object] | None) -> None:
        """See CacheManager.on_lease_end."""
        self._callback = callback

    # Requests of peers, on worker threads.

    def lend(self, link: Link, message: Lend) -> bytes:
        """Grant a lease, or answer why it is refused."""
        try:
            self._lend(link, message)
        except _RefusedError as refusal:
            return encode(Refused(*refusal.args))
        return encode(Granted())

    def renew(self, link: Link, message: Renew) -> bytes:
        """Restart a lease's lifetime, or answer that it is over."""
        if self._book.renew((link.link_id, message.lease_id), message.ttl_ms * 1_000_000):
            self._watch()
            return encode(Granted())
        return encode(
            Refused(
                _NOT_EXIST,
                "the lease is over: it has expired, or its cache is gone",
                "the blocks may hold something else by now; look again before a new lease",
            )
        )

    def release(self, link: Link, message: Release) -> None:
        """End a lease."""
        self._report(self._book.release((link.link_id, message.lease_id)))

    # Other ends of leases.

    def link_ended(self, link_id: int) -> None:
        """End the leases of a link."""
        self._report(self._book.end_link(link_id))

    def cache_gone(self, cache_id: int) -> None:
        """End the leases on a cache."""
        self._report(self._book.end_cache(cache_id))

    def _expire(self) -> None:
        with self._lock:
            self._alarm_ns = None
        self._report(self._book.expire())
        self._watch()

    def _lend(self, link: Link, message: Lend) -> None:
        try:
            key = _KEYS[len(message.key)](self._cluster_id, *message.key)
        except ValueError as error:
            raise ProtocolError(f"a lease of a key that cannot be: {error}") from error
        found = self._registry.named(key)
        if found is None:
            raise _RefusedError(_NOT_EXIST, *self._registry.absent(key))
        local, slot = found
        if not local.accessible:
            raise _RefusedError(
                _INVALID,
                f"cache {local.cache_id}, named by {key!r}, is not remote-accessible",
                "register it there with remote_accessible=True",
            )
        holder = link.link_id, message.lease_id
        blocks = _blocks(key, local, slot, message.blocks)
        try:
            ttl_ns = message.ttl_ms * 1_000_000
            self._book.grant(holder, link.cluster_id, local.cache_id, blocks, ttl_ns)
        except BookFull:
            raise _RefusedError(
                LLMStatusCode.LLM_OUT_OF_MEMORY,
                f"a link may have {MOST_LEASES} leases and {MOST_BLOCKS} leased blocks at most",
                "release leases that are not needed any more",
            ) from None
        # Link and cache may have ended before the lease was in the book.
        if not link.alive:
            self.link_ended(link.link_id)
        if self._registry.get(local.cache_id) is not local:
            self.cache_gone(local.cache_id)
            raise _RefusedError(
                _NOT_EXIST, f"cache {local.cache_id} of the peer ended during the call", "recompute"
            )
        self._watch()

    def _watch(self) -> None:
        """Schedule `_expire` for the next lease that expires."""
        with self._lock:
            due_ns = self._book.next_expiry_ns()
            if due_ns is None or (self._alarm_ns is not None and self._alarm_ns <= due_ns):
                return
            self._alarm_ns = due_ns
        self._links.call_later(max(0, due_ns - time.monotonic_ns()) / 1e9, self._expire)

    def _report(self, ends: list[LeaseEnd]) -> None:
        if not ends or self._callback is None:
            return
        with self._lock:
            self._unreported.extend(ends)
            if self._reporting:
                return
            self._reporting = True
        self._links.call_later(0, self._report_all)

    def _report_all(self) -> None:
        """Call the callback for each end in turn, on a thread that serves no peer."""
        while True:
            with self._lock:
                if not self._unreported:
                    self._reporting = False
                    return
                end = self._unreported.popleft()
            callback = self._callback
            if callback is None:
                continue
            try:
                callback(end)
            except BaseException:  # SystemExit too: it would end the calls that follow
                logger.exception("the callback of on_lease_end failed for %r", end)


def _blocks(
    key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex,
    local: LocalCache,
    slot: int,
    wanted: bytes | None,
) -> Blocks:
    """Return the blocks (slots) of a lease, ascending."""
    count = local.layout.num_units
    unit = "block" if local.is_blocks else "slot"
    if wanted is None:
        if isinstance(key, BlocksCacheKey):
            return np.arange(count, dtype=np.uint32)
        blocks = np.array([slot], np.uint32)
    elif not local.is_blocks or slot:
        raise _RefusedError(
            _INVALID,
            f"blocks were given, and {key!r} names {unit} {slot} of cache {local.cache_id}",
            "leave blocks out, or name a blocks cache (batch_index 0)",
        )
    else:
        blocks = np.unique(np.frombuffer(wanted, np.dtype("<u4"))).astype(np.uint32)
    if len(blocks) and blocks[-1] >= count:
        raise _RefusedError(
            _INVALID,
            f"{unit} {blocks[-1]} was asked for, cache {local.cache_id} has {count} {unit}s",
            f"give indices 0 to {count - 1}",
        )
    return blocks
