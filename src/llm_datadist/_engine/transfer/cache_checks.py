"""Checks of caches and arguments before a transfer is planned; all raise LLM_PARAM_INVALID."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_datadist._errors import invalid
from llm_datadist._plan import Layout, first_overlap, slot_pieces

if TYPE_CHECKING:
    from llm_datadist._plan import Layers, Plan
    from llm_datadist._plan.indices import Blocks
    from llm_datadist._registry import LocalCache, Resolved
    from llm_datadist._types import AnyKey, CacheDesc


def as_slots(operation: str, local: LocalCache) -> Layout:
    """Return a local cache as slots; refuse one whose slots are not contiguous."""
    check_slots_contiguous(operation, local.desc, local.layout)
    return local.layout


def check_slots_contiguous(operation: str, desc: CacheDesc, layout: Layout) -> None:
    """Refuse a cache whose batch is not the outermost dimension."""
    if layout.num_units != 1 or desc.check_batch(operation) == 1:
        return
    raise invalid(
        operation,
        f"batch_dim_index {desc.batch_dim_index} of shape {list(desc.shape)} is not the outermost "
        "dimension, so its slots are not contiguous",
        "put the batch dimension first to address a slot",
    )


def as_blocks(local: LocalCache) -> Layout:
    """Return a local cache as blocks along dimension 0, also if it is a contiguous cache."""
    return local.layout if local.is_blocks else local.layout.divided(local.desc.num_blocks)


def local_slots(operation: str, local: LocalCache, slot: int, name: str) -> Layout:
    """Return a local contiguous cache as slots; `slot` must be in range."""
    if local.is_blocks:
        raise invalid(
            operation,
            f"cache {local.cache_id} is a blocks cache",
            "use a contiguous cache (register_cache, allocate_cache), or the blocks call",
        )
    layout = as_slots(operation, local)
    if slot >= layout.num_units:
        raise invalid(
            operation,
            f"{name} is {slot}, cache {local.cache_id} has {layout.num_units} slots",
            f"give 0 to {layout.num_units - 1}",
        )
    return layout


def local_blocks(operation: str, local: LocalCache, name: str) -> Layout:
    """Return a local blocks cache as blocks."""
    if not local.is_blocks:
        raise invalid(
            operation,
            f"{name} is the contiguous cache {local.cache_id}",
            "use a blocks cache (register_blocks_cache, allocate_blocks_cache)",
        )
    return local.layout


def remote_slots(operation: str, remote: Resolved, key: AnyKey) -> Layout:
    """Return the peer's cache as slots; the key's slot must be in range.

    The id may be that of a blocks cache, whose blocks then count as slots: so a cache whose
    BlocksCacheKey went over to another one stays reachable.
    """
    layout = remote.cache.layout
    check_slots_contiguous(operation, remote.cache.desc, layout)
    if remote.slot >= layout.num_units:
        raise invalid(
            operation,
            f"{key!r}: slot {remote.slot}, the peer's cache has {layout.num_units}",
            f"give batch_index 0 to {layout.num_units - 1}",
            cluster_id=key.cluster_id,
        )
    return layout


def remote_blocks(
    operation: str, remote: Resolved, key: AnyKey, local: Layout, blocks: Blocks, name: str
) -> Layout:
    """Return the peer's cache as blocks, of equal size and with every index in range."""
    layout = remote.cache.layout
    if layout.unit_bytes != local.unit_bytes:
        raise invalid(
            operation,
            f"a block has {local.unit_bytes} bytes locally and {layout.unit_bytes} at the peer",
            "use caches of equal block shape and type",
            cluster_id=key.cluster_id,
        )
    highest = (max(blocks) if blocks else -1) if isinstance(blocks, tuple) else int(blocks.max())
    if highest >= layout.num_units:
        raise invalid(
            operation,
            f"{name} has index {highest}, the peer's cache has {layout.num_units} blocks",
            f"give indices 0 to {layout.num_units - 1}",
            cluster_id=key.cluster_id,
        )
    return layout


def check_size(operation: str, size: int) -> None:
    """Refuse a size that is neither positive nor -1."""
    if size == 0 or size < -1:
        raise invalid(operation, f"size is {size}", "give the bytes per tensor, or -1 for the slot")


def slot_size(
    operation: str,
    size: int,
    local: Layout,
    remote: Layout,
    local_offset: int = 0,
    remote_offset: int = 0,
) -> int:
    """Return the bytes to move per tensor; -1 is the rest of the local slot.

    Both sides must hold them, behind their offsets.
    """
    num_bytes = max(local.unit_bytes - local_offset, 1) if size == -1 else size
    for side, layout, offset in (("local", local, local_offset), ("peer's", remote, remote_offset)):
        if offset + num_bytes > layout.unit_bytes:
            behind = f" behind offset {offset}" if offset else ""
            raise invalid(
                operation,
                f"size is {num_bytes}{behind}, the {side} slot has {layout.unit_bytes} bytes",
                "give at most the bytes of the smaller slot",
            )
    return num_bytes


def check_pieces(operation: str, source: Layout, local: Layout, count: int, name: str) -> None:
    """Refuse more blocks, given as the argument `name`, than a slot of the source has pieces."""
    pieces = slot_pieces(source, local.unit_bytes)
    if count > pieces:
        raise invalid(
            operation,
            f"{name} has {count} entries, the peer's slot of {source.unit_bytes} bytes holds "
            f"{pieces} pieces of {local.unit_bytes} bytes",
            "give at most that many blocks",
        )


def check_equal(
    operation: str,
    src: Blocks,
    dst: Blocks,
    src_name: str = "src_blocks",
    dst_name: str = "dst_blocks",
) -> None:
    """Refuse block lists of unequal length."""
    src_count, dst_count = len(src), len(dst)
    if src_count != dst_count:
        raise invalid(
            operation,
            f"{src_name} has {src_count} entries, {dst_name} {dst_count}",
            "give lists of equal length",
        )


def check_same_layers(operation: str, layers: Layers) -> None:
    """Refuse a push to other layers than those that it sends."""
    src, dst, _ = layers
    if src is not None and dst is not None and src != dst:
        raise invalid(
            operation,
            f"src_layer_range {src} and dst_layer_range {dst} differ",
            "a push sends layers to the same layers of the peer",
        )


def check_apart(operation: str, plan: Plan, *, write: bool) -> None:
    """Refuse a plan within one process that would both read and write a range.

    Args:
        operation: For the text.
        plan: The descriptors; both sides are addresses of this process.
        write: Whether the remote side is the destination.
    """
    overlap = first_overlap(plan)
    if overlap is None:
        return
    (dst, dst_bytes), (src, src_bytes) = reversed(overlap) if write else overlap
    raise invalid(
        operation,
        f"the destination range of {dst_bytes} bytes at {dst:#x} overlaps the source range of "
        f"{src_bytes} bytes at {src:#x}",
        "copy by way of other memory",
    )
