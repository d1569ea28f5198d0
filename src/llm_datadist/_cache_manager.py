"""CacheManager: the cache calls of the API. Argument types are checked here; the work is below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._types import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    LayerSynchronizer,
)
from llm_datadist._types.arguments import (
    check_block_lists,
    check_dict,
    check_keys,
    check_layers,
    check_mem_infos,
    check_registration,
)
from llm_datadist._types.checks import (
    check_bool,
    check_instance,
    check_int,
    check_uint32,
    check_uint64,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._engine import Engine
    from llm_datadist._errors import Fault
    from llm_datadist._types import CacheTask, MemInfo, TransferConfig, TransferWithCacheKeyConfig

_INT64_LOW = -(2**63)
_INT64_HIGH = 2**63 - 1


class CacheManager:
    """Registers, allocates and moves caches of one instance. Got from LLMDataDist.cache_manager.

    Thread-safe; several transfers may run at once, on one link too. The GIL is released while bytes
    move and while a call waits. After `LLMDataDist.finalize` every method raises RuntimeError.
    Source: api.md 5 and 7.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registry = engine.registry
        self._transfers = engine.transfers

    def __repr__(self) -> str:
        return f"CacheManager(cluster_id={self._engine.cluster_id})"

    def register_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[int],
        cache_keys: Sequence[CacheKey] = (),
        remote_accessible: bool | None = None,
    ) -> Cache:
        """Register memory of the caller as a contiguous cache.

        Args:
            cache_desc: Description of the tensors.
            addrs: Address of each tensor; the caller keeps the memory alive until
                `unregister_cache` returns. It is neither read nor written here.
            cache_keys: Key i names slot i; req_id 2**64-1 leaves a slot unnamed.
            remote_accessible: None = True for DEVICE placement, False for HOST.

        Raises:
            AttributeError: cache_desc or addrs is None.
            TypeError: A wrong type.
            ValueError: An address outside uint64, or a range that wraps the address space.
            LLMException: LLM_PARAM_INVALID: counts that differ, more than max_registered_addrs
                addresses over all caches, too many keys, a key that a live cache holds.
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
    ) -> Cache:
        """Register memory of the caller as a blocks cache: dimension 0 counts blocks.

        Args:
            cache_desc: Description of the tensors.
            addrs: Address of each tensor; kept alive by the caller as for `register_cache`.
            blocks_cache_key: Names the cache; of two caches under one key the last wins.
            remote_accessible: None = True for DEVICE placement, False for HOST.

        Raises:
            AttributeError: cache_desc or addrs is None.
            TypeError: A wrong type.
            ValueError: An address outside uint64, or a range that wraps the address space.
            LLMException: LLM_PARAM_INVALID, as for `register_cache`.
        Source: api.md 5.4.
        """
        operation = "register_blocks_cache"
        self._engine.check_open(operation)
        checked = check_registration(operation, cache_desc, addrs)
        if blocks_cache_key is not None:
            check_instance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        if remote_accessible is not None:
            check_bool("remote_accessible", remote_accessible)
        return self._registry.register_blocks_cache(
            cache_desc, checked, blocks_cache_key, remote_accessible
        )

    def unregister_cache(self, cache_id: int) -> None:
        """End a registration; unknown ids are ignored.

        Final when it returns: no peer can write that memory any more and no read of it can succeed.
        A transfer that overlapped it raised, or had delivered the right bytes.

        Raises:
            TypeError: cache_id is no integer.
        Source: api.md 5.5. Bounded by one batch of copying, whatever state the peers are in.
        """
        self._engine.check_open("unregister_cache")
        self._registry.unregister_cache(check_int("cache_id", cache_id, _INT64_LOW))

    def allocate_cache(self, cache_desc: CacheDesc, cache_keys: Sequence[CacheKey] = ()) -> Cache:
        """Allocate a contiguous cache from the pool of the description's placement.

        It is held by its id and by each of its keys, and freed when no hold is left.

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

        Raises:
            TypeError: cache is no Cache.
            LLMException: LLM_PARAM_INVALID: a cache of another instance.
        Source: api.md 5.6.
        """
        self._engine.check_open("deallocate_cache")
        self._registry.deallocate("deallocate_cache", check_instance("cache", cache, Cache))

    def allocate_blocks_cache(
        self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None
    ) -> Cache:
        """Allocate a blocks cache from the pool of the description's placement.

        Raises:
            TypeError: A wrong type.
            LLMException: LLM_FEATURE_NOT_ENABLED (no such pool), LLM_OUT_OF_MEMORY,
                LLM_PARAM_INVALID.
        Source: api.md 5.6.
        """
        self._engine.check_open("allocate_blocks_cache")
        check_instance("cache_desc", cache_desc, CacheDesc).check_usable("allocate_blocks_cache")
        if blocks_cache_key is not None:
            check_instance("blocks_cache_key", blocks_cache_key, BlocksCacheKey)
        return self._registry.allocate_blocks_cache(cache_desc, blocks_cache_key)

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        """Free an allocated blocks cache; final when it returns. No-op when gone.

        Raises:
            TypeError: cache is no Cache.
            LLMException: LLM_PARAM_INVALID: a cache of another instance.
        Source: api.md 5.6.
        """
        self._engine.check_open("deallocate_blocks_cache")
        self._registry.deallocate("deallocate_blocks_cache", check_instance("cache", cache, Cache))

    def remove_cache_key(self, cache_key: CacheKey) -> None:
        """Drop a key's hold of its cache; no-op when it names nothing.

        Raises:
            TypeError: cache_key is no CacheKey.
        Source: api.md 5.6.
        """
        self._engine.check_open("remove_cache_key")
        self._registry.remove_cache_key(check_instance("cache_key", cache_key, CacheKey))

    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int = 0,
        size: int = -1,
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Pull one slot of a peer's contiguous cache into a slot of an own one.

        Args:
            cache_key: The peer's slot; a CacheKey is consumed by a pull of all its layers.
            cache: Own contiguous cache.
            batch_index: Slot of `cache` that is written.
            size: Bytes per tensor from the slot's start; -1 = the local slot's bytes.
            src_layer_range: The peer's layers, step 1; None = all.
            dst_layer_range: Own layers, equally many; None = all.
            tensor_num_per_layer: Tensors of one layer.

        Raises:
            TypeError: A wrong type.
            ValueError: A number outside its width.
            LLMException: LLM_PARAM_INVALID (sizes, slots, layers), LLM_NOT_YET_LINK,
                LLM_KV_CACHE_NOT_EXIST, LLM_TIMEOUT after sync_kv_timeout, LLM_LINK_FAILED,
                LLM_SUSPECT_REMOTE_ERROR, LLM_DEVICE_MEM_ERROR, LLM_ENGINE_FINALIZED.
        After a failure blocks that were moved stay moved and nothing lands any more.
        Source: api.md 7.2, 7.8.
        """
        operation = "pull_cache"
        self._engine.check_open(operation)
        key = check_instance("cache_key", cache_key, CacheKey, CacheKeyByIdAndIndex)
        check_instance("cache", cache, Cache)
        slot = check_uint32("batch_index", batch_index)
        num_bytes = check_int("size", size, _INT64_LOW, _INT64_HIGH)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        self._transfers.pull_slot(operation, key, cache, slot, num_bytes, layers)

    def pull_blocks(
        self,
        src_cache_key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex,
        dst_cache: Cache,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Pull blocks of a peer's cache into blocks of an own one.

        Args:
            src_cache_key: BlocksCacheKey: block src_blocks[i] lands in dst_blocks[i]. CacheKey or
                CacheKeyByIdAndIndex: the slot is cut into pieces of the destination's block_bytes,
                piece i lands in dst_blocks[i]; src_blocks stays empty.
            dst_cache: Own blocks cache of equal block_bytes and tensor count.
            src_blocks: The peer's blocks, 0-based.
            dst_blocks: Own blocks, no duplicates.
            src_layer_range: The peer's layers, step 1; None = all.
            dst_layer_range: Own layers, equally many; None = all.
            tensor_num_per_layer: Tensors of one layer.

        Raises:
            TypeError: A wrong type (a float, str or bool among the blocks, say).
            ValueError: A negative index.
            LLMException: as `pull_cache`; LLM_PARAM_INVALID names the index at fault.
        After a failure blocks that were moved stay moved and nothing lands any more.
        Source: api.md 7.3, 7.8.
        """
        operation = "pull_blocks"
        self._engine.check_open(operation)
        key = check_instance(
            "src_cache_key", src_cache_key, BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
        )
        check_instance("dst_cache", dst_cache, Cache)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        self._transfers.pull_blocks(operation, key, dst_cache, src_blocks, dst_blocks, layers)

    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: Sequence[int] = (),
        dst_blocks: Sequence[int] = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Push blocks of an own cache into blocks of a peer's; visible there when it returns.

        Args:
            dst_cache_key: The peer's blocks cache.
            src_cache: Own blocks cache of equal block_bytes and tensor count.
            src_blocks: Own blocks, 0-based.
            dst_blocks: The peer's blocks, no duplicates.
            src_layer_range: Layers, step 1; None = all. Must equal dst_layer_range.
            dst_layer_range: Layers of the peer.
            tensor_num_per_layer: Tensors of one layer.

        Raises:
            TypeError: A wrong type.
            ValueError: A negative index.
            LLMException: as `pull_blocks`.
        Source: api.md 7.4, 7.8.
        """
        operation = "push_blocks"
        self._engine.check_open(operation)
        key = check_instance("dst_cache_key", dst_cache_key, BlocksCacheKey)
        check_instance("src_cache", src_cache, Cache)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        self._transfers.push_blocks(operation, key, src_cache, src_blocks, dst_blocks, layers)

    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = 2,
    ) -> None:
        """Push one slot of an own contiguous cache into the peer's slot that the key names.

        Args:
            dst_cache_key: The peer's cache and slot.
            src_cache: Own contiguous cache.
            src_batch_index: Slot of `src_cache`.
            src_layer_range: Layers, step 1; None = all. Must equal dst_layer_range.
            dst_layer_range: Layers of the peer.
            size: -1 = the whole local slot; > 0 = bytes per tensor *(extension)*.
            tensor_num_per_layer: Tensors of one layer.

        Raises:
            TypeError: A wrong type.
            ValueError: A number outside its width.
            LLMException: as `pull_cache`.
        Source: api.md 7.5, 7.8.
        """
        operation = "push_cache"
        self._engine.check_open(operation)
        key = check_instance("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex)
        check_instance("src_cache", src_cache, Cache)
        slot = check_uint32("src_batch_index", src_batch_index)
        num_bytes = check_int("size", size, _INT64_LOW, _INT64_HIGH)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        self._transfers.push_slot(operation, key, src_cache, slot, num_bytes, layers)

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[TransferConfig] | Sequence[TransferWithCacheKeyConfig],
        src_block_indices: Sequence[int] | None = None,
        dst_block_indices: Sequence[int] | None = None,
        dst_block_memory_size: int | None = None,
    ) -> CacheTask:
        """Push a cache layer by layer, each as soon as the synchronizer says that it is complete.

        Args:
            src_cache: Own cache; two tensors per layer.
            layer_synchronizer: Asked once per layer, ascending, on a thread of the library.
            transfer_configs: Destinations: all TransferConfig while remote-accessible is off, all
                TransferWithCacheKeyConfig while it is on.
            src_block_indices: Blocks of the source.
            dst_block_indices: Blocks of the destination.
            dst_block_memory_size: Bytes of a destination block, for a contiguous source.

        Returns:
            At once, a CacheTask with one result per config.
        Raises:
            TypeError: A wrong type, or kinds of configs mixed.
            ValueError: A negative index or size.
            LLMException: LLM_PARAM_INVALID: combinations that do not exist ("transfer from blocks
                to cache is not supported"), unequal lists, layers out of range.
        Source: api.md 7.6.
        """
        operation = "transfer_cache_async"
        self._engine.check_open(operation)
        check_instance("src_cache", src_cache, Cache)
        check_instance("layer_synchronizer", layer_synchronizer, LayerSynchronizer)
        check_instance("transfer_configs", transfer_configs, list, tuple)
        return self._engine.layerwise.start(
            src_cache,
            layer_synchronizer,
            transfer_configs,
            src_block_indices,
            dst_block_indices,
            dst_block_memory_size,
        )

    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None:
        """Copy one slot of every tensor between own contiguous caches.

        Args:
            dst: Destination.
            src: Source, with as many tensors and equal slots.
            dst_batch_index: Slot of the destination.
            src_batch_index: Slot of the source.
            offset: Bytes from the slot's start, on both sides.
            size: Bytes per tensor; -1 = the rest of the slot.
            req_id: Carried for the log only.

        Raises:
            TypeError: A wrong type.
            ValueError: A number outside its width.
            LLMException: LLM_PARAM_INVALID, LLM_KV_CACHE_NOT_EXIST (freed), LLM_DEVICE_MEM_ERROR.
        Source: api.md 7.7.
        """
        operation = "copy_cache"
        self._engine.check_open(operation)
        check_instance("dst", dst, Cache)
        check_instance("src", src, Cache)
        dst_slot = check_uint32("dst_batch_index", dst_batch_index)
        src_slot = check_uint32("src_batch_index", src_batch_index)
        offset_bytes = check_int("offset", offset, 0, _INT64_HIGH)
        num_bytes = check_int("size", size, _INT64_LOW, _INT64_HIGH)
        if req_id is not None:
            check_uint64("req_id", req_id)
        self._engine.local.copy_slot(dst, src, dst_slot, src_slot, offset_bytes, num_bytes)

    def copy_blocks(self, cache: Cache, copy_block_info: dict[int, list[int]]) -> None:
        """Copy blocks within one own blocks cache: each key's block onto every listed block.

        Raises:
            TypeError: A wrong type.
            ValueError: A negative index.
            LLMException: LLM_PARAM_INVALID, LLM_KV_CACHE_NOT_EXIST, LLM_DEVICE_MEM_ERROR.
        Source: api.md 7.7.
        """
        self._engine.check_open("copy_blocks")
        if not isinstance(cache, Cache):
            raise TypeError(f"cache only support Cache, got {type(cache).__name__}")
        check_dict("copy_block_info", copy_block_info)
        check_block_lists("copy_block_info", copy_block_info)
        self._engine.local.copy_blocks(cache, copy_block_info)

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: dict[int, int]) -> None:
        """Copy blocks between two own caches: block key of the source onto block value.

        Meant for a DEVICE blocks cache and a HOST one (`Cache.create_cpu_cache`), either direction;
        any placements work.

        Raises:
            AttributeError: A cache is None.
            TypeError: A wrong type, or caches whose type or tensor count differ.
            ValueError: A negative index, or caches whose block bytes differ.
            LLMException: LLM_PARAM_INVALID, LLM_KV_CACHE_NOT_EXIST, LLM_DEVICE_MEM_ERROR.
        Source: api.md 7.7.
        """
        self._engine.check_open("swap_blocks")
        for name, cache in (("src_cache", src_cache), ("dst_cache", dst_cache)):
            if cache is None:
                raise AttributeError(f"{name} is None; give a Cache")
            check_instance(name, cache, Cache)
        check_dict("src_to_dst", src_to_dst)
        self._engine.local.swap_blocks(src_cache, dst_cache, src_to_dst)

    def remap_registered_memory(
        self, mem_infos: MemInfo | list[MemInfo] | tuple[MemInfo, ...]
    ) -> None:
        """Register memory anew after its pages were replaced at the same addresses.

        Args:
            mem_infos: Ranges of MEM_TYPE_DEVICE, each wholly inside registered memory.

        When it returns every linked peer has dropped what it held of the old mapping and transfers
        of the ranges work, without relinking. A peer that does not answer within sync_kv_timeout
        loses its link, not the call its success. Overlapping transfers finish right or raise
        LLM_KV_CACHE_NOT_EXIST. Idempotent.

        Raises:
            TypeError: No MemInfo, or no list or tuple of them.
            LLMException: LLM_PARAM_INVALID naming the entry; nothing has changed then.
        Source: api.md 7.9.
        """
        self._engine.check_open("remap_registered_memory")
        self._engine.remap(check_mem_infos(mem_infos))

    def faulted_ranges(self) -> tuple[Fault, ...]:
        """Own memory that transfers could not access, as in `LLMException.faults` *(extension)*.

        Own transfers that failed on it have marked it, or a peer has told of one of its own.
        Transfers of this instance that touch a marked range raise LLM_DEVICE_MEM_ERROR at once; a
        remap of any part of it takes the mark away, and so does the end of the cache.

        Source: api.md 7.9.
        """
        self._engine.check_open("faulted_ranges")
        return self._engine.faults.ranges()
