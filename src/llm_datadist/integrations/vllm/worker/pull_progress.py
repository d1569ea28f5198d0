"""Progress of one load: its pulls in the order of the tokens, so that a failure leaves a prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_datadist import LLMException
    from llm_datadist.integrations.vllm.kv_layout import KVLayout
    from llm_datadist.integrations.vllm.step_orders import Load

PULL_BYTES = 256 << 20
"""Size of one pull. Between two, a load checks whether it was abandoned, and renews its lease."""


class PullProgress:
    """The pulls that are left of a load.

    Attributes:
        order: The load.
        pulls: (part of the layout, the producer's blocks, local blocks) of each.
        total_bytes: Size of the whole load.
    """

    def __init__(self, order: Load, layout: KVLayout) -> None:
        self.order = order
        self.pulls: list[tuple[int, list[int], list[int]]] = []
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
            step = max(1, PULL_BYTES // bytes_per_block)
            self.total_bytes += bytes_per_block * len(dst_blocks)
            for start in range(0, len(dst_blocks), step):
                chunk = slice(start, start + step)
                self.pulls += [(index, src_blocks[chunk], dst_blocks[chunk]) for index, _ in parts]

    def missing_blocks(self) -> set[int]:
        """Return the local blocks that are not complete."""
        return {block for _, _, dst_blocks in self.pulls for block in dst_blocks}

    def split_first(self, num_blocks: int) -> None:
        """Split the first pull after its first `num_blocks` blocks."""
        part, src_blocks, dst_blocks = self.pulls[0]
        self.pulls[:1] = [
            (part, src_blocks[:num_blocks], dst_blocks[:num_blocks]),
            (part, src_blocks[num_blocks:], dst_blocks[num_blocks:]),
        ]


def num_before_faults(
    src_blocks: list[int], dst_blocks: list[int], src_cluster_id: int, error: LLMException
) -> int:
    """Return how many blocks of a failed pull precede the first memory fault; 0 if unknown."""
    places = []
    for fault in error.faults:
        blocks = src_blocks if fault.cluster_id == src_cluster_id else dst_blocks
        if fault.block not in blocks:
            return 0
        places.append(blocks.index(fault.block))
    return min(places, default=0)
