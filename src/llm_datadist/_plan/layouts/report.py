"""What a plan costs, and why: the cost model of small pieces.

The costs are in bytes of whole blocks that move in the same time, so that they do not depend on the
speed of the machine. They were measured with `python -m bench layouts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from llm_datadist._plan.layouts.descriptors import contiguous, inner_axes

if TYPE_CHECKING:
    from llm_datadist._plan.layout import Plan
    from llm_datadist._plan.layouts.kv_layout import KvLayout
    from llm_datadist._plan.layouts.parts import Part

__all__ = ["RankReport", "reason_of", "share_of_full_rate"]

_GAP_BYTES = 1024
"""Gaps up to this are read as well on the same host (native/host/read.cc)."""
_STRETCH_COST = 1400
"""Of each stretch of the source on the same host: the kernel pins its pages."""
_PIECE_COST = 250
"""Of each piece on the same host."""
_LANE_PIECE_COST = 770
"""Of each piece over a lane: its descriptor, and a range of the gathering and scattering calls."""


@final
@dataclass(frozen=True, slots=True)
class RankReport:
    """What `pull_resharded` or `push_resharded` does with one rank *(extension)*.

    Attributes:
        rank: Index of the rank in the call.
        cluster_id: The peer.
        backend: The data path of its link.
        parts: Layers and heads that move, numbered over the whole model.
        total_bytes: Bytes that move.
        num_pieces: Descriptors.
        expected_rate: Estimate of the rate, as a part of that of whole large blocks over this path.
        reason: Why the pieces are as long as they are, with the strides that end them.
    """

    rank: int
    cluster_id: int
    backend: str
    parts: tuple[Part, ...]
    total_bytes: int
    num_pieces: int
    expected_rate: float
    reason: str

    @property
    def piece_bytes(self) -> int:
        """Mean bytes of a piece."""
        return self.total_bytes // max(self.num_pieces, 1)


def reason_of(src: KvLayout, dst: KvLayout, part: Part) -> str:
    """Return what ends a piece between two layouts with rows of equal size.

    Args:
        src: Layout of the source.
        dst: Layout of the destination.
        part: Layers and heads that move.
    """
    tokens = 1 if src.interior != "rows" else min(src.block_tokens, dst.block_tokens)
    piece_bytes, left = contiguous(src.row_bytes, inner_axes(src, dst, part, tokens))
    whole = f"{piece_bytes:,} bytes are contiguous on both sides"
    if left:
        axis = min(left, key=lambda axis: axis.src_stride)
        return (
            f"{whole}; along {axis.name} the source goes on after {axis.src_stride:,} bytes, the "
            f"destination after {axis.dst_stride:,}"
        )
    if src.block_tokens != dst.block_tokens:
        return f"{whole}: the tokens of the smaller block"
    return f"{whole}: all that a block holds of this"


def share_of_full_rate(plan: Plan, *, write: bool, over_lanes: bool) -> float:
    """Estimate the rate of a plan as a part of the rate of whole large blocks.

    Args:
        plan: The descriptors, ordered by source.
        write: The local side is the source.
        over_lanes: Whether the bytes go through sockets.
    """
    pieces = len(plan.length)
    if not pieces:
        return 1.0
    if over_lanes:
        return plan.total_bytes / (plan.total_bytes + _LANE_PIECE_COST * pieces)
    begin = plan.local if write else plan.remote
    gaps = begin[1:] - (begin[:-1] + plan.length[:-1])  # huge if the next one is before
    joined = gaps[gaps <= np.uint64(_GAP_BYTES)]
    stretches = pieces - len(joined)
    cost = int(joined.sum()) + _STRETCH_COST * stretches + _PIECE_COST * pieces
    return plan.total_bytes / (plan.total_bytes + cost)
