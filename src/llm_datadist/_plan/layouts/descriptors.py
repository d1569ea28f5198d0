"""Descriptors of one part: from the rows of two layouts to merged arrays.

Tokens are divided where a block of either side ends. Such a *run* of tokens lies in one block on
both sides, so that its rows form a small grid: of token and head, and of plane and layer if these
lie inside the tensors of both sides. Axes along which the rows are contiguous on both sides become
part of the piece; the others are expanded with numpy. Runs of equal length share one grid; there
are few lengths, as block sizes repeat. Layers and planes with tensors of their own repeat the
result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from llm_datadist._errors import invalid
from llm_datadist._plan.descriptors import expand
from llm_datadist._plan.layout import NO_PLAN, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llm_datadist._plan.layouts.kv_layout import KvLayout
    from llm_datadist._plan.layouts.parts import Part
    from llm_datadist._plan.layouts.placed import PlacedLayout, Tokens

    U64: TypeAlias = NDArray[np.uint64]
    Blocks: TypeAlias = NDArray[np.int64]

__all__ = [
    "MAX_DESCRIPTORS",
    "NO_PLAN",
    "Axis",
    "TensorPlan",
    "contiguous",
    "expanded",
    "inner_axes",
    "plan_part",
]

MAX_DESCRIPTORS = 1 << 25
"""Of one part: 768 MiB of arrays."""


class _Runs(NamedTuple):
    """Runs of tokens (of blocks, for an opaque interior): offsets in a tensor, and lengths."""

    src: U64
    dst: U64
    tokens: Blocks


class Axis(NamedTuple):
    """An axis inside the tensors of both sides.

    Attributes:
        name: "token", "head", "plane" or "layer".
        size: Indices that move.
        src_stride, dst_stride: Bytes from an index to the next one.
    """

    name: str
    size: int
    src_stride: int
    dst_stride: int


class _Pieces(NamedTuple):
    src: U64
    dst: U64
    length: U64


class TensorPlan(NamedTuple):
    """Descriptors of one tensor, and the tensors for which they repeat.

    Attributes:
        local_addrs, remote_addrs: Address of each tensor (of each layer and plane).
        local, remote: Offsets of the descriptors.
        length: Their lengths.
    """

    local_addrs: U64
    remote_addrs: U64
    local: U64
    remote: U64
    length: U64


def expanded(plans: Sequence[TensorPlan]) -> list[Plan]:
    """Return the plans with all of their tensors.

    The arrays of all are one block of memory, which the allocator keeps for the next call; the
    pages of several would be given back to the system and faulted in again.
    """
    sizes = [3 * len(plan.local_addrs) * len(plan.length) for plan in plans]
    memory = np.empty(sum(sizes), np.uint64)
    made: list[Plan] = []
    end = 0
    for plan, size in zip(plans, sizes, strict=True):
        out = memory[end : end + size].reshape(3, len(plan.local_addrs), len(plan.length))
        total_bytes = int(plan.length.sum()) * len(plan.local_addrs)
        made.append(expand(*plan, total_bytes, out) if size else NO_PLAN)
        end += size
    return made


def plan_part(
    operation: str,
    part: Part,
    src: PlacedLayout,
    src_blocks: Blocks,
    dst: PlacedLayout,
    dst_blocks: Blocks,
    tokens: Tokens,
    *,
    push: bool = False,
) -> TensorPlan:
    """Plan the rows of one part.

    Args:
        operation: The call, for the text.
        part: Layers and heads, which both sides hold.
        src: The source; its layout matches the destination's, with rows of equal size.
        src_blocks: Its blocks, int64, in range, enough for the tokens.
        dst: The destination.
        dst_blocks: Its blocks, each once.
        tokens: Which tokens of the lists, at least one.
        push: The source is the local side.

    Returns:
        Merged descriptors, by address at the source (at the destination, if a source block is
        listed twice).
    Raises:
        LLMException: LLM_PARAM_INVALID: offsets inside the blocks of an opaque interior, or more
            than MAX_DESCRIPTORS descriptors.
    """
    runs = _runs(operation, src.layout, src_blocks, dst.layout, dst_blocks, tokens)
    planes_apart, layers_apart = _apart_axes(src.layout, dst.layout)
    src_bases, dst_bases = (
        side.bases(part.layers, part.heads.start, planes=planes_apart, each_layer=layers_apart)
        for side in (src, dst)
    )
    by_length = _by_length(operation, runs, src.layout, dst.layout, part, len(src_bases))
    pieces = _merged(_in_order(_joined(by_length)))
    if push:
        return TensorPlan(src_bases, dst_bases, *pieces)
    return TensorPlan(dst_bases, src_bases, pieces.dst, pieces.src, pieces.length)


def _runs(
    operation: str,
    src: KvLayout,
    src_blocks: Blocks,
    dst: KvLayout,
    dst_blocks: Blocks,
    tokens: Tokens,
) -> _Runs:
    """Divide the tokens where a block of either side ends, and return where each run begins."""
    if src.interior != "rows":
        return _block_runs(operation, src, src_blocks, dst, dst_blocks, tokens)
    src_ends, dst_ends = (
        np.arange(block_tokens - offset % block_tokens, tokens.num_tokens, block_tokens)
        for block_tokens, offset in (
            (src.block_tokens, tokens.src_offset),
            (dst.block_tokens, tokens.dst_offset),
        )
    )
    same = np.array_equal(src_ends, dst_ends)
    ends = src_ends if same else np.union1d(src_ends, dst_ends)
    starts = np.concatenate((np.zeros(1, np.int64), ends))
    lengths = np.diff(starts, append=tokens.num_tokens)
    offsets = []
    for layout, blocks, offset in (
        (src, src_blocks, tokens.src_offset),
        (dst, dst_blocks, tokens.dst_offset),
    ):
        place, token = np.divmod(starts + offset, layout.block_tokens)
        strides = layout.strides
        offsets.append((blocks[place] * strides.block + token * strides.token).astype(np.uint64))
    return _Runs(offsets[0], offsets[1], lengths)


def _block_runs(
    operation: str,
    src: KvLayout,
    src_blocks: Blocks,
    dst: KvLayout,
    dst_blocks: Blocks,
    tokens: Tokens,
) -> _Runs:
    """Return runs of one whole block each: tokens of an opaque interior cannot be told apart."""
    block_tokens = src.block_tokens
    for side, offset in (("src", tokens.src_offset), ("dst", tokens.dst_offset)):
        if offset % block_tokens:
            raise invalid(
                operation,
                f"{side}_offset is {offset}, a block of {src.interior} has {block_tokens} tokens",
                "move such caches by whole blocks",
            )
    count = -(-tokens.num_tokens // block_tokens)
    offsets = []
    for layout, blocks, offset in (
        (src, src_blocks, tokens.src_offset),
        (dst, dst_blocks, tokens.dst_offset),
    ):
        first = offset // block_tokens
        moved = blocks[first : first + count]
        offsets.append(moved.astype(np.uint64) * np.uint64(layout.strides.block))
    return _Runs(offsets[0], offsets[1], np.ones(count, np.int64))


def _by_length(
    operation: str, runs: _Runs, src: KvLayout, dst: KvLayout, part: Part, num_bases: int
) -> list[_Pieces]:
    """Return the pieces of the runs of each length."""
    made: list[_Pieces] = []
    count = 0
    shortest, longest = int(runs.tokens.min()), int(runs.tokens.max())
    lengths = [shortest] if shortest == longest else np.unique(runs.tokens).tolist()
    for tokens in lengths:
        piece_bytes, left = contiguous(src.row_bytes, inner_axes(src, dst, part, tokens))
        chosen = slice(None) if len(lengths) == 1 else runs.tokens == tokens
        src_starts, dst_starts = runs.src[chosen], runs.dst[chosen]
        grid_size = int(np.prod([axis.size for axis in left], dtype=np.int64))
        count += len(src_starts) * grid_size * num_bases
        if count > MAX_DESCRIPTORS:
            raise invalid(
                operation,
                f"the transfer has more than {MAX_DESCRIPTORS} pieces, of {piece_bytes} bytes each",
                "move fewer tokens or layers at once, or use layouts with larger pieces",
            )
        src_grid, dst_grid = _grid(left)
        made.append(
            _Pieces(
                np.add.outer(src_starts, src_grid).ravel(),
                np.add.outer(dst_starts, dst_grid).ravel(),
                np.full(len(src_starts) * grid_size, piece_bytes, np.uint64),
            )
        )
    return made


def inner_axes(src: KvLayout, dst: KvLayout, part: Part, tokens: int) -> list[Axis]:
    """Return the axes of a run of tokens that lie inside the tensors of both sides."""
    planes_apart, layers_apart = _apart_axes(src, dst)
    axes = [
        Axis("token", tokens, src.strides.token, dst.strides.token),
        Axis("head", len(part.heads), src.strides.head, dst.strides.head),
    ]
    if not planes_apart:
        axes.append(Axis("plane", src.planes, src.strides.plane, dst.strides.plane))
    if not layers_apart:
        axes.append(Axis("layer", len(part.layers), src.strides.layer, dst.strides.layer))
    return axes


def _apart_axes(src: KvLayout, dst: KvLayout) -> tuple[bool, bool]:
    """Return whether planes, and layers, have tensors of their own on at least one side."""
    return (
        not (src.strides.plane and dst.strides.plane),
        not (src.strides.layer and dst.strides.layer),
    )


def contiguous(row_bytes: int, axes: list[Axis]) -> tuple[int, list[Axis]]:
    """Return the bytes that are contiguous on both sides, and the axes that are left."""
    left = [axis for axis in axes if axis.size > 1]
    piece_bytes = row_bytes
    while True:
        for axis in left:
            if axis.src_stride == axis.dst_stride == piece_bytes:
                piece_bytes *= axis.size
                left.remove(axis)
                break
        else:
            return piece_bytes, left


def _grid(axes: list[Axis]) -> tuple[U64, U64]:
    """Return the offsets of all indices of the axes on both sides, ascending at the source."""
    src_grid = dst_grid = np.zeros(1, np.uint64)
    for axis in sorted(axes, key=lambda axis: -axis.src_stride):
        steps = np.arange(axis.size, dtype=np.uint64)
        src_grid = np.add.outer(src_grid, steps * np.uint64(axis.src_stride)).ravel()
        dst_grid = np.add.outer(dst_grid, steps * np.uint64(axis.dst_stride)).ravel()
    return src_grid, dst_grid


def _joined(made: list[_Pieces]) -> _Pieces:
    if len(made) == 1:
        return made[0]
    return _Pieces(*(np.concatenate(column) for column in zip(*made, strict=True)))


def _in_order(pieces: _Pieces) -> _Pieces:
    """Sort pieces by a side without repetition, so that those that touch are neighbors.

    The source is preferred: readers of its memory then find long stretches (native/host).
    """
    src, dst, length = pieces
    if not _apart(src, length):
        order = src.argsort(kind="stable")
        if not _apart(src[order], length[order]):  # a source block is listed twice
            order = dst.argsort(kind="stable")
        return _Pieces(src[order], dst[order], length[order])
    return pieces


def _apart(begin: U64, length: U64) -> bool:
    """Return whether each piece begins behind the end of the one before."""
    return bool((begin[1:] >= begin[:-1] + length[:-1]).all())


def _merged(pieces: _Pieces) -> _Pieces:
    """Join neighbors that touch on both sides."""
    src, dst, length = pieces
    touch = (src[1:] == src[:-1] + length[:-1]) & (dst[1:] == dst[:-1] + length[:-1])
    if not touch.any():
        return pieces
    starts = np.flatnonzero(np.concatenate(([True], ~touch)))
    return _Pieces(src[starts], dst[starts], np.add.reduceat(length, starts))
