"""What engines do without layouts: whole blocks are pulled, then torch permutes and copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from bench.layouts import Shape


class Permuting:
    """Local steps after whole blocks of one source have arrived in memory of their own.

    Args:
        staged: Memory that the blocks of the source were pulled into, at `blocks`.
        source: Its shape.
        wanted: Shape of the destination.
        local: Memory of the destination.
        blocks: Blocks of `staged`, and of the destination.
    """

    def __init__(
        self, staged: np.ndarray, source: Shape, local: np.ndarray, wanted: Shape, blocks: list[int]
    ) -> None:
        import torch  # noqa: PLC0415

        self._torch: Any = torch
        self._source, self._wanted = source, wanted
        self._staged = self._tensors(staged, source)
        self._local = self._tensors(local, wanted)
        self._blocks = torch.tensor(blocks)

    def _tensors(self, memory: np.ndarray, shape: Shape) -> Any:
        rows = self._torch.from_numpy(memory[: shape.num_bytes]).view(self._torch.bfloat16)
        return rows.view(-1, shape.num_blocks, *shape.block_shape())

    def __call__(self) -> None:
        """Copy what the destination wants of the staged blocks, tensor by tensor."""
        source, wanted = self._source, self._wanted
        first = wanted.rank * wanted.heads
        head_axis = 2 if source.axes == "NHD" else 1
        for staged, local in zip(self._staged, self._local, strict=True):
            blocks = staged.index_select(0, self._blocks)
            part = blocks.narrow(head_axis, first, wanted.heads)
            if source.axes != wanted.axes:
                part = part.permute(0, 2, 1, 3)
            local.index_copy_(0, self._blocks, part.contiguous())
