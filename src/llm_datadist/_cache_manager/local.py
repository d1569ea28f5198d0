"""Calls that copy within one instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._cache_manager.call_group import Calls
from llm_datadist._types import Cache
from llm_datadist._types.arguments import check_block_copies, check_dict, check_slot_copy
from llm_datadist._types.checks import check_instance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_datadist._types import BlockList
    from llm_datadist._types.streams import After


class LocalCalls(Calls):
    """Calls that copy between local caches. Source: api.md 7.7."""

    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
        *,
        after: After = None,
    ) -> None:
        """Copy one slot of every tensor between local contiguous caches.

        Args:
            dst: Destination.
            src: Source, with as many tensors and equal slots.
            dst_batch_index: Slot of the destination.
            src_batch_index: Slot of the source.
            offset: Bytes from the slot's start, on both sides.
            size: Bytes per tensor; -1 = the rest of the slot.
            req_id: Carried for the log only.
            after: CUDA stream or event: nothing is copied before the work that it has been given
                so far has ended *(extension)*; docs/howto/gpu-streams.md.

        Raises:
            TypeError: A wrong type.
            ValueError: A number outside its width.
            LLMException: LLM_PARAM_INVALID, LLM_KV_CACHE_NOT_EXIST (freed), LLM_DEVICE_MEM_ERROR;
                LLM_TIMEOUT after sync_kv_timeout, with `after` or memory of a GPU.
        Source: api.md 7.7.
        """
        self._engine.check_open("copy_cache")
        checked = check_slot_copy(dst, src, dst_batch_index, src_batch_index, offset, size, req_id)
        self._engine.local_copies.copy_slot(
            *checked, self._engine.order.awaited("copy_cache", after)
        )

    def copy_blocks(
        self, cache: Cache, copy_block_info: Mapping[int, BlockList], *, after: After = None
    ) -> None:
        """Copy blocks within one local blocks cache: each key's block onto every listed block.

        As if made one after the other, in the order of the dictionary. The lists may be ranges and
        arrays, too *(extension)*. `after` is as for `copy_cache`.

        Raises:
            TypeError: A wrong type.
            ValueError: A negative index.
            LLMException: LLM_PARAM_INVALID (an index that does not exist), LLM_KV_CACHE_NOT_EXIST
                (freed), LLM_DEVICE_MEM_ERROR (`faults` names the blocks; the others were copied,
                but for copies that depend on an earlier one of the same call), LLM_TIMEOUT as
                `copy_cache`.
        Source: api.md 7.7.
        """
        self._engine.check_open("copy_blocks")
        check_block_copies("Cache", cache, copy_block_info)
        awaited = self._engine.order.awaited("copy_blocks", after)
        self._engine.local_copies.copy_blocks(cache, copy_block_info, awaited)

    def swap_blocks(
        self,
        src_cache: Cache,
        dst_cache: Cache,
        src_to_dst: dict[int, int],
        *,
        after: After = None,
    ) -> None:
        """Copy blocks between two local caches: block key of the source onto block value.

        Meant for a DEVICE blocks cache and a HOST one (`Cache.create_cpu_cache`), either direction;
        any placements work. `after` is as for `copy_cache`.

        Raises:
            AttributeError: An argument is None.
            TypeError: A wrong type, or caches whose data type differs.
            ValueError: A negative index, or caches whose tensor count or block bytes differ.
            LLMException: as `copy_blocks`.
        Source: api.md 7.7.
        """
        self._engine.check_open("swap_blocks")
        for name, cache in (("src_cache", src_cache), ("dst_cache", dst_cache)):
            if cache is None:
                raise AttributeError(f"{name} is None; give a Cache")
            check_instance(name, cache, Cache)
        if src_to_dst is None:
            raise AttributeError("src_to_dst is None; give a dict of int to int")
        check_dict("src_to_dst", src_to_dst)
        awaited = self._engine.order.awaited("swap_blocks", after)
        self._engine.local_copies.swap_blocks(src_cache, dst_cache, src_to_dst, awaited)
