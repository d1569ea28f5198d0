"""Planning: layouts and block lists become coalesced descriptors.

A transfer is described by `(local address, remote address, length)` triples. They are made with
numpy from the layouts of the two caches, so no Python code runs per descriptor; only a handful of
descriptors (a one-block pull) takes a path in plain Python, which is quicker for them.

Descriptors come in ascending order of tensor, then of source block (of destination block where a
source is listed twice), and two neighbors in that order that touch on both sides are always one:
also where one tensor ends at the address at which the next begins, and whatever the order in which
the caller listed the blocks.

`layout` says where caches lie, `indices` checks what callers give, `descriptors` makes the plans.
Every function is pure. Those of `descriptors` expect indices that are known to be in range.

Strided layouts (heads of another tensor-parallel size, other block sizes) will fit beside `Plan`
as rows of (address, stride, count, length) that expand into its three rows; nothing below the
planner needs to know.
"""

from __future__ import annotations

from llm_datadist._plan.descriptors import (
    plan_block_copies,
    plan_blocks,
    plan_slot_to_blocks,
    plan_slots,
    slot_pieces,
)
from llm_datadist._plan.indices import (
    Layers,
    blocks_array,
    checked_blocks,
    copy_pairs,
    tensor_ranges,
)
from llm_datadist._plan.layout import NO_PLAN, Layout, Piece, Plan
from llm_datadist._plan.overlap import first_overlap
from llm_datadist._plan.segments import cut, cut_between, segments

__all__ = [
    "NO_PLAN",
    "Layers",
    "Layout",
    "Piece",
    "Plan",
    "blocks_array",
    "checked_blocks",
    "copy_pairs",
    "cut",
    "cut_between",
    "first_overlap",
    "plan_block_copies",
    "plan_blocks",
    "plan_slot_to_blocks",
    "plan_slots",
    "segments",
    "slot_pieces",
    "tensor_ranges",
]
