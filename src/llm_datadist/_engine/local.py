"""Copies within the process: copy_cache, copy_blocks, swap_blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._devices.cpu import copy
from llm_datadist._engine.checks import blocks_of, slots_of
from llm_datadist._engine.faults import described, fault_of, pieces_at_fault
from llm_datadist._errors import LLMStatusCode, fail
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
        marks = self._engine.faults
        marks.check(operation, dst, plan, None, local=True)
        marks.check(operation, src, plan, None, local=False)
        node, dst_ref, src_ref = self._engine.node.native, dst.ref, src.ref
        outcome = Outcome(*copy(node, plan.local, plan.remote, plan.length, dst_ref, src_ref))
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
                "a cache was unregistered, freed or remapped during the call",
                "keep it registered until the call returns",
            )
        index = max(outcome.descriptor, 0)
        there, here = int(plan.local[index]), int(plan.remote[index])

        def fails(offset: int, part: int) -> bool:
            words = np.array((there + offset, here + offset, part), np.uint64)
            probed = copy(node, words[:1], words[1:2], words[2:], dst_ref, src_ref)
            return probed[0] == code

        of_source = code == Code.REMOTE_FAULT
        cache, ref, addr = (src, src_ref, here) if of_source else (dst, dst_ref, there)
        pieces = pieces_at_fault(cache.layout, addr, int(plan.length[index]), fails)
        faults = [fault_of(self._engine.cluster_id, cache, piece) for piece in pieces]
        marks.mark(cache, ref, faults)
        raise fail(
            LLMStatusCode.LLM_DEVICE_MEM_ERROR,
            operation,
            f"memory of the {'source' if of_source else 'destination'} cannot be accessed: "
            f"{described(faults[0])}",
            "repair it, then call remap_registered_memory",
            faults=faults,
        )
