"""Plans from layouts and checked indices."""

from __future__ import annotations

import operator
import struct
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from llm_datadist._plan.indices import FEW
from llm_datadist._plan.layout import Layout, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    U64: TypeAlias = NDArray[np.uint64]
    from llm_datadist._plan.indices import Blocks, BlocksArray

_U64 = np.dtype(np.uint64)
_I64 = np.dtype(np.int64)

_PACKED = [struct.Struct(f"={3 * count}Q").pack for count in range(FEW + 1)]
"""For each number of descriptors: makes the words of a plan."""


def plan_blocks(
    local: Layout,
    local_blocks: Blocks,
    local_tensors: range,
    remote: Layout,
    remote_blocks: Blocks,
    remote_tensors: range,
    *,
    push: bool = False,
) -> Plan:
    """Plan block `remote_blocks[i]` against `local_blocks[i]`, for every tensor of the ranges.

    Args:
        local: Local blocks cache; its `unit_bytes` must equal the remote one's.
        local_blocks: Local block indices, in range: a tuple, or an int64 array.
        local_tensors: Local tensors, step 1, as many as `remote_tensors`.
        remote: Remote blocks cache (the source, for a copy within the process).
        remote_blocks: Remote block indices, as many as `local_blocks`.
        remote_tensors: Remote tensors.
        push: The local side is the source. Decides only the order of the descriptors.
    """
    return _plan_units(
        local, local_blocks, local_tensors, 0,
        remote, remote_blocks, remote_tensors, 0,
        local.unit_bytes, push=push,
    )  # fmt: skip


def plan_slots(
    local: Layout,
    local_slot: int,
    local_tensors: range,
    remote: Layout,
    remote_slot: int,
    remote_tensors: range,
    size_bytes: int,
    *,
    local_offset_bytes: int = 0,
    remote_offset_bytes: int = 0,
) -> Plan:
    """Plan `size_bytes` bytes of a slot against a slot, for every tensor of the ranges.

    Args:
        local: Local contiguous cache (the destination, for a copy within the process).
        local_slot: Local slot.
        local_tensors: Local tensors, step 1, as many as `remote_tensors`.
        remote: Remote contiguous cache, or `Layout.raw` addresses with slot 0.
        remote_slot: Remote slot.
        remote_tensors: Remote tensors.
        size_bytes: Bytes per tensor; with the offsets they must fit in the slots of both sides.
        local_offset_bytes: Where the bytes begin, counted from the start of the local slot.
        remote_offset_bytes: The same in the remote slot.
    """
    local_offset = local_slot * local.unit_bytes + local_offset_bytes
    remote_offset = remote_slot * remote.unit_bytes + remote_offset_bytes
    if len(local_tensors) <= FEW:
        pair = [(local_offset, remote_offset)]
        return _plan_few(local, local_tensors, remote, remote_tensors, pair, size_bytes)
    return expand(
        local.addrs[local_tensors.start : local_tensors.stop],
        remote.addrs[remote_tensors.start : remote_tensors.stop],
        np.array((local_offset,), _U64),
        np.array((remote_offset,), _U64),
        np.array((size_bytes,), _U64),
        size_bytes * len(local_tensors),
    )


def plan_slot_to_blocks(
    slots: Layout,
    slot: int,
    slot_tensors: range,
    blocks: Layout,
    block_indices: Blocks,
    block_tensors: range,
    *,
    push: bool = False,
) -> Plan:
    """Plan consecutive pieces of a slot onto blocks: piece i lands in `block_indices[i]`.

    A piece has the bytes of one block; `slot_pieces` says how many whole ones a slot has, and
    there must be at least as many as blocks are given.

    Args:
        slots: Contiguous cache, the source: the remote side of a pull, the local one of a push.
        slot: Slot of it.
        slot_tensors: Tensors of it, step 1, as many as `block_tensors`.
        blocks: Blocks cache, the destination.
        block_indices: Destination blocks, in range, as for `plan_blocks`.
        block_tensors: Tensors of the destination.
        push: The blocks are the remote side.
    """
    count = len(block_indices)
    pieces = np.arange(count, dtype=_I64) if count > FEW else tuple(range(count))
    shift = slot * slots.unit_bytes
    if push:
        return _plan_units(
            slots, pieces, slot_tensors, shift,
            blocks, block_indices, block_tensors, 0,
            blocks.unit_bytes, push=True,
        )  # fmt: skip
    return _plan_units(
        blocks, block_indices, block_tensors, 0,
        slots, pieces, slot_tensors, shift,
        blocks.unit_bytes, push=False,
    )  # fmt: skip


