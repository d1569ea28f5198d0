"""Calls that allocate and name caches."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm_datadist._errors import LLMException, restate
from llm_datadist._kv_cache_manager.call_group import Calls
from llm_datadist._kv_cache_manager.holds import Holds
from llm_datadist._types import BlocksCacheKey, CacheDesc, CacheKey, KvCache
from llm_datadist._types.arguments import check_keys
from llm_datadist._types.checks import check_instance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_datadist._engine import Engine
    from llm_datadist._kv_cache_manager.roles import RoleRules


class CacheCalls(Calls):
    """Calls that make and end caches and their names. Source: api.md 8."""

    def __init__(self, engine: Engine, roles: RoleRules) -> None:
        super().__init__(engine, roles)
        self._holds = Holds(engine)

    def is_initialized(self) -> bool:
        """Return whether the instance is initialized, as it is until `LLMDataDist.finalize`.

        Source: api.md 8.
        """
        try:
            self._engine.check_open("is_initialized")
        except RuntimeError:
            return False
        return True

    def allocate_cache(self, desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> KvCache:
        """Allocate a contiguous cache from the pool of the instance.

        It is held by its id and by each of its keys, and freed when no hold is left. The hold of
        the id ends with `deallocate_cache`, or when the program has no reference to the KvCache any
        more. The memory belongs to the pool and is not cleared.

        Args:
            desc: Description; each tensor takes whole units of 512 bytes.
            cache_keys: Key i names slot i; at most batch_size keys, trailing ones may be left out;
                req_id 2**64-1 leaves a slot unnamed; of equal keys the last wins. PROMPT and MIX
                only.

        Returns:
            The cache. Its `per_device_tensor_addrs[0]` are addresses of this process, writable
            until the cache is freed.
        Raises:
            TypeError: A wrong type.
            LLMException: LLM_DEVICE_OUT_OF_MEMORY (the pool is full; a retry succeeds as soon as
                pulls have freed enough), LLM_PARAM_INVALID (too many keys, a key that a live cache
                holds, keys in the role DECODER). Nothing has changed then.
        Source: api.md 8. Linked peers see the cache at once.
        """
        operation = "allocate_cache"
        self._engine.check_open(operation)
        check_instance("desc", desc, CacheDesc).check_usable(operation)
        keys = check_keys(cache_keys)
        if keys:
            self._roles.check_keys(operation)
        with self._restated():
            return self._holds.give_out(self._registry.allocate_cache(desc, keys))

    def allocate_blocks_cache(
        self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None
    ) -> KvCache:
        """Allocate a blocks cache, in which dimension 0 counts blocks, from the pool.

        Args:
            cache_desc: Description; each tensor takes whole units of 512 bytes.
            blocks_cache_key: Names the cache; of two caches under one key the last wins, and the
                earlier one stays reachable by its id. PROMPT and MIX only.

        Returns:
            The cache; it lives until `deallocate_cache`, or until the program has no reference to
            it any more.
        Raises:
            TypeError: A wrong type.
            LLMException: LLM_DEVICE_OUT_OF_MEMORY, LLM_PARAM_INVALID (a key in the role DECODER).
        Source: api.md 8.
        """
        operation = "allocate_blocks_cache"
        self._engine.check_open(operation)
        check_instance("cache_desc", cache_desc, CacheDesc).check_usable(operation)
        if blocks_cache_key is not None:
            check_instance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
            self._roles.check_keys(operation)
        with self._restated():
            cache = self._registry.allocate_blocks_cache(cache_desc, blocks_cache_key)
            return self._holds.give_out(cache)

    def deallocate_cache(self, cache: KvCache) -> None:
        """Drop the id's hold of a cache; its keys keep it alive. No-op when that was done before.

        The memory is final when no hold is left: no peer touches it any more. Until then peers may
        pull by the keys, and the KvCache itself serves no further call. For blocks caches, too,
        which only their id holds.

        Raises:
            TypeError: cache is no KvCache.
            LLMException: LLM_PARAM_INVALID: a cache of another instance.
        Source: api.md 8.
        """
        self._engine.check_open("deallocate_cache")
        self._registry.deallocate("deallocate_cache", check_instance("cache", cache, KvCache))

    def remove_cache_key(self, key: CacheKey) -> None:
        """Drop a key's hold of its cache, which is freed with its last hold.

        No-op when the key names nothing. When it returns no pull by the key can succeed any more.

        Raises:
            TypeError: key is no CacheKey.
            LLMException: LLM_PARAM_INVALID: the role is DECODER.
        Source: api.md 8.
        """
        operation = "remove_cache_key"
        self._engine.check_open(operation)
        check_instance("key", key, CacheKey)
        self._roles.check_keys(operation)
        self._registry.remove_cache_key(key)

    @contextmanager
    def _restated(self) -> Iterator[None]:
        """Give failures the status that the first generation has for them."""
        try:
            yield
        except LLMException as error:
            restate(error, self._engine.config.statuses)
            raise
