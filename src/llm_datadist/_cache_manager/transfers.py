"""Calls that transfer between a local cache and a peer's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._cache_manager.call_group import Calls
from llm_datadist._tracing import request_trace
from llm_datadist._types import (
    BlocksCacheKey,
    Cache,
    CacheKey,
    CacheKeyByIdAndIndex,
    LayerSynchronizer,
)
from llm_datadist._types.arguments import check_layers
from llm_datadist._types.checks import INT64_MAX, INT64_MIN, check_instance, check_int, check_uint32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._types import BlockList, CacheTask, TransferConfig, TransferWithCacheKeyConfig
    from llm_datadist._types.streams import After


class TransferCalls(Calls):
    """Calls that move bytes between instances. Source: api.md 7.2 to 7.6, 7.8."""

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
        request_id: str | None = None,
        after: After = None,
    ) -> None:
        """Pull one slot of a peer's contiguous cache into a slot of a local one.

        Args:
            cache_key: The peer's slot; a CacheKey is consumed by a pull of all its layers.
            cache: Local contiguous cache.
            batch_index: Slot of `cache` that is written.
            size: Bytes per tensor from the slot's start; -1 = the local slot's bytes.
            src_layer_range: The peer's layers, step 1; None = all.
            dst_layer_range: Local layers, equally many; None = all.
            tensor_num_per_layer: Tensors of one layer.
            request_id: The caller's name of the request, for logs and traces: 1 to 128 printable
                characters *(extension)*.
            after: CUDA stream or event: nothing moves before the work that it has been given so far
                has ended *(extension)*; docs/howto/gpu-streams.md.

        Raises:
            TypeError: A wrong type.
            ValueError: A number outside its width.
            LLMException: LLM_PARAM_INVALID (sizes, slots, layers), LLM_NOT_YET_LINK,
                LLM_KV_CACHE_NOT_EXIST, LLM_TIMEOUT after sync_kv_timeout, LLM_LINK_FAILED,
                LLM_SUSPECT_REMOTE_ERROR, LLM_DEVICE_MEM_ERROR, LLM_ENGINE_FINALIZED.
        After a failure bytes that were moved stay moved and nothing lands any more; a CacheKey is
        not consumed. After a memory fault `faults` names all memory at fault, and everything else
        was moved.
        Source: api.md 7.2, 7.8.
        """
        operation = "pull_cache"
        self._engine.check_open(operation)
        key = check_instance("cache_key", cache_key, CacheKey, CacheKeyByIdAndIndex)
        check_instance("cache", cache, Cache)
        slot = check_uint32("batch_index", batch_index)
        num_bytes = check_int("size", size, INT64_MIN, INT64_MAX)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        trace = None if request_id is None else request_trace(operation, request_id)
        awaited = None if after is None else self._engine.order.awaited(operation, after)
        self._transfers.pull_slot(operation, key, cache, slot, num_bytes, layers, trace, awaited)

    def pull_blocks(
        self,
        src_cache_key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex,
        dst_cache: Cache,
        src_blocks: BlockList = (),
        dst_blocks: BlockList = (),
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
        request_id: str | None = None,
        after: After = None,
    ) -> None:
        """Pull blocks of a peer's cache into blocks of a local one.

        Args:
            src_cache_key: BlocksCacheKey: block src_blocks[i] lands in dst_blocks[i]. CacheKey or
                CacheKeyByIdAndIndex: the slot is cut into pieces of the destination's block_bytes,
                piece i lands in dst_blocks[i]; src_blocks stays empty.
            dst_cache: Local blocks cache of equal block_bytes and tensor count.
            src_blocks: The peer's blocks, 0-based, as many as dst_blocks: a list or tuple; or a
                range, or an array of integers in host memory (numpy, torch) *(extension)*.
            dst_blocks: Local blocks, 0-based, no duplicates. Empty lists move nothing.
            src_layer_range: The peer's layers, step 1; None = all.
            dst_layer_range: Local layers, equally many; None = all.
            tensor_num_per_layer: Tensors of one layer.
            request_id: The caller's name of the request, for logs and traces: 1 to 128 printable
                characters *(extension)*.
            after: CUDA stream or event: nothing moves before the work that it has been given so far
                has ended *(extension)*; docs/howto/gpu-streams.md.

        Raises:
            TypeError: A wrong type (a float, str or bool among the blocks, say).
            ValueError: A negative index.
            LLMException: as `pull_cache`; LLM_PARAM_INVALID names the index at fault.
        After a failure blocks that were moved stay moved and nothing lands any more; after a
        memory fault `faults` names every block at fault, and all others were moved.
        Source: api.md 7.3, 7.8.
        """
        operation = "pull_blocks"
        self._engine.check_open(operation)
        key = check_instance(
            "src_cache_key", src_cache_key, BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
        )
        check_instance("dst_cache", dst_cache, Cache)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        trace = None if request_id is None else request_trace(operation, request_id, dst_blocks)
        awaited = None if after is None else self._engine.order.awaited(operation, after)
        self._transfers.pull_blocks(
            operation, key, dst_cache, src_blocks, dst_blocks, layers, trace, after=awaited
        )

    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: BlockList = (),
        dst_blocks: BlockList = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
        *,
        request_id: str | None = None,
        after: After = None,
    ) -> None:
        """Push blocks of a local cache into blocks of a peer's; visible there when it returns.

        The peer's own threads write them; its program takes no part.

        Args:
            dst_cache_key: The peer's blocks cache.
            src_cache: Local blocks cache of equal block_bytes and tensor count.
            src_blocks: Local blocks, 0-based, as for `pull_blocks`.
            dst_blocks: The peer's blocks, no duplicates.
            src_layer_range: Layers, step 1; None = all. Must equal dst_layer_range.
            dst_layer_range: Layers of the peer.
            tensor_num_per_layer: Tensors of one layer.
            request_id: The caller's name of the request, for logs and traces: 1 to 128 printable
                characters *(extension)*.
            after: CUDA stream or event: nothing moves before the work that it has been given so far
                has ended *(extension)*; docs/howto/gpu-streams.md.

        Raises:
            TypeError: A wrong type.
            ValueError: A negative index.
            LLMException: as `pull_blocks`.
        After a failure the same holds as for `pull_blocks`, at the peer's cache.
        Source: api.md 7.4, 7.8.
        """
        operation = "push_blocks"
        self._engine.check_open(operation)
        key = check_instance("dst_cache_key", dst_cache_key, BlocksCacheKey)
        check_instance("src_cache", src_cache, Cache)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        trace = None if request_id is None else request_trace(operation, request_id, dst_blocks)
        awaited = None if after is None else self._engine.order.awaited(operation, after)
        self._transfers.push_blocks(
            operation, key, src_cache, src_blocks, dst_blocks, layers, trace, awaited
        )

    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = 2,
        *,
        request_id: str | None = None,
        after: After = None,
    ) -> None:
        """Push one slot of a local contiguous cache into the peer's slot that the key names.

        Args:
            dst_cache_key: The peer's cache and slot.
            src_cache: Local contiguous cache.
            src_batch_index: Slot of `src_cache`.
            src_layer_range: Layers, step 1; None = all. Must equal dst_layer_range.
            dst_layer_range: Layers of the peer.
            size: -1 = the whole local slot; > 0 = bytes per tensor *(extension)*.
            tensor_num_per_layer: Tensors of one layer.
            request_id: The caller's name of the request, for logs and traces: 1 to 128 printable
                characters *(extension)*.
            after: CUDA stream or event: nothing moves before the work that it has been given so far
                has ended *(extension)*; docs/howto/gpu-streams.md.

        Raises:
            TypeError: A wrong type.
            ValueError: A number outside its width.
            LLMException: as `pull_cache`.
        After a failure the same holds as for `pull_cache`, at the peer's cache.
        Source: api.md 7.5, 7.8.
        """
        operation = "push_cache"
        self._engine.check_open(operation)
        key = check_instance("dst_cache_key", dst_cache_key, CacheKeyByIdAndIndex)
        check_instance("src_cache", src_cache, Cache)
        slot = check_uint32("src_batch_index", src_batch_index)
        num_bytes = check_int("size", size, INT64_MIN, INT64_MAX)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        trace = None if request_id is None else request_trace(operation, request_id)
        awaited = None if after is None else self._engine.order.awaited(operation, after)
        self._transfers.push_slot(
            operation, key, src_cache, slot, num_bytes, layers, trace, awaited
        )

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[TransferConfig] | Sequence[TransferWithCacheKeyConfig],
        src_block_indices: BlockList | None = None,
        dst_block_indices: BlockList | None = None,
        dst_block_memory_size: int | None = None,
        *,
        request_id: str | None = None,
        after: After = None,
    ) -> CacheTask:
        """Push a cache layer by layer, each as soon as the synchronizer says that it is complete.

        Args:
            src_cache: Local cache; two tensors per layer.
            layer_synchronizer: Asked once per layer, ascending, on a thread of the library; false
                or an exception ends the transfer with LLM_FAILED.
            transfer_configs: Destinations: all TransferConfig while enable_remote_cache_accessible
                is off, all TransferWithCacheKeyConfig while it is on.
            src_block_indices: Blocks of the source, as for `pull_blocks`; a contiguous source
                given them uses its dimension 0 as blocks.
            dst_block_indices: Blocks of the destination, no duplicates, as many as the source's;
                neither list, with keys: every block onto itself. For a contiguous source: where the
                consecutive pieces of its slot go.
            dst_block_memory_size: Bytes of a destination block, for a contiguous source.
            request_id: The caller's name of the request, for logs and traces: 1 to 128 printable
                characters *(extension)*.
            after: CUDA stream or event: nothing moves before the work that it has been given so far
                has ended *(extension)*; docs/howto/gpu-streams.md.

        Returns:
            At once, a CacheTask with one result per config. Until it is complete, a layer must not
            change any more once the synchronizer has said that it is ready. Each layer has
            sync_kv_timeout; a config that fails gets no further layer, the others go on.
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
            None if request_id is None else request_trace(operation, request_id, dst_block_indices),
            self._engine.order.awaited(operation, after),
        )
