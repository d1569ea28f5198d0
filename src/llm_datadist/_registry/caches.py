"""The caches and keys of one instance.

One lock guards the tables and the directory, and nothing slow happens under it. What may take the
time of a batch, closing an entry, happens outside: a cache first leaves the tables (its keys and
its id are free again), then its entry is closed (from there on its memory is final), then its
guards and its directory record go, last its pages go back to their pool. A call that ends the same
cache meanwhile waits, so that the cache is final whenever such a call returns.

Peers consume keys without this process taking part; `reap` turns that into holds that are dropped.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, final

from llm_datadist._errors import LLMStatusCode, fail, finalized, invalid
from llm_datadist._logs import later
from llm_datadist._registry.layouts import cache_layout
from llm_datadist._registry.local_cache import LocalCache
from llm_datadist._registry.pool import OutOfMemory
from llm_datadist._registry.ranges import MemoryRanges
from llm_datadist._registry.records import CONSUMED, REMOVED, key_name
from llm_datadist._registry.tables import Tables, Wanted, is_accessible, key_slots
from llm_datadist._types import CacheKey, Placement
from llm_datadist._types.cache import NO_CACHE_ID
from llm_datadist._types.stats import CacheStats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_datadist._plan.layouts import KvLayout
    from llm_datadist._registry.interfaces import MemoryListener, Node
    from llm_datadist._registry.pool import Pool
    from llm_datadist._registry.tables import Named
    from llm_datadist._types import BlocksCacheKey, Cache, CacheDesc, CacheKeyByIdAndIndex
    from llm_datadist._types.refs import Ref

POOL_OPTIONS = {
    Placement.DEVICE: "mem_pool_cfg (llm.MemPoolConfig)",
    Placement.HOST: "host_mem_pool_cfg (llm.HostMemPoolConfig)",
}


@final
class CacheRegistry:
    """Registers, allocates, names and forgets the caches of one instance.

    Args:
        node: The instance's native node.
        max_registered_addrs: Limit of the sum of addresses over all registered caches.
        pools: The pools there are, by placement.
        pool_options: Names of their options, for errors.
        listener: Registers all memory before it is published, deregisters it after it is final.
        log_capacity: Bytes that the node's directory log can hold.

    Attributes:
        ranges: The live caches by memory, and their memory at fault.
        on_gone: Called with the id of each cache that has ended, once it is final; must not block.

    Argument types are the caller's duty. Thread-safe.
    """

    def __init__(
        self,
        node: Node,
        *,
        max_registered_addrs: int = 240,
        pools: Mapping[Placement, Pool] | None = None,
        pool_options: Mapping[Placement, str] = POOL_OPTIONS,
        listener: MemoryListener | None = None,
        log_capacity: int = 64 << 20,
    ) -> None:
        self._node = node
        self._pools = dict(pools or {})
        self._pool_options = pool_options
        self._listener = listener
        self._lock = threading.Lock()
        self._tables = Tables(
            node, max_registered_addrs=max_registered_addrs, log_capacity=log_capacity
        )
        self._caches = self._tables.caches
        self._closing = self._tables.closing
        self.ranges: MemoryRanges = MemoryRanges(self._caches, self._lock)
        self._is_closed = False
        self.on_gone: Callable[[int], None] | None = None

    # ---- registering

    def register_cache(
        self,
        desc: CacheDesc,
        addrs: Sequence[int],
        cache_keys: Sequence[CacheKey] = (),
        remote_accessible: bool | None = None,
        memory: object = None,
        operation: str = "register_cache",
    ) -> Cache:
        """Register a contiguous cache over memory of the caller.

        Args:
            desc: Its description, usable.
            addrs: Address of each tensor, checked against `desc`.
            cache_keys: Key i names slot i; placeholders and duplicates as the API says.
            remote_accessible: None means: if it is device memory.
            memory: What owns the memory, kept alive until it is final; None if the caller does so.
            operation: Call of the user, for errors.

        Raises:
            LLMException: LLM_PARAM_INVALID: too many addresses registered or keys given, or a key
                that a live cache has; LLM_OUT_OF_MEMORY: the directory is full.
        """
        slots = key_slots(operation, desc, cache_keys)
        if slots:
            self.reap()
        return self._publish(
            Wanted(
                operation,
                desc,
                addrs=tuple(addrs),
                is_blocks=False,
                accessible=is_accessible(desc, remote_accessible),
                slots=slots,
                memory=memory,
            )
        )

    def register_blocks_cache(
        self,
        desc: CacheDesc,
        addrs: Sequence[int],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
        kv_layout: KvLayout | None = None,
        memory: object = None,
        operation: str = "register_blocks_cache",
    ) -> Cache:
        """Register a blocks cache over memory of the caller; see `register_cache`.

        A BlocksCacheKey that another cache has goes over to this one. `kv_layout` fits `desc`.
        """
        key = None if blocks_cache_key is None else blocks_cache_key.model_id
        return self._publish(
            Wanted(
                operation,
                desc,
                addrs=tuple(addrs),
                is_blocks=True,
                accessible=is_accessible(desc, remote_accessible),
                blocks_key=key,
                kv_layout=kv_layout,
                memory=memory,
            )
        )

    def unregister_cache(self, cache_id: int) -> None:
        """Forget a registered cache; final when it returns. An unknown id is ignored.

        Raises:
            LLMException: LLM_PARAM_INVALID if the cache was allocated.
        """
        with self._lock:
            local = self._caches.get(cache_id)
            if local is not None and local.allocated:
                raise invalid(
                    "unregister_cache",
                    f"cache {cache_id} was allocated, not registered",
                    "use deallocate_cache or deallocate_blocks_cache",
                )
            if local is not None:
                self._tables.detach(local)
            ending = self._closing.get(cache_id)
        if local is not None:
            self._finish(local)
        elif ending is not None:
            ending.closed.wait()

    # ---- allocating

    def allocate_cache(self, desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        """Allocate a contiguous cache; it lives while its id or a key of it holds it.

        Raises:
            LLMException: LLM_FEATURE_NOT_ENABLED: no pool of that placement; LLM_OUT_OF_MEMORY: it
                is full; LLM_PARAM_INVALID: too many keys, or one that a live cache has.
        """
        operation = "allocate_cache"
        slots = key_slots(operation, desc, cache_keys)
        if slots:
            self.reap()
        return self._allocate(Wanted(operation, desc, is_blocks=False, allocated=True, slots=slots))

    def allocate_blocks_cache(
        self,
        desc: CacheDesc,
        blocks_cache_key: BlocksCacheKey | None = None,
        kv_layout: KvLayout | None = None,
    ) -> Cache:
        """Allocate a blocks cache; it lives until it is deallocated. See `allocate_cache`."""
        key = None if blocks_cache_key is None else blocks_cache_key.model_id
        return self._allocate(
            Wanted(
                "allocate_blocks_cache",
                desc,
                is_blocks=True,
                allocated=True,
                blocks_key=key,
                kv_layout=kv_layout,
            )
        )

    def deallocate(self, operation: str, cache: Cache) -> None:
        """Drop the id's hold of an allocated cache; freed, and final, if no key holds it.

        Ignores what is gone already, and caches that are registered nowhere.

        Raises:
            LLMException: LLM_PARAM_INVALID: a cache of another instance, or a registered one.
        """
        if cache.cache_id == NO_CACHE_ID:
            return
        self._check_owner(operation, cache)
        self.reap()
        with self._lock:
            local = self._caches.get(cache.cache_id)
            ending = self._closing.get(cache.cache_id)
            if local is not None:
                if not local.allocated:
                    raise invalid(
                        operation,
                        f"cache {cache.cache_id} was registered, not allocated",
                        "use unregister_cache",
                    )
                if not local.named:
                    return
                if local.keys:
                    self._tables.unname(local)
                    return
                local.named = False
                self._tables.detach(local)
        if local is not None:
            self._finish(local)
        elif ending is not None:
            ending.closed.wait()

    # ---- keys

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """Unbind a key and drop its hold; a key that is not bound is ignored."""
        self.reap()
        name = key_name(cache_key)
        with self._lock:
            local = self._tables.keys.get(name)
            if local is None:
                return
            freed = self._tables.drop_key(local, name, REMOVED)
        if freed:
            self._finish(local)

    def reap(self) -> int:
        """Drop the holds of keys that peers have consumed; return their number."""
        with self._lock:
            refs = self._node.consumed()
            freed = []
            for index, value in refs:
                found = self._tables.key_guards.get((index, value))
                if found is not None and self._tables.drop_key(*found, CONSUMED):
                    freed.append(found[0])
        for local in freed:
            self._finish(local)
        return len(refs)

    # ---- looking up

    def find(self, operation: str, cache: Cache) -> LocalCache:
        """Return the registry's record of a caller's cache.

        Raises:
            LLMException: LLM_KV_CACHE_NOT_EXIST: it is unregistered or freed; LLM_PARAM_INVALID:
                it is another instance's.
        """
        local = self._caches.get(cache.cache_id)
        if local is not None and local.cache is cache and local.named:
            return local
        if cache.cache_id == NO_CACHE_ID:
            return LocalCache.unregistered(cache)
        self._check_owner(operation, cache)
        if local is not None and local.named:
            return local
        why = self._tables.endings.why(("id", cache.cache_id))
        raise fail(
            LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
            operation,
            f"cache {cache.cache_id} of this instance is gone: "
            + (why or "it was unregistered or deallocated"),
            "use a cache that is live",
        )

    def absent(self, key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex) -> tuple[str, str]:
        """Return problem and remedy, for a peer, where `named` returns None."""
        with self._lock:
            return self._tables.absent(key)

    def named(self, key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex) -> Named | None:
        """Return the live cache that a key of this instance names, and its slot."""
        if isinstance(key, CacheKey):
            self.reap()
        with self._lock:
            return self._tables.named(key)

    def live(self) -> list[Cache]:
        """Return the caches that the caller may use, in order of their ids."""
        with self._lock:
            return [local.cache for local in self._caches.values() if local.named]

    def get(self, cache_id: int) -> LocalCache | None:
        """Return the cache of that id, if it is live."""
        return self._caches.get(cache_id)

    def accessible_at(self, ref: Ref) -> LocalCache | None:
        """Return the live cache that has this entry now, if peers may touch it."""
        with self._lock:
            for local in self._caches.values():
                if local.ref == ref and local.accessible:
                    return local
        return None

    # ---- remapping and the end

    def remap(self, caches: Sequence[LocalCache]) -> None:
        """Give caches new entries, so that references of peers to the old ones are void.

        Args:
            caches: Of this registry; those that ended meanwhile are passed over.
        """
        for local in caches:
            with local.transition:
                value = self._node.reopen_entry(*local.ref)
                if value != 0:
                    self._renew(local, value)

    def remap_around(self, caches: Sequence[LocalCache], replace: Callable[[], None]) -> None:
        """As `remap`, and put other memory under the caches while none of them is accessed.

        Args:
            caches: All live ones that have memory which `replace` exchanges. One call at a time.
            replace: May raise; the caches live on with new entries all the same.
        """
        self._settle()  # those that had left the tables before, and may be accessed still
        with ExitStack() as held:
            for local in caches:
                held.enter_context(local.transition)
            paused = [local for local in caches if self._node.suspend_entry(*local.ref)]
            try:
                replace()
            finally:
                for local in paused:
                    self._renew(local, self._node.resume_entry(local.ref[0]))

    def _renew(self, local: LocalCache, value: int) -> None:
        """Note the new value of a cache's entry, and publish it if the cache is in the tables."""
        with self._lock:
            local.ref = (local.ref[0], value)
            if local.cache_id in self._caches:
                self._tables.directory.remap(local.cache_id, value)

    def close(self) -> None:
        """Forget all caches; final when it returns. Nothing can be registered any more."""
        with self._lock:
            self._is_closed = True
            ending = list(self._closing.values())
            live = list(self._caches.values())
            for local in live:
                self._tables.detach(local)
        for local in live:
            self._finish(local)
        for local in ending:
            local.closed.wait()

    def stats(self) -> CacheStats:
        """Return counts of what is live."""
        with self._lock:
            sizes: dict[bool, list[int]] = {True: [], False: []}
            for local in self._caches.values():
                sizes[local.allocated].append(local.layout.num_tensors * local.layout.tensor_bytes)
            return CacheStats(
                registered=len(sizes[False]),
                registered_bytes=sum(sizes[False]),
                allocated=len(sizes[True]),
                allocated_bytes=sum(sizes[True]),
                registered_addrs=self._tables.registered_addrs,
                cache_keys=len(self._tables.keys),
                blocks_cache_keys=len(self._tables.blocks_keys),
                directory_bytes=self._tables.directory.tail,
            )

    def _allocate(self, wanted: Wanted) -> Cache:
        desc = wanted.desc
        pool = self._pools.get(desc.placement)
        if pool is None:
            raise fail(
                LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
                wanted.operation,
                f"there is no pool of {desc.placement} memory",
                f"set {self._pool_options[desc.placement]} before init",
            )
        with pool.publication if pool.device is not None else nullcontext():
            return self._allocate_from(pool, wanted)

    def _allocate_from(self, pool: Pool, wanted: Wanted) -> Cache:
        desc = wanted.desc
        try:
            try:
                addrs = pool.allocate(desc.tensor_bytes, desc.num_tensors)
            except OutOfMemory:
                self._settle()
                addrs = pool.allocate(desc.tensor_bytes, desc.num_tensors)
        except OutOfMemory as error:
            raise fail(
                LLMStatusCode.LLM_OUT_OF_MEMORY,
                wanted.operation,
                f"the pool of {desc.placement} memory is full: {error}",
                f"free caches or enlarge {self._pool_options[desc.placement]}",
            ) from None
        try:
            return self._publish(wanted._replace(addrs=addrs))
        except BaseException:
            pool.free(addrs)
            raise

    def _settle(self) -> None:
        """Wait until caches that are ending have returned their memory to the pool."""
        self.reap()
        with self._lock:
            ending = list(self._closing.values())
        for local in ending:
            local.closed.wait()

    def _publish(self, wanted: Wanted) -> Cache:
        layout = cache_layout(wanted.desc, wanted.addrs, is_blocks=wanted.is_blocks)
        placement = wanted.desc.placement
        device = self._pools[placement].device if wanted.allocated else None
        if self._listener is not None and not wanted.allocated:
            device = self._listener.adopt(wanted.operation, layout, placement)
        listener = self._listener if wanted.accessible else None
        if listener is not None:
            listener.register(wanted.operation, layout, placement, device)
        try:
            with later(), self._lock:
                if self._is_closed:
                    raise finalized(wanted.operation)
                return self._tables.add(wanted, layout, device).cache
        except BaseException:
            if listener is not None:
                listener.deregister(layout, placement, device)
            raise

    def _finish(self, local: LocalCache) -> None:
        """End the use of a detached cache's memory and return it to its pool."""
        placement = local.desc.placement
        try:
            with local.transition:
                self._node.close_entry(*local.ref)
            for _, guard in local.keys.values():
                self._node.close_key(*guard)
            if self._listener is not None and local.accessible:
                self._listener.deregister(local.layout, placement, local.device)
            with self._lock:
                self._tables.directory.remove(local.cache_id, local.end_reason)
            if local.allocated:
                self._pools[placement].free(local.layout.starts)
            # Not after an exception (of a signal handler): a peer may still touch the memory, which
            # then lives as long as this registry.
            with self._lock:
                self._closing.pop(local.cache_id, None)
            local.memory = None
        finally:
            local.closed.set()
            if self.on_gone is not None:
                self.on_gone(local.cache_id)

    def _check_owner(self, operation: str, cache: Cache) -> None:
        if cache.owner is not self._tables.token:
            raise invalid(
                operation,
                f"cache {cache.cache_id} belongs to another instance",
                "use the instance that made it",
            )
