"""Paged KV cache: blocks of fixed size, and the block tables of requests.

One tensor of keys and one of values per layer, each (num_blocks, block_size, kv_heads, head_dim)
float32, in the order K0, V0, K1, V1, ... A request owns any blocks in any order; its block table
lists its blocks in the order of the tokens.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llm_datadist.cli.demo.pages import on_own_pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Floats = NDArray[np.float32]
BlockTable = NDArray[np.intp]


def blocks_for(tokens: int, block_size: int) -> int:
    """Return the number of blocks that hold `tokens` tokens."""
    return -(-tokens // block_size)


class PagedKvCache:
    """Tensors of the cache; keep this object while they are registered.

    Args:
        layers: Number of layers, each with a tensor of keys and one of values.
        num_blocks: Blocks of each tensor.
        block_size: Tokens of a block.
        kv_heads: Heads of keys and values.
        head_dim: Numbers of a head.
        own_pages: Put each tensor on pages of its own, so that single blocks can be lost.
    """

    def __init__(
        self,
        layers: int,
        num_blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        *,
        own_pages: bool = False,
    ) -> None:
        self.block_size = block_size
        self.shape: tuple[int, int, int, int] = (num_blocks, block_size, kv_heads, head_dim)
        # Written once, so that all pages are present as in a server's cache; transfers into absent
        # pages would measure the kernel's page faults.
        self.tensors: list[Floats] = [
            on_own_pages(self.shape) if own_pages else np.full(self.shape, 0.0, np.float32)
            for _ in range(2 * layers)
        ]

    @property
    def addresses(self) -> list[int]:
        """Address of each tensor, for register_blocks_cache."""
        return [tensor.ctypes.data for tensor in self.tensors]

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block id over all tensors."""
        return sum(tensor[0].nbytes for tensor in self.tensors)

    def address_of(self, tensor: int, block: int) -> tuple[int, int]:
        """Return address and size of one block of one tensor."""
        return self.tensors[tensor][block].ctypes.data, self.tensors[tensor][block].nbytes

    def write(
        self, layer: int, table: BlockTable, position: int, keys: Floats, values: Floats
    ) -> None:
        """Write keys and values, (tokens, kv_heads, head_dim), at `position` of a request."""
        positions = np.arange(position, position + len(keys))
        blocks, offsets = table[positions // self.block_size], positions % self.block_size
        self.tensors[2 * layer][blocks, offsets] = keys
        self.tensors[2 * layer + 1][blocks, offsets] = values

    def gather(self, layer: int, table: BlockTable, tokens: int) -> tuple[Floats, Floats]:
        """Copy the keys and values of a request's first `tokens` positions out of its blocks."""
        used = table[: blocks_for(tokens, self.block_size)]

        def collect(tensor: Floats) -> Floats:
            return tensor[used].reshape(-1, *self.shape[2:])[:tokens]

        return collect(self.tensors[2 * layer]), collect(self.tensors[2 * layer + 1])

    def fill(self, blocks: Sequence[int], source: np.random.Generator) -> None:
        """Overwrite blocks with noise, in every tensor."""
        index = np.asarray(blocks, np.intp)
        for tensor in self.tensors:
            tensor[index] = source.standard_normal((len(index), *self.shape[1:]), np.float32)

    def checksums(self, blocks: Sequence[int]) -> list[bytes]:
        """Return checksums of blocks, one per tensor."""
        index = np.asarray(blocks, np.intp)
        words = (tensor[index].view(np.uint32) for tensor in self.tensors)
        return [np.bitwise_xor.reduce(w, axis=None).tobytes() + w.sum().tobytes() for w in words]


class BlockPool:
    """Free block ids, handed out in the shuffled order of a server that has run for a while."""

    def __init__(self, ids: Iterable[int], seed: int) -> None:
        self._free = list(ids)
        random.Random(seed).shuffle(self._free)

    def take(self, count: int) -> list[int]:
        """Take blocks from the pool.

        Raises:
            MemoryError: There are too few; none was taken.
        """
        if count > len(self._free):
            raise MemoryError(f"the KV cache has {len(self._free)} free blocks, {count} are needed")
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def give_back(self, ids: Iterable[int]) -> None:
        """Return blocks that were taken."""
        self._free.extend(ids)
