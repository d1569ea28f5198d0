"""Copies between local caches: copy_cache, copy_blocks, swap_blocks."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from llm_datadist._backends.outcomes import Code, as_outcome
from llm_datadist._devices.cpu import NEVER_NS, copy
from llm_datadist._engine.memory.containment import FAULTS, Containment
from llm_datadist._engine.memory.fault_marks import (
    NOT_ACCESSIBLE,
    REPAIR,
    described,
    fault_at,
)
from llm_datadist._engine.transfer.cache_checks import as_blocks, as_slots, check_apart
from llm_datadist._engine.transfer.order import FEWER_CALLS, NO_GPU_THREAD
from llm_datadist._errors import LLMException, LLMStatusCode, fail, finalized, invalid, restate
from llm_datadist._plan import (
    blocks_array,
    copy_pairs,
    cut_between,
    plan_block_copies,
    plan_blocks,
    plan_slots,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_datadist._backends.outcomes import Outcome
    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.memory.containment import Words
    from llm_datadist._engine.memory.fault_marks import FaultMarks
    from llm_datadist._engine.transfer.order import Awaited
    from llm_datadist._plan import Plan
    from llm_datadist._registry import LocalCache
    from llm_datadist._types import BlockList, Cache


class LocalCopies:
    """Copies between the caches of one instance. Thread-safe.

    A copy of a GPU's memory, and the wait for `after`, end within sync_kv_timeout of the call: a
    GPU may hang. Copies of host memory wait for nothing.
    """

    def __init__(self, instance: Instance, fault_marks: FaultMarks) -> None:
        self._instance = instance
        self._registry = instance.registry
        self._fault_marks = fault_marks
        self._timeout_ms = instance.config.sync_timeout_ms
        self._statuses = instance.config.statuses

    def copy_slot(
        self,
        dst: Cache,
        src: Cache,
        dst_slot: int,
        src_slot: int,
        offset: int,
        size: int,
        after: Awaited | None = None,
    ) -> None:
        """See CacheManager.copy_cache."""
        operation = "copy_cache"
        deadline_ns = self._deadline_ns()
        target = self._registry.find(operation, dst)
        source = self._registry.find(operation, src)
        for name, cache in (("dst", target), ("src", source)):
            if cache.is_blocks:
                raise invalid(
                    operation, f"{name} is a blocks cache", "use copy_blocks or swap_blocks"
                )
        dst_layout, src_layout = as_slots(operation, target), as_slots(operation, source)
        if (
            src_layout.num_tensors != dst_layout.num_tensors
            or src_layout.unit_bytes != dst_layout.unit_bytes
        ):
            raise invalid(
                operation,
                f"src has {src_layout.num_tensors} tensors with slots of {src_layout.unit_bytes} "
                f"bytes, dst {dst_layout.num_tensors} with {dst_layout.unit_bytes}",
                "use caches of equal tensors and slots",
            )
        for name, slot, layout in (
            ("dst_batch_index", dst_slot, dst_layout),
            ("src_batch_index", src_slot, src_layout),
        ):
            if slot >= layout.num_units:
                raise invalid(
                    operation,
                    f"{name} is {slot}, the cache has {layout.num_units} slots",
                    f"give 0 to {layout.num_units - 1}",
                )
        num_bytes = src_layout.unit_bytes - offset if size == -1 else size
        if size == 0 or size < -1 or num_bytes <= 0 or offset + num_bytes > src_layout.unit_bytes:
            raise invalid(
                operation,
                f"offset {offset} and size {size} of a slot of {src_layout.unit_bytes} bytes",
                "give a part of the slot, or size -1 for its rest",
            )
        plan = plan_slots(
            dst_layout,
            dst_slot,
            dst_layout.all_tensors,
            src_layout,
            src_slot,
            src_layout.all_tensors,
            num_bytes,
            local_offset_bytes=offset,
            remote_offset_bytes=offset,
        )
        _wait(operation, after, deadline_ns)
        self._copy(operation, plan, target, source, deadline_ns)

    def copy_blocks(
        self, cache: Cache, copies: Mapping[int, BlockList], after: Awaited | None = None
    ) -> None:
        """See CacheManager.copy_blocks."""
        operation = "copy_blocks"
        deadline_ns = self._deadline_ns()
        local = self._registry.find(operation, cache)
        if not local.is_blocks:
            raise invalid(operation, "cache is a contiguous cache", "use copy_cache")
        src, dst = copy_pairs(operation, copies, local.layout.num_units)
        _wait(operation, after, deadline_ns)
        for plan in plan_block_copies(local.layout, src, dst):
            self._copy(operation, plan, local, local, deadline_ns)

    def swap_blocks(
        self,
        src_cache: Cache,
        dst_cache: Cache,
        pairs: dict[int, int],
        after: Awaited | None = None,
    ) -> None:
        """See CacheManager.swap_blocks."""
        operation = "swap_blocks"
        deadline_ns = self._deadline_ns()
        source = self._registry.find(operation, src_cache)
        target = self._registry.find(operation, dst_cache)
        if source.desc.data_type is not target.desc.data_type:
            raise TypeError(
                f"{operation}: the source has {source.desc.data_type}, the destination "
                f"{target.desc.data_type}; use caches of one type"
            )
        src_layout, dst_layout = as_blocks(source), as_blocks(target)
        if (src_layout.num_tensors, src_layout.unit_bytes) != (
            dst_layout.num_tensors,
            dst_layout.unit_bytes,
        ):
            raise ValueError(
                f"{operation}: the source has {src_layout.num_tensors} tensors with blocks of "
                f"{src_layout.unit_bytes} bytes, the destination {dst_layout.num_tensors} with "
                f"{dst_layout.unit_bytes}; "
                "use caches of equal tensors and block shape"
            )
        src = blocks_array(operation, "src_to_dst", list(pairs), src_layout.num_units)
        dst = blocks_array(
            operation, "src_to_dst", list(pairs.values()), dst_layout.num_units, unique=True
        )
        plan = plan_blocks(
            dst_layout, dst, dst_layout.all_tensors, src_layout, src, src_layout.all_tensors
        )
        _wait(operation, after, deadline_ns)
        self._copy(operation, plan, target, source, deadline_ns)

    def _deadline_ns(self) -> int:
        return time.monotonic_ns() + self._timeout_ms * 1_000_000

    def _copy(
        self, operation: str, plan: Plan, dst: LocalCache, src: LocalCache, deadline_ns: int
    ) -> None:
        if not len(plan.length):
            return
        check_apart(operation, plan, write=False)
        marks = self._fault_marks
        marks.check_local(operation, dst, plan, None, local=True)
        marks.check_local(operation, src, plan, None, local=False)
        node, dst_ref, src_ref = self._instance.node, dst.ref, src.ref
        if dst.device is not None or src.device is not None:
            plan = cut_between(plan, dst.layout.starts, src.layout.starts)
        else:
            deadline_ns = NEVER_NS

        def move(local: Words, remote: Words, length: Words) -> Outcome:
            return as_outcome(
                copy(node.native, local, remote, length, dst_ref, src_ref, deadline_ns)
            )

        outcome = move(plan.local, plan.remote, plan.length)
        if outcome.code == Code.OK:
            return
        if outcome.code not in FAULTS:
            raise self._ended(operation, outcome)
        contained = Containment(move, dst.layout, src.layout)
        ended = contained.finish(plan, outcome)
        if ended is not None:
            raise self._ended(operation, ended)
        found = contained.found
        faults = [
            fault_at(self._instance.cluster_id, dst if bad.is_local else src, bad) for bad in found
        ]
        pairs = list(zip(found, faults, strict=True))
        marks.mark(dst, dst_ref, [fault for bad, fault in pairs if bad.is_local])
        marks.mark(src, src_ref, [fault for bad, fault in pairs if not bad.is_local])
        if faults:
            raise fail(
                LLMStatusCode.LLM_DEVICE_MEM_ERROR,
                operation,
                # For a copy the local side is the destination.
                f"the {'destination' if found[0].is_local else 'source'}'s {NOT_ACCESSIBLE}: "
                f"{described(faults)}",
                REPAIR,
                faults=faults,
            )

    def _ended(self, operation: str, outcome: Outcome) -> LLMException:
        """Return the exception for an outcome that is neither success nor a memory fault."""
        code = outcome.code
        if code in (Code.CLOSED, Code.CANCELLED) or self._instance.life.closing:
            return finalized(operation)
        if code in (Code.GONE, Code.LOCAL_GONE):
            return fail(
                LLMStatusCode.LLM_KV_CACHE_NOT_EXIST,
                operation,
                "a cache was unregistered, freed or remapped during the call",
                "keep it registered until the call returns",
            )
        if code == Code.TIMEOUT:
            error = fail(
                LLMStatusCode.LLM_TIMEOUT,
                operation,
                f"the GPU has not finished within sync_kv_timeout = {self._timeout_ms} ms",
                "raise sync_kv_timeout for copies of many bytes; a GPU that hangs keeps both "
                "caches until it goes on",
            )
            restate(error, self._statuses)
            return error
        if code in FAULTS:  # a GPU does not say which of its bytes
            return fail(
                LLMStatusCode.LLM_DEVICE_MEM_ERROR,
                operation,
                "memory of the GPU cannot be accessed; its driver refuses all further work of "
                "this process on that GPU",
                "restart the process",
            )
        if outcome.sys_errno == errno.EUSERS:
            return fail(LLMStatusCode.LLM_FAILED, operation, NO_GPU_THREAD, FEWER_CALLS)
        reason = f" ({os.strerror(outcome.sys_errno)})" if outcome.sys_errno else ""
        problem = f"the copy failed with {Code(code).name}{reason}"
        return fail(LLMStatusCode.LLM_FAILED, operation, problem, "see the log")


def _wait(operation: str, after: Awaited | None, deadline_ns: int) -> None:
    if after is not None:
        after.wait(operation, deadline_ns)
