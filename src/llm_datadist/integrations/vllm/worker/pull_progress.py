"""Progress of one load: its pulls in the order of the tokens, so that a failure leaves a prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

    from llm_datadist import LLMException
    from llm_datadist.integrations.vllm.kv_layout import KVLayout
    from llm_datadist.integrations.vllm.step_orders import Load

PULL_BYTES = 256 << 20
"""Size of one pull. Between two, a load checks whether it was abandoned, and renews its lease."""


class Pull(NamedTuple):
    """Local blocks of one part that are pulled together.

    Attributes:
        part: Part of the layout.
        first: Index of the first block among those of its KV cache group in the load.
        dst_blocks: The local blocks.
        src_blocks: The producer's blocks that hold their tokens.
        src_offset: Tokens of `src_blocks` before the first one that is pulled.
        num_tokens: How many are pulled.
    """

    part: int
    first: int
    dst_blocks: list[int]
    src_blocks: list[int]
    src_offset: int
    num_tokens: int


class PullProgress:
    """The pulls that are left of a load.

    Attributes:
        order: The load.
        pulls: What is left.
        total_bytes: Size of the whole load.
        began: time.monotonic() at which vLLM has ordered it.
    """

    def __init__(self, order: Load, layout: KVLayout, began: float = 0.0) -> None:
        self.order = order
        self.began = began
        self.pulls: list[Pull] = []
        self.total_bytes: int = 0
        self._layout = layout
        for group, dst_blocks in enumerate(order.dst_blocks):
            parts = [
                (index, len(part.addrs) * part.block_bytes)
                for index, part in enumerate(layout.parts)
                if part.group == group
            ]
            bytes_per_block = sum(num_bytes for _, num_bytes in parts)
            step = max(1, PULL_BYTES // bytes_per_block)
            self.total_bytes += bytes_per_block * len(dst_blocks)
            for start in range(0, len(dst_blocks), step):
                stop = min(start + step, len(dst_blocks))
                self.pulls += [self._pull(index, start, stop) for index, _ in parts]

    def missing_blocks(self) -> set[int]:
        """Return the local blocks that are not complete."""
        return {block for pull in self.pulls for block in pull.dst_blocks}

    def split_first(self, num_blocks: int) -> None:
        """Split the first pull after its first `num_blocks` local blocks."""
        pull = self.pulls[0]
        middle = pull.first + num_blocks
        self.pulls[:1] = [
            self._pull(pull.part, pull.first, middle),
            self._pull(pull.part, middle, pull.first + len(pull.dst_blocks)),
        ]

    def num_before_faults(self, src_cluster_ids: Collection[int], error: LLMException) -> int:
        """Return how many local blocks of the first pull precede the first memory fault.

        Args:
            src_cluster_ids: The producer's workers.
            error: How the pull failed.

        Returns:
            0 if it is not known.
        """
        pull = self.pulls[0]
        src_size, dst_size = self._sizes(pull.part)
        places = []
        for fault in error.faults:
            is_src = fault.cluster_id in src_cluster_ids
            blocks = pull.src_blocks if is_src else pull.dst_blocks
            if fault.block not in blocks:
                return 0
            place = blocks.index(fault.block)
            if is_src:
                place = max(0, place * src_size - pull.src_offset) // dst_size
            places.append(place)
        return min(places, default=0)

    def _sizes(self, part: int) -> tuple[int, int]:
        """Return the tokens of a block of the producer and of this engine."""
        group = self._layout.parts[part].group
        return self.order.offer.block_sizes[group], self._layout.block_sizes[group]

    def _pull(self, part: int, start: int, stop: int) -> Pull:
        """Return the pull of the local blocks from `start` to `stop` of a load's list."""
        order, group = self.order, self._layout.parts[part].group
        src_size, dst_size = self._sizes(part)
        dst_blocks, src_blocks = order.dst_blocks[group][start:stop], order.src_blocks[group]
        if src_size == dst_size:
            tokens = (stop - start) * dst_size
            return Pull(part, start, dst_blocks, src_blocks[start:stop], 0, tokens)
        begin = order.src_offset + start * dst_size
        end = order.src_offset + min(stop * dst_size, order.num_tokens)
        needed = src_blocks[begin // src_size : -(-end // src_size)]
        return Pull(part, start, dst_blocks, needed, begin % src_size, end - begin)
