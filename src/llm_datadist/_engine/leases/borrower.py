"""The reader's side of leases: asks the owner of a cache not to reuse blocks for some time."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, final

import numpy as np

from llm_datadist._engine.link.messages import (
    MAX_LEASED_BLOCKS,
    Lend,
    Refused,
    Release,
    Renew,
    decode_answer,
    encode,
)
from llm_datadist._errors import LLMException, LLMStatusCode, fail, invalid
from llm_datadist._plan import blocks_array
from llm_datadist._protocol.codec import DECODE_ERRORS
from llm_datadist._protocol.texts import shown
from llm_datadist._types import BlocksCacheKey, CacheKey
from llm_datadist._types.checks import UINT32_MAX, check_uint32
from llm_datadist._types.named_calls import names_calls

if TYPE_CHECKING:
    from types import TracebackType

    from llm_datadist._engine.instance import Instance
    from llm_datadist._links import Link
    from llm_datadist._types import AnyKey, BlockList

_STATUSES = frozenset(
    {
        LLMStatusCode.LLM_PARAM_INVALID,
        LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
        LLMStatusCode.LLM_OUT_OF_MEMORY,
    }
)
"""Statuses with which an owner may refuse a lease."""


@names_calls
@final
class Lease:
    """Blocks of a peer's cache that its owner was asked not to reuse; made by `CacheManager.lease`.

    As a context manager it is released at the end of the block. It ends by itself when its time is
    over, when either process or the link ends, and with the cache. Thread-safe.

    Attributes:
        cluster_id: The owner.
        cache_key: The key that was leased.
        blocks: Its blocks, None for all that the key names.
    """

    __slots__ = (
        "__weakref__",
        "_borrower",
        "_expires_ns",
        "_lease_id",
        "_link",
        "_released",
        "_ttl_ms",
        "blocks",
        "cache_key",
        "cluster_id",
    )

    def __init__(
        self,
        borrower: Borrower,
        link: Link,
        lease_id: int,
        cache_key: AnyKey,
        blocks: tuple[int, ...] | None,
        ttl_ms: int,
        asked_ns: int,
    ) -> None:
        self._borrower = borrower
        self._link = link
        self._lease_id = lease_id
        self._ttl_ms = ttl_ms
        self._expires_ns = asked_ns + ttl_ms * 1_000_000
        self._released = False
        self.cluster_id: int = cache_key.cluster_id
        self.cache_key: AnyKey = cache_key
        self.blocks: tuple[int, ...] | None = blocks

    @property
    def active(self) -> bool:
        """Whether the lease holds, as far as is known without asking the owner.

        The local lifetime starts before the owner's, so that it ends first. A cache that was
        unregistered is not noticed: a transfer from it fails.
        """
        return not self._released and self._link.alive and time.monotonic_ns() < self._expires_ns

    def renew(self, ttl_ms: int | None = None) -> None:
        """Restart the lifetime from now.

        Args:
            ttl_ms: How long; None = as long as before.

        Raises:
            TypeError, ValueError: ttl_ms is no uint32.
            LLMException: LLM_KV_CACHE_NOT_EXIST: the lease has expired or its cache is gone;
                LLM_PARAM_INVALID: ttl_ms is 0, or the lease was released; LLM_LINK_FAILED,
                LLM_TIMEOUT (sync_kv_timeout), LLM_ENGINE_FINALIZED.
        """
        ttl = self._ttl_ms if ttl_ms is None else check_ttl("renew", ttl_ms)
        if self._released:
            raise invalid(
                "renew",
                "the lease was released",
                "lease the blocks again",
                cluster_id=self.cluster_id,
            )
        asked_ns = time.monotonic_ns()
        self._borrower.ask("renew", self._link, Renew(self._lease_id, ttl))
        self._ttl_ms = ttl
        self._expires_ns = asked_ns + ttl * 1_000_000

    def release(self) -> None:
        """End the lease and notify the owner without waiting for it. Idempotent, never raises."""
        if not self._released:
            self._released = True
            self._borrower.notify_released(self._link, self._lease_id)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return (
            f"Lease(cluster_id={self.cluster_id}, cache_key={self.cache_key!r}, "
            f"blocks={self.blocks}, active={self.active})"
        )


@final
class Borrower:
    """Requests leases on peers' caches. Thread-safe."""

    def __init__(self, instance: Instance) -> None:
        self._links = instance.links
        self._timeout_ms = instance.config.sync_timeout_ms
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._leases: weakref.WeakSet[Lease] = weakref.WeakSet()

    def lease(self, key: AnyKey, blocks: BlockList | None, ttl_ms: int) -> Lease:
        """See CacheManager.lease."""
        operation = "lease"
        ttl = check_ttl(operation, ttl_ms)
        listed, words = None, None
        if blocks is not None:
            array = blocks_array(operation, "blocks", blocks, None, highest=UINT32_MAX)
            if len(array) > MAX_LEASED_BLOCKS:
                raise invalid(
                    operation,
                    f"blocks has {len(array)} entries",
                    f"give at most {MAX_LEASED_BLOCKS}, or None for the whole cache",
                )
            listed, words = tuple(array.tolist()), array.astype(np.dtype("<u4")).tobytes()
        link = self._links.get(key.cluster_id, operation)
        lease_id, asked_ns = next(self._ids), time.monotonic_ns()
        try:
            self.ask(operation, link, Lend(lease_id, _numbers(key), words, ttl))
        except LLMException as error:
            if error.status_code is LLMStatusCode.LLM_TIMEOUT:
                self.notify_released(link, lease_id)  # it may be granted yet
            raise
        made = Lease(self, link, lease_id, key, listed, ttl, asked_ns)
        with self._lock:
            self._leases.add(made)
        return made

    def num_held(self) -> int:
        """Return how many leases are active, among those that the program still refers to."""
        with self._lock:
            leases = list(self._leases)
        return sum(lease.active for lease in leases)

    def ask(self, operation: str, link: Link, message: Lend | Renew) -> None:
        """Send a request to an owner; raise its refusal."""
        body = self._links.request(link, encode(message), self._timeout_ms, operation)
        try:
            answer = decode_answer(body)
        except DECODE_ERRORS as error:
            raise fail(
                LLMStatusCode.LLM_FAILED,
                operation,
                f"the peer's answer cannot be read ({shown(str(error))})",
                "use the same version on both sides",
                cluster_id=link.cluster_id,
            ) from error
        if isinstance(answer, Refused):
            known = answer.status in _STATUSES
            raise fail(
                LLMStatusCode(answer.status) if known else LLMStatusCode.LLM_FAILED,
                operation,
                answer.problem,
                answer.remedy,
                cluster_id=link.cluster_id,
            )

    def notify_released(self, link: Link, lease_id: int) -> None:
        """Notify an owner that a lease was released; ignore a failed link."""
        with suppress(LLMException):
            self._links.notify(link, encode(Release(lease_id)))


def check_ttl(operation: str, ttl_ms: object) -> int:
    """Validate and return a lease's lifetime."""
    ttl = check_uint32("ttl_ms", ttl_ms)
    if ttl == 0:
        raise invalid(operation, "ttl_ms is 0", "give the milliseconds that it may last")
    return ttl


def _numbers(key: AnyKey) -> tuple[int, ...]:
    if isinstance(key, BlocksCacheKey):
        return (key.model_id,)
    if isinstance(key, CacheKey):
        return key.req_id, key.model_id, key.prefix_id
    return key.cache_id, key.batch_index
