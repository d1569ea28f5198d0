"""Prepared lists of a peer's regions: the engine names their units by index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import numpy as np

from llm_datadist._backends.nixl.agent import rows_of
from llm_datadist._backends.nixl.landing import SLOT_BYTES
from llm_datadist._backends.nixl.region_records import words

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.agent import Agent, Indices, PreparedList
    from llm_datadist._backends.nixl.chunks import Chunk
    from llm_datadist._backends.nixl.region_records import RegionAdded

_MAX_PREPARED: Final = 1 << 20
_MAX_PREPARED_OF_LINK: Final = 1 << 22
_MIN_UNIT_BYTES: Final = 256


@final
class PreparedRegion:
    """A region's prepared list: every unit of every tensor."""

    def __init__(self, agent: Agent, peer: str, region: RegionAdded) -> None:
        self.region = region
        unit = np.uint64(region.unit_bytes)
        starts, sizes = words(region.addresses), words(region.sizes)
        order = np.argsort(starts, kind="stable")
        self._starts, self._unit = starts[order], unit
        counts = (sizes[order] // unit).astype(np.int64)
        self._first = np.cumsum(counts) - counts
        self.count = int(counts.sum())
        numbers = np.arange(self.count) - np.repeat(self._first, counts)
        addresses = np.repeat(self._starts, counts) + numbers.astype(np.uint64) * unit
        rows = rows_of(addresses, np.full(len(addresses), unit), region.device_id)
        self.prepared: PreparedList = agent.prepare(peer, rows, region.kind)

    def indices(self, chunk: Chunk) -> Indices | None:
        """Return the index of each piece of a chunk; None unless each piece is one unit."""
        if not (chunk.length == self._unit).all():
            return None
        tensor = np.searchsorted(self._starts, chunk.remote, side="right") - 1
        offset = chunk.remote - self._starts[tensor]
        if (offset % self._unit).any():
            return None
        numbers = self._first[tensor] + (offset // self._unit).astype(np.int64)
        indices: Indices = numbers.astype(np.int32)
        return indices


@final
class PreparedRegions:
    """The prepared lists of one peer's regions. Not thread-safe.

    Args:
        agent: Prepares them.
        peer: Name of the peer's agent.

    Attributes:
        unused: Lists that were dropped and are not released yet.
    """

    def __init__(self, agent: Agent, peer: str) -> None:
        self._agent = agent
        self._peer = peer
        self._lists: dict[int, PreparedRegion] = {}
        self.unused: list[PreparedRegion] = []

    def find(self, region: RegionAdded, chunk: Chunk) -> PreparedRegion | None:
        """Return the region's prepared list; None where addresses serve as well or better."""
        unit = region.unit_bytes
        if len(chunk.length) < 2 or not _MIN_UNIT_BYTES <= unit <= SLOT_BYTES:
            return None
        if region.kind == "VRAM":
            # The engine merges neighbors that are named by index, also across allocations.
            return None
        held = self._lists.get(region.region_id)
        if held is not None and held.region is region:
            return held
        self.drop([region.region_id])  # the peer has used the id again
        count = int(words(region.sizes).sum()) // unit
        total = sum(each.count for each in self._lists.values())
        if count > _MAX_PREPARED or total + count > _MAX_PREPARED_OF_LINK:
            return None
        self._lists[region.region_id] = PreparedRegion(self._agent, self._peer, region)
        return self._lists[region.region_id]

    def drop(self, region_ids: list[int]) -> None:
        """Use the lists of these regions no more; `release_unused` releases them."""
        self.unused += [self._lists.pop(each) for each in region_ids if each in self._lists]

    def drop_all(self) -> None:
        """Use no list any more."""
        self.drop(list(self._lists))

    def release_unused(self) -> None:
        """Release the lists that were dropped; no read may be about to be posted with one."""
        while self.unused:
            self._agent.release(self.unused.pop().prepared)
