"""The four transfer calls of CacheManager: each becomes a `Request` that `Attempts` carries out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, final

from llm_datadist._engine.transfer.attempt import Attempts, Request
from llm_datadist._engine.transfer.cache_checks import (
    check_equal,
    check_fits,
    check_pieces,
    check_same_layers,
    check_size,
    local_blocks,
    local_slots,
    remote_blocks,
    remote_slots,
)
from llm_datadist._errors import invalid
from llm_datadist._plan import (
    blocks_array,
    plan_blocks,
    plan_slot_to_blocks,
    plan_slots,
    tensor_ranges,
)
from llm_datadist._types import BlocksCacheKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.memory.fault_marks import FaultMarks
    from llm_datadist._engine.transfer.attempt import MakePlan
    from llm_datadist._engine.transfer.checksums import Checksums
    from llm_datadist._plan import Layers, Plan
    from llm_datadist._registry import LocalCache, Resolved
    from llm_datadist._types import AnyKey, Cache, CacheKeyByIdAndIndex

__all__ = ["Transfers"]


@final
class Transfers:
    """The transfer calls of one instance. Thread-safe."""

    def __init__(self, instance: Instance, fault_marks: FaultMarks, checksums: Checksums) -> None:
        self._registry = instance.registry
        self._timeout_ns = instance.config.sync_timeout_ms * 1_000_000
        self._attempts = Attempts(instance, fault_marks, checksums)

    def pull_slot(
        self, operation: str, key: AnyKey, cache: Cache, slot: int, size: int, layers: Layers
    ) -> None:
        """See CacheManager.pull_cache."""
        dst_cache = self._registry.find(operation, cache)
        check_size(operation, size)
        dst_layout = local_slots(operation, dst_cache, slot, "batch_index")

        def plan(src: Resolved) -> Plan:
            src_layout = remote_slots(operation, src, key)
            num_bytes = dst_layout.unit_bytes if size == -1 else size
            check_fits(operation, num_bytes, dst_layout, src_layout)
            src_tensors, dst_tensors = tensor_ranges(
                operation, *layers, src_layout.num_tensors, dst_layout.num_tensors
            )
            return plan_slots(
                dst_layout, slot, dst_tensors, src_layout, src.slot, src_tensors, num_bytes
            )

        self._run(operation, key, dst_cache, plan, write=False, layers=layers)

    def pull_blocks(
        self,
        operation: str,
        key: AnyKey,
        cache: Cache,
        src_blocks: Sequence[int],
        dst_blocks: Sequence[int],
        layers: Layers,
    ) -> None:
        """See CacheManager.pull_blocks."""
        dst_cache = self._registry.find(operation, cache)
        dst_layout = local_blocks(operation, dst_cache, "dst_cache")
        dst = blocks_array(operation, "dst_blocks", dst_blocks, dst_layout.num_units, unique=True)
        src = blocks_array(operation, "src_blocks", src_blocks, None)

        if isinstance(key, BlocksCacheKey):
            check_equal(operation, src, dst)

            def plan(found: Resolved) -> Plan:
                src_layout = remote_blocks(operation, found, key, dst_layout, src, "src_blocks")
                src_tensors, dst_tensors = tensor_ranges(
                    operation, *layers, src_layout.num_tensors, dst_layout.num_tensors
                )
                return plan_blocks(dst_layout, dst, dst_tensors, src_layout, src, src_tensors)

        else:
            if len(src):
                raise invalid(
                    operation,
                    f"src_blocks has {len(src)} entries with a {type(key).__name__}",
                    "leave src_blocks empty: the slot is cut into consecutive pieces",
                )

            def plan(found: Resolved) -> Plan:
                src_layout = remote_slots(operation, found, key)
                src_tensors, dst_tensors = tensor_ranges(
                    operation, *layers, src_layout.num_tensors, dst_layout.num_tensors
                )
                check_pieces(operation, src_layout, dst_layout, len(dst))
                return plan_slot_to_blocks(
                    src_layout, found.slot, src_tensors, dst_layout, dst, dst_tensors
                )

        self._run(operation, key, dst_cache, plan, write=False, layers=layers)

    def push_blocks(
        self,
        operation: str,
        key: BlocksCacheKey,
        cache: Cache,
        src_blocks: Sequence[int],
        dst_blocks: Sequence[int],
        layers: Layers,
    ) -> None:
        """See CacheManager.push_blocks."""
        src_cache = self._registry.find(operation, cache)
        src_layout = local_blocks(operation, src_cache, "src_cache")
        src = blocks_array(operation, "src_blocks", src_blocks, src_layout.num_units)
        dst = blocks_array(operation, "dst_blocks", dst_blocks, None, unique=True)
        check_equal(operation, src, dst)
        check_same_layers(operation, layers)

        def plan(found: Resolved) -> Plan:
            dst_layout = remote_blocks(operation, found, key, src_layout, dst, "dst_blocks")
            src_tensors, dst_tensors = tensor_ranges(
                operation, *layers, src_layout.num_tensors, dst_layout.num_tensors
            )
            return plan_blocks(
                src_layout, src, src_tensors, dst_layout, dst, dst_tensors, push=True
            )

        self._run(operation, key, src_cache, plan, write=True)

    def push_slot(
        self,
        operation: str,
        key: CacheKeyByIdAndIndex,
        cache: Cache,
        slot: int,
        size: int,
        layers: Layers,
    ) -> None:
        """See CacheManager.push_cache."""
        src_cache = self._registry.find(operation, cache)
        check_size(operation, size)
        src_layout = local_slots(operation, src_cache, slot, "src_batch_index")
        check_same_layers(operation, layers)

        def plan(dst: Resolved) -> Plan:
            dst_layout = remote_slots(operation, dst, key)
            num_bytes = src_layout.unit_bytes if size == -1 else size
            check_fits(operation, num_bytes, src_layout, dst_layout)
            src_tensors, dst_tensors = tensor_ranges(
                operation, *layers, src_layout.num_tensors, dst_layout.num_tensors
            )
            return plan_slots(
                src_layout, slot, src_tensors, dst_layout, dst.slot, dst_tensors, num_bytes
            )

        self._run(operation, key, src_cache, plan, write=True)

    def push_planned(self, operation: str, key: AnyKey, local: LocalCache, plan: MakePlan) -> None:
        """Push by a plan of the caller's (layer-wise transfers)."""
        self._run(operation, key, local, plan, write=True)

    def push_raw(self, operation: str, cluster_id: int, local: LocalCache, plan: Plan) -> None:
        """Push to bare addresses of the peer, which checks them against its accessible regions."""
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        key = BlocksCacheKey(cluster_id)
        request = Request(operation, key, local, lambda _: plan, deadline_ns, write=True)
        self._attempts.push_raw(request, plan)

    def _run(
        self,
        operation: str,
        key: AnyKey,
        local: LocalCache,
        plan: MakePlan,
        *,
        write: bool,
        layers: Layers | None = None,
    ) -> None:
        deadline_ns = time.monotonic_ns() + self._timeout_ns
        self._attempts.run(Request(operation, key, local, plan, deadline_ns, write, layers))
