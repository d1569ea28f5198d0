"""Calls within one instance: copies between caches, and views of their tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llm_datadist._errors import invalid
from llm_datadist._kv_cache_manager.call_group import Calls
from llm_datadist._types import KvCache, Tensor, TensorDesc
from llm_datadist._types.arguments import check_block_copies, check_dict, check_slot_copy
from llm_datadist._types.checks import check_instance, check_int

if TYPE_CHECKING:
    from llm_datadist._types.streams import After


class LocalCalls(Calls):
    """Calls that copy between local caches and show them. Any role. Source: api.md 7.7, 8."""

    def copy_cache(
        self,
        dst: KvCache,
        src: KvCache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
        *,
        after: After = None,
    ) -> None:
        """Copy one slot of every tensor between local contiguous caches.

        The arguments are those of `CacheManager.copy_cache`, also `after` *(extension)*.

        Raises:
            TypeError: A wrong type.
            ValueError: A number outside its width.
            LLMException: LLM_PARAM_INVALID, LLM_KV_CACHE_NOT_EXIST (freed), LLM_DEVICE_MEM_ERROR;
                LLM_WAIT_PROCESS_TIMEOUT after sync_kv_timeout, with `after` or memory of a GPU.
        Source: api.md 7.7, 8.
        """
        self._engine.check_open("copy_cache")
        checked = check_slot_copy(dst, src, dst_batch_index, src_batch_index, offset, size, req_id)
        self._engine.local_copies.copy_slot(
            *checked, self._engine.order.awaited("copy_cache", after)
        )

    def copy_blocks(
        self, cache: KvCache, copy_block_info: dict[int, list[int]], *, after: After = None
    ) -> None:
        """Copy blocks within one local blocks cache: each key's block onto every listed block.

        As if made one after the other, in the order of the dictionary. `after` is as for
        `copy_cache`.

        Raises:
            TypeError: A wrong type.
            ValueError: A negative index.
            LLMException: LLM_PARAM_INVALID (an index that does not exist), LLM_KV_CACHE_NOT_EXIST
                (freed), LLM_DEVICE_MEM_ERROR (`faults` names the blocks); LLM_WAIT_PROCESS_TIMEOUT
                as `copy_cache`.
        Source: api.md 7.7, 8.
        """
        self._engine.check_open("copy_blocks")
        check_block_copies("KvCache", cache, copy_block_info)
        awaited = self._engine.order.awaited("copy_blocks", after)
        self._engine.local_copies.copy_blocks(cache, copy_block_info, awaited)

    def swap_blocks(
        self, src: KvCache, dst: KvCache, src_to_dst: dict[int, int], *, after: After = None
    ) -> None:
        """Copy blocks between two local caches: block key of the source onto block value.

        Meant for an allocated blocks cache and one of the program's memory
        (`KvCache.create_cpu_cache`), either direction; any two work. `after` is as for
        `copy_cache`.

        Raises:
            AttributeError: A cache is None.
            TypeError: A wrong type, or caches whose data type differs.
            ValueError: A negative index, or caches whose tensor count or block bytes differ.
            LLMException: as `copy_blocks`.
        Source: api.md 7.7, 8.
        """
        self._engine.check_open("swap_blocks")
        for name, cache in (("src", src), ("dst", dst)):
            if cache is None:
                raise AttributeError(f"{name} is None; give a KvCache")
            check_instance(name, cache, KvCache)
        check_dict("src_to_dst", src_to_dst)
        awaited = self._engine.order.awaited("swap_blocks", after)
        self._engine.local_copies.swap_blocks(src, dst, src_to_dst, awaited)

    def get_cache_tensors(self, cache: KvCache, tensor_index: int = 0) -> list[Tensor]:
        """Return a tensor of a cache: one Tensor for each device, of which there is one.

        It has no memory of its own: `Tensor.numpy` is a view of the cache, and writable (of DT_BF16
        a copy). A view counts as a reference to the KvCache, which it keeps. After
        `deallocate_cache` or `LLMDataDist.finalize` a view must not be used.

        Raises:
            TypeError: A wrong type.
            LLMException: LLM_PARAM_INVALID (there is no such tensor; -1 is none),
                LLM_KV_CACHE_NOT_EXIST (freed).
        Source: api.md 8.
        """
        operation = "get_cache_tensors"
        self._engine.check_open(operation)
        check_instance("cache", cache, KvCache)
        index = check_int("tensor_index", tensor_index, -math.inf, math.inf)
        desc = self._registry.find(operation, cache).desc
        if not 0 <= index < desc.num_tensors:
            raise invalid(
                operation,
                f"tensor_index is {index}, the cache has {desc.num_tensors} tensors",
                f"give 0 to {desc.num_tensors - 1}",
            )
        return [Tensor(cache.tensor(index), TensorDesc(desc.data_type, desc.shape))]
