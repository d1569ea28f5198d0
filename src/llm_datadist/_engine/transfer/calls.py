"""The four transfer calls of CacheManager: each becomes a `Request` that `Attempts` carries out."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from llm_datadist._engine.transfer.attempt import Request
from llm_datadist._engine.transfer.cache_checks import (
    check_equal,
    check_pieces,
    check_same_layers,
    check_size,
    local_blocks,
    local_slots,
    remote_blocks,
    remote_slots,
    slot_size,
)
from llm_datadist._errors import invalid
from llm_datadist._plan import (
    checked_blocks,
    plan_blocks,
    plan_slot_to_blocks,
    plan_slots,
    tensor_ranges,
)
from llm_datadist._types import BlocksCacheKey
from llm_datadist._types.block_list import PULL_NAMES

if TYPE_CHECKING:
    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.transfer.attempt import Attempts, MakePlan
    from llm_datadist._engine.transfer.order import Awaited
    from llm_datadist._plan import Layers, Plan
    from llm_datadist._registry import LocalCache, Resolved
    from llm_datadist._tracing import RequestTrace
    from llm_datadist._types import AnyKey, BlockList, Cache, CacheKeyByIdAndIndex
    from llm_datadist._types.block_list import PullNames

__all__ = ["Transfers"]


@final
class Transfers:
    """The transfer calls of one instance. Thread-safe."""

    def __init__(self, instance: Instance, attempts: Attempts) -> None:
        self._registry = instance.registry
        self._attempts = attempts

    def pull_slot(
        self,
        operation: str,
        key: AnyKey,
        cache: Cache,
        slot: int,
        size: int,
        layers: Layers,
        trace: RequestTrace | None = None,
        after: Awaited | None = None,
        *,
        src_offset: int = 0,
        dst_offset: int = 0,
    ) -> None:
        """See CacheManager.pull_cache, and KvCacheManager.pull_cache for the offsets."""
        local = self._registry.find(operation, cache)
        check_size(operation, size)
        layout = local_slots(operation, local, slot, "batch_index")

        def plan(found: Resolved) -> Plan:
            remote_layout = remote_slots(operation, found, key)
            num_bytes = slot_size(operation, size, layout, remote_layout, dst_offset, src_offset)
            src, dst = tensor_ranges(operation, layers, remote_layout, layout)
            return plan_slots(
                layout,
                slot,
                dst,
                remote_layout,
                found.slot,
                src,
                num_bytes,
                local_offset_bytes=dst_offset,
                remote_offset_bytes=src_offset,
            )

        self._attempts.run(Request(operation, key, local, plan, layers, trace, after=after))

    def pull_blocks(
        self,
        operation: str,
        key: AnyKey,
        cache: Cache,
        src_blocks: BlockList,
        dst_blocks: BlockList,
        layers: Layers,
        trace: RequestTrace | None = None,
        names: PullNames = PULL_NAMES,
        after: Awaited | None = None,
    ) -> None:
        """See CacheManager.pull_blocks."""
        local = self._registry.find(operation, cache)
        layout = local_blocks(operation, local, names.cache)
        local_ids = checked_blocks(
            operation, names.dst_blocks, dst_blocks, layout.num_units, unique=True
        )
        remote_ids = checked_blocks(operation, names.src_blocks, src_blocks, None)

        if isinstance(key, BlocksCacheKey):
            check_equal(operation, remote_ids, local_ids, names.src_blocks, names.dst_blocks)

            def plan(found: Resolved) -> Plan:
                remote_layout = remote_blocks(
                    operation, found, key, layout, remote_ids, names.src_blocks
                )
                src, dst = tensor_ranges(operation, layers, remote_layout, layout)
                return plan_blocks(layout, local_ids, dst, remote_layout, remote_ids, src)

        else:
            if len(remote_ids):
                raise invalid(
                    operation,
                    f"{names.src_blocks} has {len(remote_ids)} entries with a {type(key).__name__}",
                    f"leave {names.src_blocks} empty: the slot is cut into consecutive pieces",
                )

            def plan(found: Resolved) -> Plan:
                remote_layout = remote_slots(operation, found, key)
                src, dst = tensor_ranges(operation, layers, remote_layout, layout)
                check_pieces(operation, remote_layout, layout, len(local_ids), names.dst_blocks)
                return plan_slot_to_blocks(remote_layout, found.slot, src, layout, local_ids, dst)

        self._attempts.run(Request(operation, key, local, plan, layers, trace, after=after))

    def push_blocks(
        self,
        operation: str,
        key: BlocksCacheKey,
        cache: Cache,
        src_blocks: BlockList,
        dst_blocks: BlockList,
        layers: Layers,
        trace: RequestTrace | None = None,
        after: Awaited | None = None,
    ) -> None:
        """See CacheManager.push_blocks."""
        local = self._registry.find(operation, cache)
        layout = local_blocks(operation, local, "src_cache")
        local_ids = checked_blocks(operation, "src_blocks", src_blocks, layout.num_units)
        remote_ids = checked_blocks(operation, "dst_blocks", dst_blocks, None, unique=True)
        check_equal(operation, local_ids, remote_ids)
        check_same_layers(operation, layers)

        def plan(found: Resolved) -> Plan:
            remote_layout = remote_blocks(operation, found, key, layout, remote_ids, "dst_blocks")
            src, dst = tensor_ranges(operation, layers, layout, remote_layout)
            return plan_blocks(layout, local_ids, src, remote_layout, remote_ids, dst, push=True)

        self._attempts.run(
            Request(operation, key, local, plan, write=True, trace=trace, after=after)
        )

    def push_slot(
        self,
        operation: str,
        key: CacheKeyByIdAndIndex,
        cache: Cache,
        slot: int,
        size: int,
        layers: Layers,
        trace: RequestTrace | None = None,
        after: Awaited | None = None,
    ) -> None:
        """See CacheManager.push_cache."""
        local = self._registry.find(operation, cache)
        check_size(operation, size)
        layout = local_slots(operation, local, slot, "src_batch_index")
        check_same_layers(operation, layers)

        def plan(found: Resolved) -> Plan:
            remote_layout = remote_slots(operation, found, key)
            num_bytes = slot_size(operation, size, layout, remote_layout)
            src, dst = tensor_ranges(operation, layers, layout, remote_layout)
            return plan_slots(layout, slot, src, remote_layout, found.slot, dst, num_bytes)

        self._attempts.run(
            Request(operation, key, local, plan, write=True, trace=trace, after=after)
        )

    def push_planned(
        self,
        operation: str,
        key: AnyKey,
        local: LocalCache,
        plan: MakePlan,
        trace: RequestTrace | None,
    ) -> None:
        """Push by a plan of the caller's (layer-wise transfers)."""
        self._attempts.run(Request(operation, key, local, plan, write=True, trace=trace))

    def push_raw(
        self,
        operation: str,
        cluster_id: int,
        local: LocalCache,
        plan: Plan,
        trace: RequestTrace | None,
    ) -> None:
        """Push to bare addresses of the peer, which checks them against its accessible regions."""
        key = BlocksCacheKey(cluster_id)
        request = Request(operation, key, local, lambda _: plan, write=True, trace=trace)
        self._attempts.run(request, plan)
