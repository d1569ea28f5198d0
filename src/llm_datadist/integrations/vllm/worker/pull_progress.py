"""A load as a list of pulls in the order of the tokens, so that a failure leaves a whole prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist import LLMException
    from llm_datadist.integrations.vllm.kv_layout import KVLayout
    from llm_datadist.integrations.vllm.step_orders import Load

__all__ = ["PullProgress", "num_before_faults"]

PIECE_BYTES = 256 << 20
"""Bytes of one pull; between two a load sees that it was abandoned, and renews its lease."""


class PullProgress:
    """What is left of a load.

    Attributes:
        order: The load.
        pieces: (part of the layout, the producer's blocks, own blocks) of each pull to come.
        total_bytes: Bytes of the whole load.
    """

    def __init__(self, order: Load, layout: KVLayout) -> None:
        self.order = order
        self.pieces: list[tuple[int, list[int], list[int]]] = []
        self.total_bytes = 0
        for group, (src_blocks, dst_blocks) in enumerate(
            zip(order.src_blocks, order.dst_blocks, strict=True)
        ):
            parts = [
                (index, len(part.addrs) * part.block_bytes)
                for index, part in enumerate(layout.parts)
                if part.group == group
            ]
            bytes_per_block = sum(num_bytes for _, num_bytes in parts)
            step = max(1, PIECE_BYTES // bytes_per_block)
            self.total_bytes += bytes_per_block * len(dst_blocks)
            for start in range(0, len(dst_blocks), step):
                chunk = slice(start, start + step)
                self.pieces += [(index, src_blocks[chunk], dst_blocks[chunk]) for index, _ in parts]

    def blocks(self) -> set[int]:
        """Own blocks that are not complete."""
        return {block for _, _, dst_blocks in self.pieces for block in dst_blocks}

    def split_first(self, num_blocks: int) -> None:
        """Make two of the first piece, the first of them of `num_blocks` blocks."""
        part, src_blocks, dst_blocks = self.pieces[0]
        self.pieces[:1] = [
            (part, src_blocks[:num_blocks], dst_blocks[:num_blocks]),
            (part, src_blocks[num_blocks:], dst_blocks[num_blocks:]),
        ]


def num_before_faults(
    src_blocks: list[int], dst_blocks: list[int], src_cluster_id: int, error: LLMException
) -> int:
    """How many of a failed pull's blocks come before the first with a fault; 0 if unknown."""
    places = []
    for fault in error.faults:
        blocks = src_blocks if fault.cluster_id == src_cluster_id else dst_blocks
        if fault.block not in blocks:
            return 0
        places.append(blocks.index(fault.block))
    return min(places, default=0)