def slot_pieces(slots: Layout, block_bytes: int) -> int:
    """Whole pieces of `block_bytes` bytes into which one slot can be cut."""
    return slots.unit_bytes // block_bytes


def plan_block_copies(cache: Layout, sources: BlocksArray, destinations: BlocksArray) -> list[Plan]:
    """Plan copies within one blocks cache, as if made one after the other.

    The descriptors of one plan may run in any order; the plans must run in the order given. There
    is more than one only where a block is both read and written, or written twice.

    Args:
        cache: Blocks cache.
        sources: Block to read, per copy.
        destinations: Block to write, per copy, as many as `sources`.
    """
    moves = sources != destinations
    if not moves.all():
        sources, destinations = sources[moves], destinations[moves]
    tensors = cache.all_tensors
    plans: list[Plan] = []
    for first, last in _independent_spans(sources.tolist(), destinations.tolist()):
        dst, src = destinations[first:last], sources[first:last]
        plans.append(plan_blocks(cache, dst, tensors, cache, src, tensors))
    return plans


def _plan_units(
    local: Layout,
    local_blocks: Blocks,
    local_tensors: range,
    local_shift: int,
    remote: Layout,
    remote_blocks: Blocks,
    remote_tensors: range,
    remote_shift: int,
    unit_bytes: int,
    *,
    push: bool,
) -> Plan:
    """Plan units of `unit_bytes` at index times `unit_bytes` plus the side's shift."""
    count = len(local_blocks)
    if count * len(local_tensors) <= FEW:
        if not isinstance(local_blocks, tuple):
            local_blocks = tuple(local_blocks.tolist())
        if not isinstance(remote_blocks, tuple):
            remote_blocks = tuple(remote_blocks.tolist())
        pairs: list[tuple[int, int]] = []
        for place, local_block in enumerate(local_blocks):
            local_offset = local_shift + local_block * unit_bytes
            pairs.append((local_offset, remote_shift + remote_blocks[place] * unit_bytes))
        if count > 1:
            pairs.sort(key=_few_order(pairs, push=push))
        return _plan_few(local, local_tensors, remote, remote_tensors, pairs, unit_bytes)
    local_array, remote_array = np.asarray(local_blocks, _I64), np.asarray(remote_blocks, _I64)
    local_firsts, remote_firsts, lengths = _runs(local_array, remote_array, push=push)
    unit = np.uint64(unit_bytes)
    return expand(
        local.addrs[local_tensors.start : local_tensors.stop],
        remote.addrs[remote_tensors.start : remote_tensors.stop],
        local_firsts * unit + np.uint64(local_shift),
        remote_firsts * unit + np.uint64(remote_shift),
        lengths * unit,
        count * unit_bytes * len(local_tensors),
    )


def _few_order(pairs: list[tuple[int, int]], *, push: bool) -> Callable[[tuple[int, int]], int]:
    """The order of `_runs`: by source, or by destination where a source is repeated."""
    source = 0 if push else 1
    repeated = len({pair[source] for pair in pairs}) != len(pairs)
    return operator.itemgetter(1 - source if repeated else source)


def _plan_few(
    local: Layout,
    local_tensors: range,
    remote: Layout,
    remote_tensors: range,
    offsets: list[tuple[int, int]],
    length: int,
) -> Plan:
    """Plan pieces of equal length at (local, remote) offsets in every tensor, in plain Python."""
    tensor_shift = remote_tensors.start - local_tensors.start
    if len(offsets) == len(local_tensors) == 1:
        local_offset, remote_offset = offsets[0]
        local_addr = local.starts[local_tensors.start] + local_offset
        remote_addr = remote.starts[remote_tensors.start] + remote_offset
        return Plan(_PACKED[1](local_addr, remote_addr, length), length)
    locals_: list[int] = []
    remotes: list[int] = []
    lengths: list[int] = []
    local_end = remote_end = -1
    for tensor in local_tensors:
        local_start = local.starts[tensor]
        remote_start = remote.starts[tensor + tensor_shift]
        for local_offset, remote_offset in offsets:
            local_addr = local_start + local_offset
            remote_addr = remote_start + remote_offset
            if local_addr == local_end and remote_addr == remote_end:
                lengths[-1] += length
            else:
                locals_.append(local_addr)
                remotes.append(remote_addr)
                lengths.append(length)
            local_end = local_addr + length
            remote_end = remote_addr + length
    words = _PACKED[len(lengths)](*locals_, *remotes, *lengths)
    return Plan(words, len(local_tensors) * len(offsets) * length)


