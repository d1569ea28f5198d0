"""Work of every contender: memory, block lists, and the check of what arrived."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    Memory: TypeAlias = NDArray[np.uint8]
    Blocks: TypeAlias = NDArray[np.int64]

__all__ = [
    "MIB",
    "Case",
    "address",
    "buffer",
    "fill",
    "has_arrived",
    "holds",
    "is_filled",
    "whole_mib",
]

MIB = 1 << 20
_STEP_BYTES = 8 * MIB
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Case:
    """Blocks of one size, all of a buffer, in random order on both sides.

    Attributes:
        name: As reports have it.
        block_bytes: Size of a block in one tensor; a multiple of 8.
        total_bytes: Of all blocks of all tensors.
        seed: Of the order.
        tensors: Number of equal tensors, one after the other. A block is in all of them.
    """

    name: str
    block_bytes: int
    total_bytes: int
    seed: int = 7
    tensors: int = 1

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.total_bytes // (self.block_bytes * self.tensors)

    @property
    def pieces(self) -> int:
        """Number of blocks, counted in each tensor."""
        return self.count * self.tensors

    def blocks(self) -> tuple[Blocks, Blocks]:
        """(source blocks, destination blocks), each a permutation."""
        random = np.random.default_rng(self.seed)
        return random.permutation(self.count), random.permutation(self.count)

    def addresses(
        self, base: int, blocks: Blocks, tensor_blocks: int | None = None
    ) -> NDArray[np.uint64]:
        """Return the addresses of these blocks in each tensor of a buffer, tensor by tensor.

        Args:
            base: Address of the buffer.
            blocks: The blocks.
            tensor_blocks: Blocks that each tensor of the buffer has, if not those of the case.
        """
        tensors = np.arange(self.tensors, dtype=np.uint64)
        tensors *= np.uint64(tensor_blocks or self.count)
        places = tensors[:, None] + blocks.astype(np.uint64)[None, :]
        addresses: NDArray[np.uint64] = places.ravel() * np.uint64(self.block_bytes)
        addresses += np.uint64(base)
        return addresses


def buffer(size: int) -> Memory:
    """Return anonymous memory whose pages are present."""
    memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    memory[:: mmap.PAGESIZE] = 0
    return memory


def whole_mib(size: float) -> int:
    """`size` bytes rounded to MiB, one at least."""
    return max(1, round(size / MIB)) * MIB


def address(memory: Memory) -> int:
    """Return the address of the first byte."""
    return int(memory.ctypes.data)


def fill(memory: Memory, seed: int) -> None:
    """Give every 8-byte word a value of its own."""
    words = memory.view(np.uint64)
    for start in range(0, len(words), _STEP_BYTES // 8):
        part = words[start : start + _STEP_BYTES // 8]
        part[:] = _pattern(np.arange(start, start + len(part), dtype=np.uint64), seed)


def is_filled(memory: Memory, seed: int) -> bool:
    """Return whether every byte is as `fill` made it."""
    words = memory.view(np.uint64)
    for start in range(0, len(words), _STEP_BYTES // 8):
        part = words[start : start + _STEP_BYTES // 8]
        wanted = _pattern(np.arange(start, start + len(part), dtype=np.uint64), seed)
        if not np.array_equal(part, wanted):
            return False
    return True


def has_arrived(memory: Memory, case: Case, seed: int, source_blocks: int | None = None) -> bool:
    """Return whether every byte is that of the case, moved from a buffer filled with `seed`.

    Args:
        memory: Where the case has moved to.
        case: The case.
        seed: Of the source.
        source_blocks: Blocks that each tensor of the source has, if not those of the case.
    """
    src, dst = case.blocks()
    order = np.argsort(dst)
    return holds(memory, case, dst[order], src[order], seed, source_blocks)


def holds(
    memory: Memory,
    case: Case,
    blocks: Blocks,
    sources: Blocks,
    seed: int,
    source_blocks: int | None = None,
) -> bool:
    """Return whether blocks have every byte of these blocks of a buffer filled with `seed`.

    Args:
        memory: The buffer that the blocks are in.
        case: Its tensors.
        blocks: The blocks, which are compared in all tensors.
        sources: For each the block of the other buffer.
        seed: Of the other buffer.
        source_blocks: Blocks that each tensor of the other has, if not those of the case.
    """
    block_words = case.block_bytes // 8
    rows = memory[: case.total_bytes].view(np.uint64).reshape(case.pieces, block_words)
    held = case.addresses(0, blocks) // np.uint64(case.block_bytes)
    words = case.addresses(0, sources, source_blocks) // np.uint64(8)
    within = np.arange(block_words, dtype=np.uint64)
    step = max(1, _STEP_BYTES // case.block_bytes)
    for at in range(0, len(held), step):
        wanted = _pattern(words[at : at + step, None] + within, seed)
        if not np.array_equal(rows[held[at : at + step]], wanted):
            return False
    return True


def _pattern(words: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return the values of the words of these numbers."""
    values: NDArray[np.uint64] = words * _FACTOR
    values ^= np.uint64(seed)
    return values
