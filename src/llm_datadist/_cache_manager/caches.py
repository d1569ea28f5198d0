"""Calls that register, allocate and name caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._cache_manager.call_group import Calls
from llm_datadist._cache_manager.layout_arguments import check_layout
from llm_datadist._types import BlocksCacheKey, Cache, CacheDesc, CacheKey
from llm_datadist._types.arguments import check_keys, check_registration
from llm_datadist._types.checks import INT64_MIN, check_bool, check_instance, check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._plan.layouts import KvLayout


class CacheCalls(Calls):
    """Calls that make and end caches and their names. Source: api.md 5."""

    def register_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[int],
        cache_keys: Sequence[CacheKey] = (),
        remote_accessible: bool | None = None,
    ) -> Cache:
        """Register memory of the caller as a contiguous cache.

        Args:
            cache_desc: Description of the tensors; a copy is kept.
            addrs: Address of each tensor, num_tensors of them, any alignment. The caller keeps the
                memory alive until `unregister_cache` returns. It is neither read nor written here
                and need not be mapped yet.
            cache_keys: Key i names slot i; at most batch_size keys, trailing ones may be left out;
                req_id 2**64-1 leaves a slot unnamed; of equal keys the last wins.
            remote_accessible: None = True for DEVICE placement, False for HOST.

        Raises:
            AttributeError: cache_desc or addrs is None.
            TypeError: A wrong type.
            ValueError: An address outside uint64, or a range that wraps the address space.
            LLMException: LLM_PARAM_INVALID: counts that differ, more than max_registered_addrs
                addresses over all caches, too many keys, a key that a live cache holds;
                LLM_OUT_OF_MEMORY: the directory is full. Nothing has changed then.
        Source: api.md 5.4. Linked peers see the cache at once.
        """
        operation = "register_cache"
        self._engine.check_open(operation)
        checked = check_registration(operation, cache_desc, addrs)
        keys = check_keys(cache_keys)
        if remote_accessible is not None:
            check_bool("remote_accessible", remote_accessible)
        return self._registry.register_cache(cache_desc, checked, keys, remote_accessible)

    def register_blocks_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[int],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
        *,
        layout: KvLayout | None = None,
    ) -> Cache:
        """Register memory of the caller as a blocks cache: dimension 0 counts blocks.

        Args:
            cache_desc: Description of the tensors; block_bytes is a tensor's bytes / shape[0].
            addrs: Address of each tensor; kept alive by the caller as for `register_cache`.
            blocks_cache_key: Names the cache; of two caches under one key the last wins, and the
                earlier one stays reachable by its id.
            remote_accessible: None = True for DEVICE placement, False for HOST.
            layout: What the blocks hold *(extension)*; linked peers see it. None = the cache takes
                part in calls between equal caches only.

        Raises:
            AttributeError: cache_desc or addrs is None.
            TypeError: A wrong type.
            ValueError: An address outside uint64, or a range that wraps the address space.
            LLMException: LLM_PARAM_INVALID, as for `register_cache`, and for a layout that does not
                fit the description: the text names the number that is off.
        Source: api.md 5.4.
        """
        operation = "register_blocks_cache"
        self._engine.check_open(operation)
        checked = check_registration(operation, cache_desc, addrs)
        if blocks_cache_key is not None:
            check_instance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        if remote_accessible is not None:
            check_bool("remote_accessible", remote_accessible)
        kv_layout = check_layout(operation, layout, cache_desc)
        return self._registry.register_blocks_cache(
            cache_desc, checked, blocks_cache_key, remote_accessible, kv_layout
        )

    def unregister_cache(self, cache_id: int) -> None:
        """End a registration; unknown ids are ignored.

        Final when it returns: no peer can write that memory any more and no read of it can succeed.
        A transfer that overlapped it raised, or had delivered the right bytes.

        Raises:
            TypeError: cache_id is no integer.
            ValueError: It is outside 64 bits.
            LLMException: LLM_PARAM_INVALID: the cache was allocated, not registered.
        Source: api.md 5.5. Bounded by one batch of copying, whatever state the peers are in.
        """
        self._engine.check_open("unregister_cache")
        self._registry.unregister_cache(check_int("cache_id", cache_id, INT64_MIN))

    def caches(self) -> list[Cache]:
        """Return the live caches of this instance, registered or allocated *(extension)*.

        In the order of their ids, without those that only a key holds any more.
        Source: an extension; docs/reference/parity.md.
        """
        self._engine.check_open("caches")
        return self._registry.live()

    def allocate_cache(self, cache_desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        """Allocate a contiguous cache from the pool of the description's placement.

        It is held by its id and by each of its keys, and freed when no hold is left. `Cache.tensor`
        gives the memory, which belongs to the pool and is not cleared.

        Args:
            cache_desc: Description; each tensor takes whole pages of the pool.
            cache_keys: As for `register_cache`.

        Raises:
            TypeError: A wrong type.
            LLMException: LLM_FEATURE_NOT_ENABLED (no such pool), LLM_OUT_OF_MEMORY,
                LLM_PARAM_INVALID (too many keys, a key that a live cache holds).
        Source: api.md 5.6.
        """
        self._engine.check_open("allocate_cache")
        check_instance("cache_desc", cache_desc, CacheDesc).check_usable("allocate_cache")
        return self._registry.allocate_cache(cache_desc, check_keys(cache_keys))

    def deallocate_cache(self, cache: Cache) -> None:
        """Drop the id's hold of an allocated cache; its keys keep it alive. No-op when gone.

        The memory is final when no hold is left: no peer touches it any more. Until then peers may
        pull by the keys, and the Cache itself serves no further call.

        Raises:
            TypeError: cache is no Cache.
            LLMException: LLM_PARAM_INVALID: a cache of another instance, or a registered one.
        Source: api.md 5.6.
        """
        self._engine.check_open("deallocate_cache")
        self._registry.deallocate("deallocate_cache", check_instance("cache", cache, Cache))

    def allocate_blocks_cache(
        self,
        cache_desc: CacheDesc,
        blocks_cache_key: BlocksCacheKey | None = None,
        *,
        layout: KvLayout | None = None,
    ) -> Cache:
        """Allocate a blocks cache from the pool of the description's placement.

        Args:
            cache_desc: Description; each tensor takes whole pages of the pool.
            blocks_cache_key, layout: As for `register_blocks_cache`.

        Raises:
            TypeError: A wrong type.
            LLMException: LLM_FEATURE_NOT_ENABLED (no such pool), LLM_OUT_OF_MEMORY,
                LLM_PARAM_INVALID.
        Source: api.md 5.6.
        """
        operation = "allocate_blocks_cache"
        self._engine.check_open(operation)
        check_instance("cache_desc", cache_desc, CacheDesc).check_usable(operation)
        if blocks_cache_key is not None:
            check_instance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        kv_layout = check_layout(operation, layout, cache_desc)
        return self._registry.allocate_blocks_cache(cache_desc, blocks_cache_key, kv_layout)

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        """Free an allocated blocks cache; final when it returns. No-op when gone.

        Raises:
            TypeError: cache is no Cache.
            LLMException: LLM_PARAM_INVALID: a cache of another instance, or a registered one.
        Source: api.md 5.6.
        """
        self._engine.check_open("deallocate_blocks_cache")
        self._registry.deallocate("deallocate_blocks_cache", check_instance("cache", cache, Cache))

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """Drop a key's hold of its cache, which is freed with its last hold.

        No-op when the key names nothing. When it returns no pull by the key can succeed any more.

        Raises:
            TypeError: cache_key is no CacheKey.
        Source: api.md 5.6.
        """
        self._engine.check_open("remove_cache_key")
        self._registry.remove_cache_key(check_instance("cache_key", cache_key, CacheKey))
