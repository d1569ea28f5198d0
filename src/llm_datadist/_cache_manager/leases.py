"""Calls about leases: those of readers and those of owners."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._cache_manager.call_group import Calls
from llm_datadist._types import BlocksCacheKey, Cache, CacheKey, CacheKeyByIdAndIndex
from llm_datadist._types.checks import check_instance, wrong_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._engine.leases.borrower import Lease
    from llm_datadist._types import BlockList
    from llm_datadist._types.lease import LeaseEnd


class LeaseCalls(Calls):
    """Calls about leases *(extension)*."""

    def lease(
        self,
        cache_key: BlocksCacheKey | CacheKeyByIdAndIndex | CacheKey,
        blocks: BlockList | None = None,
        *,
        ttl_ms: int = 10_000,
    ) -> Lease:
        """Ask the owner of a cache to leave blocks as they are for a while *(extension)*.

        The owner's scheduler sees them in `leased_blocks` until the lease is released or its time
        is over. A lease does not force the owner: if it unregisters the memory, transfers raise, as
        always. One small message over the link.

        Args:
            cache_key: A cache of a linked peer. BlocksCacheKey: blocks of it. CacheKey,
                CacheKeyByIdAndIndex: the slot (of a blocks cache: the block) that it names.
            blocks: Blocks of a blocks cache; None = all that the key names.
            ttl_ms: Milliseconds until it ends by itself, by the owner's clock, uint32.

        Returns:
            A Lease, to be released, or used as a context manager.
        Raises:
            TypeError: A wrong type.
            ValueError: A negative index, ttl_ms outside uint32.
            LLMException: LLM_NOT_YET_LINK, LLM_KV_CACHE_NOT_EXIST (no such key there),
                LLM_PARAM_INVALID (an index out of range, blocks of a contiguous cache, ttl_ms 0, a
                cache that is not remote-accessible), LLM_OUT_OF_MEMORY (65,536 leases on one link),
                LLM_TIMEOUT after sync_kv_timeout, LLM_LINK_FAILED, LLM_ENGINE_FINALIZED. After a
                failure there is no lease.
        Source: docs/howto/leases.md.
        """
        self._engine.check_open("lease")
        key = check_instance("cache_key", cache_key, BlocksCacheKey, CacheKeyByIdAndIndex, CacheKey)
        return self._engine.borrower.lease(key, blocks, ttl_ms)

    def leased_blocks(self, cache: Cache) -> frozenset[int]:
        """Return the blocks of a local cache that some peer has leased now *(extension)*.

        Leases that have expired, and those of peers that died or unlinked, do not count. Of a
        contiguous cache they are slots. Does not block.

        Raises:
            TypeError: cache is no Cache.
            LLMException: LLM_KV_CACHE_NOT_EXIST (unregistered or freed), LLM_PARAM_INVALID (of
                another instance).
        Source: docs/howto/leases.md.
        """
        self._engine.check_open("leased_blocks")
        return self._engine.lender.leased_blocks(check_instance("cache", cache, Cache))

    def on_lease_end(self, callback: Callable[[LeaseEnd], object] | None) -> None:
        """Have a function called for each lease on a local cache that ends *(extension)*.

        Args:
            callback: Gets a `llm_datadist.leases.LeaseEnd`, on a thread of the library, one call at
                a time. It replaces the one before; None = none any more. What it raises is logged.
                It must not finalize the instance. No calls come from the begin of `finalize` on.

        Raises:
            TypeError: callback cannot be called.
        Source: docs/howto/leases.md.
        """
        self._engine.check_open("on_lease_end")
        if callback is not None and not callable(callback):
            raise wrong_type("callback", callback, "a callable or None")
        self._engine.lender.on_end(callback)
