"""The landing slots of this instance's own transfers, and copies between them and caches."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, final

import numpy as np

from llm_datadist import _native
from llm_datadist._backends.nixl.agent import rows_of
from llm_datadist._backends.nixl.landing import SLOT_BYTES, Landing, Slots
from llm_datadist._backends.outcomes import Outcome
from llm_datadist._logs import later

if TYPE_CHECKING:
    from llm_datadist._backends.nixl.agent import Agent, PreparedList
    from llm_datadist._backends.nixl.chunks import Chunk
    from llm_datadist._backends.nixl.landing import Slot
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.transfer import Transfer

__all__ = ["LocalSlots"]

_NUM_SLOTS: Final = 8
_MAX_UNITS: Final = 1 << 20


@final
class LocalSlots:
    """See the module. Thread-safe.

    Args:
        node: The instance.
        agent: Gets the slots registered.

    Attributes:
        landing: Their memory.
        take: See `Slots.take`.

    Raises:
        OSError, NixlError: The memory cannot be had, or registered.
    """

    def __init__(self, node: Node, agent: Agent) -> None:
        self._node = node
        self._agent = agent
        self._lock = threading.Lock()
        self._prepared: dict[int, PreparedList] = {}
        self._num_units = 0
        self.landing = Landing(node, _NUM_SLOTS)
        self.take = Slots(_NUM_SLOTS).take
        agent.register(self.landing.rows, "DRAM")

    def gather(self, slot: Slot, chunk: Chunk, transfer: Transfer) -> Outcome:
        """Copy a chunk from its cache into a slot; the slot's memory is the local side of codes."""
        return self._copy(slot, chunk, transfer, to_slot=True)

    def scatter(self, slot: Slot, chunk: Chunk, transfer: Transfer) -> Outcome:
        """Copy a chunk from its slot into its cache."""
        return self._copy(slot, chunk, transfer, to_slot=False)

    def _copy(self, slot: Slot, chunk: Chunk, transfer: Transfer, *, to_slot: bool) -> Outcome:
        packed = chunk.packed_at(self.landing.slot(slot.index)), self.landing.ref
        cache = chunk.local, transfer.local_ref
        dst, src = (packed, cache) if to_slot else (cache, packed)
        outcome = _native.copy(
            dst[0],
            src[0],
            chunk.length,
            self._node.native,
            dst[1],
            src[1],
            transfer.deadline_ns,
        )
        return chunk.renumbered(Outcome(*outcome))

    def prepared(self, unit_bytes: int) -> PreparedList | None:
        """Return a prepared list of all slots as units of that size; each slot begins a new one.

        None when there are lists of too many sizes already: peers choose the sizes.
        """
        with later(), self._lock:
            if unit_bytes not in self._prepared:
                per_slot = SLOT_BYTES // unit_bytes
                count = _NUM_SLOTS * per_slot
                if self._num_units + count > _MAX_UNITS:
                    return None
                slots = np.repeat(np.arange(_NUM_SLOTS), per_slot)
                units = np.arange(count) % per_slot
                addresses = self.landing.address + slots * SLOT_BYTES + units * unit_bytes
                rows = rows_of(addresses.astype(np.uint64), np.full(count, unit_bytes, np.uint64))
                self._prepared[unit_bytes] = self._agent.prepare(None, rows, "DRAM")
                self._num_units += count
            return self._prepared[unit_bytes]

    def close(self) -> None:
        """Unmap the slots; only after the agent is closed. Idempotent."""
        self.landing.close()
