"""Splits descriptor arrays into chunks that fit a landing slot. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_datadist._backends.outcomes import Outcome
    from llm_datadist._backends.transfer import U64Array


class Chunk(NamedTuple):
    """Pieces of descriptors that share one slot, one after the other.

    Attributes:
        local, remote, length: Addresses and bytes of each piece.
        origin: For each piece the number of the descriptor that it was cut from.
    """

    local: U64Array
    remote: U64Array
    length: U64Array
    origin: np.ndarray[tuple[int], np.dtype[np.int64]]

    @property
    def total_bytes(self) -> int:
        return int(self.length.sum())

    def packed_at(self, address: int) -> U64Array:
        """Return the piece addresses when the pieces lie one after the other from `address` on."""
        packed: U64Array = np.cumsum(self.length) - self.length + np.uint64(address)
        return packed

    def renumbered(self, outcome: Outcome) -> Outcome:
        """Return an outcome for this chunk with the descriptor's number in the whole transfer."""
        at = outcome.descriptor
        return outcome._replace(descriptor=int(self.origin[at])) if at >= 0 else outcome


def chunks(
    local: U64Array, remote: U64Array, length: U64Array, chunk_bytes: int
) -> Iterator[Chunk]:
    """Yield chunks of at most `chunk_bytes` bytes that cover the descriptors, in order."""
    whole = _cut(local, remote, length, chunk_bytes)
    ends = np.cumsum(whole.length)
    first, done = 0, 0
    while first < len(ends):
        last = int(np.searchsorted(ends, done + chunk_bytes, side="right"))
        yield Chunk(
            whole.local[first:last],
            whole.remote[first:last],
            whole.length[first:last],
            whole.origin[first:last],
        )
        first, done = last, int(ends[last - 1])


def _cut(local: U64Array, remote: U64Array, length: U64Array, limit: int) -> Chunk:
    """Split descriptors longer than the limit, and leave out empty ones."""
    counts = -(-length.astype(np.int64) // limit)
    origin = np.repeat(np.arange(len(length)), counts)
    before = np.cumsum(counts) - counts
    offset = ((np.arange(len(origin)) - before[origin]) * limit).astype(np.uint64)
    return Chunk(
        local[origin] + offset,
        remote[origin] + offset,
        np.minimum(length[origin] - offset, np.uint64(limit)),
        origin,
    )
