"""The four transfer calls of CacheManager: each becomes a `Request` that `Attempts` carries out."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import msgspec

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
    Layers,
    Layout,
    checked_blocks,
    plan_blocks,
    plan_slot_to_blocks,
    plan_slots,
    tensor_ranges,
)
from llm_datadist._plan.indices import Blocks
from llm_datadist._types import AnyKey, BlocksCacheKey
from llm_datadist._types.block_list import PULL_NAMES

if TYPE_CHECKING:
    from llm_datadist._engine.instance import Instance
    from llm_datadist._engine.transfer.attempt import Attempts, MakePlan
    from llm_datadist._engine.transfer.order import Awaited
    from llm_datadist._plan import Plan
    from llm_datadist._registry import LocalCache, Resolved
    from llm_datadist._tracing import RequestTrace
    from llm_datadist._types import BlockList, Cache, CacheKeyByIdAndIndex
    from llm_datadist._types.block_list import PullNames

__all__ = ["Transfers"]


class _Blocks(msgspec.Struct, gc=False):
    """Blocks that a call moves; an object costs less than a function that keeps as many names.

    Attributes:
        operation, key, layers: Of the call.
        layout: The local cache.
        local_ids, remote_ids: Its blocks and the peer's.
        name: The argument of the peer's blocks.
        push: The local side is the source.
    """

    operation: str
    key: AnyKey
    layers: Layers
    layout: Layout
    local_ids: Blocks
    remote_ids: Blocks
    name: str
    push: bool = False

    def plan(self, found: Resolved) -> Plan:
        operation, layers, local = self.operation, self.layers, self.layout
        remote_ids = self.remote_ids
        remote = remote_blocks(operation, found, self.key, local, remote_ids, self.name)
        if self.push:
            local_tensors, remote_tensors = tensor_ranges(operation, layers, local, remote)
        else:
            remote_tensors, local_tensors = tensor_ranges(operation, layers, remote, local)
        return plan_blocks(
            local, self.local_ids, local_tensors, remote, remote_ids, remote_tensors, push=self.push
        )


class _Pieces(msgspec.Struct, gc=False):
    """Consecutive pieces of a slot that a pull moves to the blocks `local_ids`."""

    operation: str
    key: AnyKey
    layers: Layers
    layout: Layout
    local_ids: Blocks
    name: str

    def plan(self, found: Resolved) -> Plan:
        local, remote = self.layout, remote_slots(self.operation, found, self.key)
        src, dst = tensor_ranges(self.operation, self.layers, remote, local)
        check_pieces(self.operation, remote, local, len(self.local_ids), self.name)
        return plan_slot_to_blocks(remote, found.slot, src, local, self.local_ids, dst)


class _Slot(msgspec.Struct, gc=False):
    """A slot that a call moves.

    Attributes:
        operation, key, layers: Of the call.
        layout: The local cache.
        slot: Its slot.
        size: Bytes per tensor; -1 for the rest of the local slot.
        offset, remote_offset: Where the bytes begin in the slot of either side.
        push: The local side is the source.
    """

    operation: str
    key: AnyKey
    layers: Layers
    layout: Layout
    slot: int
    size: int
    offset: int = 0
    remote_offset: int = 0
    push: bool = False

    def plan(self, found: Resolved) -> Plan:
        operation, layers, local = self.operation, self.layers, self.layout
        offset, remote_offset = self.offset, self.remote_offset
        remote = remote_slots(operation, found, self.key)
        num_bytes = slot_size(operation, self.size, local, remote, offset, remote_offset)
        if self.push:
            local_tensors, remote_tensors = tensor_ranges(operation, layers, local, remote)
        else:
            remote_tensors, local_tensors = tensor_ranges(operation, layers, remote, local)
        return plan_slots(
            local, self.slot, local_tensors, remote, found.slot, remote_tensors, num_bytes,
            local_offset_bytes=offset, remote_offset_bytes=remote_offset,
        )  # fmt: skip


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
        plan = _Slot(operation, key, layers, layout, slot, size, dst_offset, src_offset).plan
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
            name = names.src_blocks
            plan = _Blocks(operation, key, layers, layout, local_ids, remote_ids, name).plan
        elif len(remote_ids):
            raise invalid(
                operation,
                f"{names.src_blocks} has {len(remote_ids)} entries with a {type(key).__name__}",
                f"leave {names.src_blocks} empty: the slot is cut into consecutive pieces",
            )
        else:
            plan = _Pieces(operation, key, layers, layout, local_ids, names.dst_blocks).plan
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
        name = "dst_blocks"
        plan = _Blocks(operation, key, layers, layout, local_ids, remote_ids, name, True).plan
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
        plan = _Slot(operation, key, layers, layout, slot, size, push=True).plan
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
