"""Calls that transfer between a local cache and a peer's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_datadist._errors import invalid
from llm_datadist._kv_cache_manager.call_group import Calls
from llm_datadist._types import (
    BlocksCacheKey,
    CacheKey,
    CacheKeyByIdAndIndex,
    KvCache,
    LayerSynchronizer,
)
from llm_datadist._types.arguments import check_layers
from llm_datadist._types.block_list import PullNames
from llm_datadist._types.checks import INT64_MAX, INT64_MIN, check_instance, check_int, check_uint32

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._types import BlockList, CacheTask, TransferConfig, TransferWithCacheKeyConfig
    from llm_datadist._types.streams import After

_NAMES: Final = PullNames("decoder_kv_cache", "prompt_blocks", "decoder_blocks")


class TransferCalls(Calls):
    """Calls that move bytes between instances. Source: api.md 8."""

    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        kv_cache: KvCache,
        batch_index: int = 0,
        size: int = -1,
        *,
        src_cache_offset: int = 0,
        dst_cache_offset: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
        after: After = None,
    ) -> None:
        """Pull one slot of a peer's contiguous cache into a slot of a local one.

        A CacheKey is consumed by a pull of all its layers, whatever the number of bytes; a second
        pull by it raises LLM_KV_CACHE_NOT_EXIST. DECODER and MIX only.

        Args:
            cache_key: The peer's slot.
            kv_cache: Local contiguous cache.
            batch_index: Slot of `kv_cache` that is written.
            size: Bytes per tensor; -1 = the local slot's bytes behind dst_cache_offset.
            src_cache_offset: Bytes from the start of the peer's slot to the first one pulled.
            dst_cache_offset: Bytes from the start of the local slot to the first one written.
            src_layer_range: The peer's layers, step 1; None = all.
            dst_layer_range: Local layers, equally many; None = all.
            tensor_num_per_layer: Tensors of one layer.
            after: CUDA stream or event: nothing moves before the work that it has been given so far
                has ended *(extension)*; docs/howto/gpu-streams.md.

        Raises:
            TypeError: A wrong type.
            ValueError: A number outside its width, a negative offset.
            LLMException: LLM_PARAM_INVALID (sizes, offsets, slots, layers; the role is PROMPT),
                LLM_NOT_YET_LINK, LLM_KV_CACHE_NOT_EXIST, LLM_WAIT_PROCESS_TIMEOUT after
                sync_kv_timeout, LLM_LINK_FAILED, LLM_SUSPECT_REMOTE_ERROR, LLM_DEVICE_MEM_ERROR,
                LLM_ENGINE_FINALIZED.
        After a failure bytes that were moved stay moved and nothing lands any more; a CacheKey is
        not consumed.
        Source: api.md 7.2, 7.8, 8.
        """
        operation = "pull_cache"
        self._engine.check_open(operation)
        key = check_instance("cache_key", cache_key, CacheKey, CacheKeyByIdAndIndex)
        check_instance("kv_cache", kv_cache, KvCache)
        slot = check_uint32("batch_index", batch_index)
        num_bytes = check_int("size", size, INT64_MIN, INT64_MAX)
        src_offset = check_int("src_cache_offset", src_cache_offset, 0, INT64_MAX)
        dst_offset = check_int("dst_cache_offset", dst_cache_offset, 0, INT64_MAX)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        self._roles.check_pulls(operation)
        awaited = self._engine.order.awaited(operation, after)
        self._engine.transfers.pull_slot(
            operation,
            key,
            kv_cache,
            slot,
            num_bytes,
            layers,
            after=awaited,
            src_offset=src_offset,
            dst_offset=dst_offset,
        )

    def pull_blocks(
        self,
        prompt_cache_key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex,
        decoder_kv_cache: KvCache,
        prompt_blocks: BlockList,
        decoder_blocks: BlockList,
        *,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = 2,
        after: After = None,
    ) -> None:
        """Pull blocks of a peer's cache into blocks of a local one. DECODER and MIX only.

        Args:
            prompt_cache_key: BlocksCacheKey: block prompt_blocks[i] lands in decoder_blocks[i].
                CacheKey or CacheKeyByIdAndIndex: the slot is cut into pieces of the destination's
                block_bytes, piece i lands in decoder_blocks[i]; prompt_blocks stays empty. A
                CacheKey is consumed by a pull of all its layers.
            decoder_kv_cache: Local blocks cache of equal block_bytes and tensor count.
            prompt_blocks: The peer's blocks, 0-based; as many as decoder_blocks.
            decoder_blocks: Local blocks, 0-based, no duplicates. Empty lists move nothing.
            src_layer_range: The peer's layers, step 1; None = all.
            dst_layer_range: Local layers, equally many; None = all.
            tensor_num_per_layer: Tensors of one layer.
            after: CUDA stream or event: nothing moves before the work that it has been given so far
                has ended *(extension)*; docs/howto/gpu-streams.md.

        Raises:
            TypeError: A wrong type (a float, str or bool among the blocks, say).
            ValueError: A negative index.
            LLMException: as `pull_cache`; LLM_PARAM_INVALID names the index at fault.
        After a failure blocks that were moved stay moved and nothing lands any more.
        Source: api.md 7.3, 7.8, 8.
        """
        operation = "pull_blocks"
        self._engine.check_open(operation)
        key = check_instance(
            "prompt_cache_key", prompt_cache_key, BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
        )
        check_instance("decoder_kv_cache", decoder_kv_cache, KvCache)
        layers = check_layers(src_layer_range, dst_layer_range, tensor_num_per_layer)
        self._roles.check_pulls(operation)
        awaited = self._engine.order.awaited(operation, after)
        blocks = prompt_blocks, decoder_blocks
        self._engine.transfers.pull_blocks(
            operation, key, decoder_kv_cache, *blocks, layers, names=_NAMES, after=awaited
        )

    def transfer_cache_async(
        self,
        src_cache: KvCache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[TransferConfig] | Sequence[TransferWithCacheKeyConfig],
        src_block_indices: BlockList | None = None,
        dst_block_indices: BlockList | None = None,
        *,
        after: After = None,
    ) -> CacheTask:
        """Push a cache layer by layer, each as soon as the synchronizer says that it is complete.

        From a contiguous cache to contiguous ones, or from a blocks cache to blocks caches. Any
        role; over a link that either side has made. The arguments and the task are those of
        `CacheManager.transfer_cache_async`, without dst_block_memory_size; the caller keeps
        `src_cache` until the task is complete. A layer that takes longer than sync_kv_timeout ends
        its config with LLM_WAIT_PROCESS_TIMEOUT, and so does the work that `after` *(extension)*
        names.

        Raises:
            TypeError: A wrong type, or kinds of configs mixed.
            ValueError: A negative index.
            LLMException: LLM_PARAM_INVALID: combinations that do not exist, unequal lists, layers
                out of range.
        Source: api.md 7.6, 8.
        """
        operation = "transfer_cache_async"
        self._engine.check_open(operation)
        check_instance("src_cache", src_cache, KvCache)
        check_instance("layer_synchronizer", layer_synchronizer, LayerSynchronizer)
        check_instance("transfer_configs", transfer_configs, list, tuple)
        contiguous = src_block_indices is None and not src_cache.is_blocks_cache
        if contiguous and dst_block_indices is not None:
            raise invalid(
                operation,
                "dst_block_indices with a contiguous source, which goes to contiguous caches only",
                "leave dst_block_indices out, or use a blocks cache",
            )
        return self._engine.layerwise.start(
            src_cache,
            layer_synchronizer,
            transfer_configs,
            src_block_indices,
            dst_block_indices,
            None,
            after=self._engine.order.awaited(operation, after),
        )
