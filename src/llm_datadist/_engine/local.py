"""Copies within the process: copy_cache, copy_blocks, swap_blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._devices.cpu import copy
from llm_datadist._engine.checks import blocks_of, slots_of
from llm_datadist._errors import Fault, LLMStatusCode, fail
from llm_datadist._plan import (
    blocks_array,
    copy_pairs,
    plan_block_copies,
    plan_blocks,
    plan_slots,
)

if TYPE_CHECKING:
    from llm_datadist._engine.engine import Engine
    from llm_datadist._plan import Plan
    from llm_datadist._registry import LocalCache
    from llm_datadist._types import Cache

_INVALID = LLMStatusCode.LLM_PARAM_INVALID


class LocalCopies:
    """The local copies of one instance. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def copy_slot(
        self, dst: Cache, src: Cache, dst_slot: int, src_slot: int, offset: int, size: int
    ) -> None:
        """See CacheManager.copy_cache."""
        operation = "copy_cache"
        target = self._engine.registry.find(operation, dst)
        source = self._engine.registry.find(operation, src)
        for name, cache in (("dst", target), ("src", source)):
            if cache.is_blocks:
                raise fail(
                    _INVALID,
                    operation,
                    f"{name} is a blocks cache",
                    "use copy_blocks or swap_blocks",
                )
        there, here = slots_of(operation, target), slots_of(operation, source)
        if here.num_tensors != there.num_tensors or here.unit_bytes != there.unit_bytes:
            raise fail(
                _INVALID,
                operation,
                f"src has {here.num_tensors} tensors with slots of {here.unit_bytes} bytes, dst "
                f"{there.num_tensors} with {there.unit_bytes}",
                "use caches of equal tensors and slots",
            )
        for name, slot, layout in (
            ("dst_batch_index", dst_slot, there),
            ("src_batch_index", src_slot, here),
        ):
            if slot >= layout.num_units:
                raise fail(
                    _INVALID,
                    operation,
                    f"{name} is {slot}, the cache has {layout.num_units} slots",
                    f"give 0 to {layout.num_units - 1}",
                )
        num_bytes = here.unit_bytes - offset if size == -1 else size
        if size == 0 or size < -1 or num_bytes <= 0 or offset + num_bytes > here.unit_bytes:
            raise fail(
                _INVALID,
                operation,
                f"offset {offset} and size {size} of a slot of {here.unit_bytes} bytes",
                "give a part of the slot, or size -1 for its rest",
            )
        plan = plan_slots(
            there,
            dst_slot,
            there.all_tensors,
            here,
            src_slot,
            here.all_tensors,
            num_bytes,
            offset_bytes=offset,
        )
        self._copy(operation, plan, target, source)

    def copy_blocks(self, cache: Cache, copies: dict[int, list[int]]) -> None:
        """See CacheManager.copy_blocks."""
        operation = "copy_blocks"
        local = self._engine.registry.find(operation, cache)
        if not local.is_blocks:
            raise fail(_INVALID, operation, "cache is a contiguous cache", "use copy_cache")
        src, dst = copy_pairs(operation, copies, local.layout.num_units)
        for plan in plan_block_copies(local.layout, src, dst):
            self._copy(operation, plan, local, local)

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, pairs: dict[int, int]) -> None:
        """See CacheManager.swap_blocks."""
        operation = "swap_blocks"
        registry = self._engine.registry
        source = registry.find(operation, src_cache)
        target = registry.find(operation, dst_cache)
        if source.desc.data_type is not target.desc.data_type:
            raise TypeError(
                f"{operation}: src_cache has {source.desc.data_type}, dst_cache "
                f"{target.desc.data_type}; use caches of one type"
            )
        here, there = blocks_of(source), blocks_of(target)
        if (here.num_tensors, here.unit_bytes) != (there.num_tensors, there.unit_bytes):
            raise ValueError(
                f"{operation}: src_cache has {here.num_tensors} tensors with blocks of "
                f"{here.unit_bytes} bytes, dst_cache {there.num_tensors} with {there.unit_bytes}; "
                "use caches of equal tensors and block shape"
            )
        src = blocks_array(operation, "src_to_dst", list(pairs), here.num_units)
        dst = blocks_array(
            operation, "src_to_dst", list(pairs.values()), there.num_units, unique=True
        )
        plan = plan_blocks(there, dst, there.all_tensors, here, src, here.all_tensors)
        self._copy(operation, plan, target, source)

    def _copy(self, operation: str, plan: Plan, dst: LocalCache, src: LocalCache) -> None:
        if not len(plan.length):
            return
        outcome = Outcome(
            *copy(self._engine.node.native, plan.local, plan.remote, plan.length, dst.ref, src.ref)
        )
        code = outcome.code
        if code == Code.OK:
            return
        if code in (Code.CLOSED, Code.CANCELLED) or self._engine.closing:
            raise fail(
                LLMStatusCode.LLM_ENGINE_FINALIZED,
                operation,
                "this instance was finalised during the call",
                "do not use it any more",
            )
        if code in (Code.GONE, Code.LOCAL_GONE):
            raise fail(
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
                operation,
                "a cache was unregistered or freed during the call",
                "keep it registered until the call returns",
            )
        of_source = code == Code.REMOTE_FAULT
        cache, side = (src, plan.remote) if of_source else (dst, plan.local)
        index = outcome.descriptor if 0 <= outcome.descriptor < len(side) else 0
        addr, size = int(side[index]), int(plan.length[index])
        piece = next(iter(cache.layout.locate(addr, size)), None)
        fault = Fault(
            cluster_id=self._engine.cluster_id,
            cache_id=cache.cache_id,
            tensor_index=piece.tensor_index if piece else None,
            block=piece.unit_index if piece and cache.is_blocks else None,
            slot=piece.unit_index if piece and not cache.is_blocks else None,
            addr=addr,
            size=size,
        )
        raise fail(
            LLMStatusCode.LLM_DEVICE_MEM_ERROR,
            operation,
            f"memory of the {'source' if of_source else 'destination'} at {addr:#x}, {size} bytes, "
            "cannot be accessed",
            "repair it, then call remap_registered_memory",
            faults=(fault,),
        )
