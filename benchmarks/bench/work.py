"""Work of every contender: memory, block lists, and the check of the result."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """Blocks of one size, all of a buffer, in random order on both sides."""

    name: str
    block_bytes: int
    total_bytes: int
    seed: int = 7

    @property
    def count(self) -> int:
        return self.total_bytes // self.block_bytes

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """(source blocks, destination blocks), each a permutation."""
        random = np.random.default_rng(self.seed)
        return random.permutation(self.count), random.permutation(self.count)


def buffer(size: int) -> np.ndarray:
    """Return anonymous memory whose pages are present."""
    memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    memory[:: mmap.PAGESIZE] = 0
    return memory


def whole_mib(size: float) -> int:
    """`size` bytes rounded to MiB, one at least."""
    return max(1, round(size / MIB)) * MIB


def address(memory: np.ndarray) -> int:
    return int(memory.ctypes.data)


def fill(memory: np.ndarray, seed: int) -> None:
    """Give every 8-byte word a value of its own."""
    words = memory.view(np.uint64)
    words[:] = np.arange(len(words), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words ^= np.uint64(seed)


def expected(case: Case, seed: int) -> np.ndarray:
    """Return the destination's bytes after the case was moved from a buffer filled with `seed`."""
    source = np.empty(case.total_bytes, np.uint8)
    fill(source, seed)
    result = np.empty_like(source)
    src, dst = case.blocks()
    shape = (case.count, case.block_bytes)
    result.reshape(shape)[dst] = source.reshape(shape)[src]
    return result


def digest(memory: np.ndarray) -> int:
    """Order-sensitive fingerprint of a buffer."""
    words = memory.view(np.uint64)
    weights = np.arange(1, len(words) + 1, dtype=np.uint64) | np.uint64(1)
    return int((words * weights).sum(dtype=np.uint64))
