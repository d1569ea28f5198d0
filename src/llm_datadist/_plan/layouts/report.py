"""What a plan costs, and why: the cost model of small pieces.

The costs are in bytes of whole blocks that move in the same time, so that they do not depend on the
speed of the machine. They were measured with `python -m bench layouts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from llm_datadist._plan.layout import Plan
from llm_datadist._plan.layouts.descriptors import contiguous, inner_axes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llm_datadist._plan.layouts.kv_layout import KvLayout
    from llm_datadist._plan.layouts.parts import Part

__all__ = [
    "RankReport",
    "gathering_is_faster",
    "reason_of",
    "share_if_gathered",
    "share_of_full_rate",
]

_GAP_BYTES = 1024
"""Gaps up to this are read as well on the same host (native/host/read.cc)."""
_STRETCH_COST = 1400
"""Of each stretch of the source on the same host: the kernel pins its pages."""
_PIECE_COST = 250
"""Of each piece on the same host."""
_LANE_REMOTE_COST = 340
"""Of each stretch of the peer's memory over a lane: its descriptor, and a system call's range."""
_LANE_LOCAL_COST = 140
"""Of each stretch of local memory over a lane: a range of a system call."""

_GATHERED_COST = 0.5
"""Of each byte that the owner's threads gather: it is copied twice, but once from a cache."""
_GATHERED_PIECE_COST = 50
"""Of each piece that they gather: its descriptor."""
_GATHERED_STRETCH_COST = 250
"""Of each stretch of the source that they gather: its memory must come from outside the caches."""
_LEAST_GATHERED = 64 * 1024
"""Bytes that take longer to read in pieces than an answer on a lane takes."""
_LONGEST_GATHERED = 4096
"""Mean bytes of a piece from which on gathering never pays."""
_JUDGED_PIECES = 1 << 15
"""Pieces of a plan that are looked at to choose how they move."""
_DIRECT_THREADS, _GATHERING_THREADS = 8, 4
"""Threads of both processes that work on one transfer, at most."""


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
        way: "direct" (each process reads the other's memory in pieces), "gathered" (the owner's
            threads gather the pieces, which then are read as one) or "lanes".
        why: Why it is that way, with the rates that were expected.
    """

    rank: int
    cluster_id: int
    backend: str
    parts: tuple[Part, ...]
    total_bytes: int
    num_pieces: int
    expected_rate: float
    reason: str
    way: str
    why: str

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
        cost = _LANE_REMOTE_COST * _stretches(plan.remote, plan.length)
        cost += _LANE_LOCAL_COST * _stretches(plan.local, plan.length)
        return plan.total_bytes / (plan.total_bytes + cost)
    gaps = _gaps(plan.local if write else plan.remote, plan.length)
    joined = gaps[gaps <= np.uint64(_GAP_BYTES)]
    stretches = pieces - len(joined)
    cost = int(joined.sum()) + _STRETCH_COST * stretches + _PIECE_COST * pieces
    return plan.total_bytes / (plan.total_bytes + cost)


def share_if_gathered(plan: Plan) -> float:
    """Estimate the same for a read on the same host whose pieces the owner's threads gather.

    Args:
        plan: The descriptors, ordered by source.
    """
    pieces = len(plan.length)
    if not pieces:
        return 1.0
    cost = (
        _GATHERED_COST * plan.total_bytes
        + _GATHERED_PIECE_COST * pieces
        + _GATHERED_STRETCH_COST * _stretches(plan.remote, plan.length)
        + _PIECE_COST * _stretches(plan.local, plan.length)
    )
    return plan.total_bytes / (plan.total_bytes + cost)


def gathering_is_faster(plan: Plan, cores: int) -> bool:
    """Whether a read on the same host should have the owner's threads gather its pieces.

    Args:
        plan: The descriptors, ordered by source.
        cores: Processors that both processes can use.
    """
    pieces, total_bytes = len(plan.length), plan.total_bytes
    if total_bytes < _LEAST_GATHERED or total_bytes > pieces * _LONGEST_GATHERED:
        return False
    first = _first_pieces(plan)
    direct = share_of_full_rate(first, write=False, over_lanes=False) * min(cores, _DIRECT_THREADS)
    return share_if_gathered(first) * min(cores, _GATHERING_THREADS) > direct


def _first_pieces(plan: Plan) -> Plan:
    """Return a part of a long plan, which stands for all of it: a plan repeats for each tensor."""
    if len(plan.length) <= _JUDGED_PIECES:
        return plan
    return Plan.of(*plan.rows[:, :_JUDGED_PIECES])


def _stretches(begin: NDArray[np.uint64], length: NDArray[np.uint64]) -> int:
    """Return how many pieces do not begin where the one before ends."""
    return 1 + int(np.count_nonzero(_gaps(begin, length)))


def _gaps(begin: NDArray[np.uint64], length: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the bytes between neighbors; huge if the next one is before."""
    return begin[1:] - (begin[:-1] + length[:-1])