def _runs(local: BlocksArray, remote: BlocksArray, *, push: bool) -> tuple[U64, U64, U64]:
    """Return first local block, first remote block and number of blocks of each maximal run.

    Sorted by a side without repetition, blocks that touch on both sides are neighbors. The source
    is preferred: readers of its memory then find long stretches (native/host).
    """
    if len(local) == 1:
        return local.view(_U64), remote.view(_U64), np.ones(1, _U64)
    source, destination = (local, remote) if push else (remote, local)
    if not (source[1:] > source[:-1]).all():
        order = source.argsort(kind="stable")
        ordered = source[order]
        if (ordered[1:] == ordered[:-1]).any():
            order = destination.argsort(kind="stable")
        local, remote = local[order], remote[order]
    local_step = local[1:] - local[:-1]
    remote_step = remote[1:] - remote[:-1]
    breaks = (local_step != 1) | (remote_step != 1)
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    lengths = np.diff(starts, append=len(local))
    return local[starts].view(_U64), remote[starts].view(_U64), lengths.view(_U64)


def expand(
    local_addrs: U64,
    remote_addrs: U64,
    local_offsets: U64,
    remote_offsets: U64,
    lengths: U64,
    total_bytes: int,
    out: U64 | None = None,
) -> Plan:
    """Repeat the descriptors of one tensor for every tensor, joining tensors that touch.

    Args:
        local_addrs, remote_addrs: Address of each tensor, as many on both sides.
        local_offsets, remote_offsets, lengths: Descriptors of one tensor, offsets from its address.
        total_bytes: Sum of the lengths over all tensors.
        out: Memory for the result, uint64 of shape (3, tensors, descriptors of one tensor).
    """
    num_tensors, num_runs = len(local_addrs), len(lengths)
    # One block of memory: the allocator keeps it for the next plan, where three would be given
    # back to the system and their pages faulted in again.
    planes = np.empty((3, num_tensors, num_runs), _U64) if out is None else out
    np.add.outer(local_addrs, local_offsets, out=planes[0])
    np.add.outer(remote_addrs, remote_offsets, out=planes[1])
    planes[2] = lengths
    ends = planes[:2, :-1, -1] + lengths[-1]
    touch = (planes[:2, 1:, 0] == ends).all(axis=0)
    if touch.any():
        planes = _join_rows(planes, touch)
    return Plan(planes.reshape(-1), total_bytes)


def _join_rows(planes: U64, touch: NDArray[np.bool_]) -> U64:
    """Join the last run of tensor t with the first of t + 1 wherever `touch[t]`.

    Returns:
        The words of a plan, in the memory of `planes` where that is possible.
    """
    num_runs = planes.shape[2]
    flat = planes.reshape(3, -1)
    if num_runs == 1:  # any number of neighbors may become one
        starts = np.flatnonzero(np.concatenate(([True], ~touch)))
        joined = flat[:, starts]
        joined[2] = np.add.reduceat(flat[2], starts)
        return joined
    planes[2, :-1, -1] += np.where(touch, planes[2, 1:, 0], np.uint64(0))
    end = num_runs
    for tensor, drop in enumerate(touch.tolist(), start=1):  # shifts rows: cheaper than a mask
        start = tensor * num_runs + drop
        count = num_runs - drop
        flat[:, end : end + count] = flat[:, start : start + count]
        end += count
    words = planes.reshape(-1)
    for row in (1, 2):
        words[row * end : (row + 1) * end] = flat[row, :end]
    return words[: 3 * end]


def _independent_spans(sources: list[int], destinations: list[int]) -> Iterator[tuple[int, int]]:
    """Cut copies into consecutive spans in which no block that is written occurs again."""
    first = 0
    read: set[int] = set()
    written: set[int] = set()
    for place, (src, dst) in enumerate(zip(sources, destinations, strict=True)):
        if src in written or dst in written or dst in read:
            yield first, place
            first = place
            read.clear()
            written.clear()
        read.add(src)
        written.add(dst)
    if first < len(sources):
        yield first, len(sources)
