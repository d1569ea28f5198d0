"""Landing slots: the only memory that the engine may write.

The engine has no cancel, so a transfer may go on after its deadline; it then writes a slot, which
no caller uses. This process's threads copy between slots and caches, with the checks and the fault
containment that every copy has.
"""

from __future__ import annotations

import ctypes
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

import numpy as np

from llm_datadist import _native
from llm_datadist._backends.nixl.agent import rows_of
from llm_datadist._backends.outcomes import Outcome
from llm_datadist._logs import later

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._backends.nixl.agent import Agent, PreparedList, Rows, TransferRequest
    from llm_datadist._backends.nixl.chunks import Chunk
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.transfer import Transfer
    from llm_datadist._types.refs import Ref

SLOT_BYTES: Final = 8 << 20
_NUM_LOCAL_SLOTS: Final = 8
_MAX_UNITS: Final = 1 << 20
_SCRATCH_BYTES: Final = 4096
_MADV_REMOVE: Final = 9
_libc = ctypes.CDLL(None)
_SETTLE_S: Final = 2.0
"""Quarantine of a slot after a failure: parts of the transfer may still arrive."""


@final
class Landing:
    """Memory divided into slots, with a scratch page after the last.

    Args:
        node: The instance.
        num_slots: How many.

    Attributes:
        address, size: Of all slots and the scratch page.
        ref: Their entry; peers have no access to it over lanes.

    Raises:
        OSError: The memory cannot be allocated.
    """

    def __init__(self, node: Node, num_slots: int) -> None:
        self._node = node
        self.num_slots = num_slots
        self.size = num_slots * SLOT_BYTES + _SCRATCH_BYTES
        self._segment = _native.Segment(self.size, "llm_datadist-nixl")
        self._segment.close_file()  # no peer maps it, and slots of ended links stay
        self.address = self._segment.address
        self.ref: Ref = node.open_entry([self.address], [self.size], accessible=False)

    @property
    def rows(self) -> Rows:
        """What the engine registers: all of it."""
        return rows_of(np.array([self.address], np.uint64), np.array([self.size], np.uint64))

    @property
    def scratch(self) -> int:
        """Address of a page whose contents mean nothing."""
        return self.address + self.num_slots * SLOT_BYTES

    def slot(self, index: int) -> int:
        """Address of a slot."""
        return self.address + index * SLOT_BYTES

    def free_pages(self) -> None:
        """Return the pages to the system; the addresses stay mapped."""
        _libc.madvise(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size), _MADV_REMOVE)

    def close(self) -> None:
        """Unmap; only when the engine is gone. Idempotent."""
        self._node.close_entry(*self.ref)
        self._segment.close()


@final
class Slots:
    """Hands out slots and takes them back when nothing writes them any more. Thread-safe."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._held: list[tuple[int, Callable[[], bool]]] = []
        self._changed = threading.Condition()

    def take(self, wait_s: float) -> Slot | None:
        """Return a slot; None when none becomes free within that time."""
        with self._changed:
            self._reclaim()
            if not self._free and wait_s > 0:
                self._changed.wait_for(lambda: bool(self._free), wait_s)
            return Slot(self, self._free.pop()) if self._free else None

    @property
    def num_held(self) -> int:
        """Slots that the engine, or a peer, may still use after their transfer has ended."""
        with self._changed:
            self._reclaim()
            return len(self._held)

    def _release(self, index: int) -> None:
        with self._changed:
            self._free.append(index)
            self._changed.notify()

    def _hold(self, index: int, is_unused: Callable[[], bool]) -> None:
        with self._changed:
            self._held.append((index, is_unused))

    def _reclaim(self) -> None:
        for each in list(self._held):
            with suppress(ValueError):
                if each[1]():
                    self._held.remove(each)
                    self._release(each[0])


@final
class Slot:
    """A slot in use. Exactly one of its methods must be called, once."""

    __slots__ = ("_slots", "index")

    def __init__(self, slots: Slots, index: int) -> None:
        self._slots = slots
        self.index = index

    def release(self) -> None:
        """Give the slot back now: nothing writes or reads it any more."""
        self._slots._release(self.index)

    def release_when_done(self, request: TransferRequest) -> None:
        """Give the slot back when the engine has finished a request that uses it."""
        failed_at: list[float] = []

        def is_unused() -> bool:
            done = request.poll()
            if done is False:
                failed_at.append(time.monotonic())
                return time.monotonic() - failed_at[0] > _SETTLE_S
            return done is True

        self._slots._hold(self.index, is_unused)

    def quarantine(self) -> None:
        """Give the slot back after a while: part of a failed transfer may still use it."""
        until = time.monotonic() + _SETTLE_S
        self._slots._hold(self.index, lambda: time.monotonic() > until)


@final
class LocalSlots:
    """The slots of this instance's own transfers, and copies between them and caches. Thread-safe.

    Args:
        node: The instance.
        agent: Gets the slots registered.

    Attributes:
        landing: Their memory.
        take: See `Slots.take`.

    Raises:
        OSError, NixlError: The memory cannot be allocated, or registered.
    """

    def __init__(self, node: Node, agent: Agent) -> None:
        self._node = node
        self._agent = agent
        self._lock = threading.Lock()
        self._prepared: dict[int, PreparedList] = {}
        self._num_units = 0
        self.landing = Landing(node, _NUM_LOCAL_SLOTS)
        self.take = Slots(_NUM_LOCAL_SLOTS).take
        agent.register(self.landing.rows, "DRAM")

    def gather(self, slot: Slot, chunk: Chunk, transfer: Transfer) -> Outcome:
        """Copy a chunk from its cache into a slot; to the outcome's code the cache is remote."""
        return self._copy(slot, chunk, transfer, to_slot=True)

    def scatter(self, slot: Slot, chunk: Chunk, transfer: Transfer) -> Outcome:
        """Copy a chunk from its slot into its cache."""
        return self._copy(slot, chunk, transfer, to_slot=False)

    def _copy(self, slot: Slot, chunk: Chunk, transfer: Transfer, *, to_slot: bool) -> Outcome:
        in_slot = chunk.packed_at(self.landing.slot(slot.index)), self.landing.ref
        in_cache = chunk.local, transfer.local_ref
        (dst, dst_ref), (src, src_ref) = (in_slot, in_cache) if to_slot else (in_cache, in_slot)
        outcome = _native.copy(
            dst, src, chunk.length, self._node.native, dst_ref, src_ref, transfer.deadline_ns
        )
        return chunk.renumbered(Outcome(*outcome))

    def prepared(self, unit_bytes: int) -> PreparedList | None:
        """Return a prepared list of all slots as units of that size; each slot begins a new one.

        None when there are lists of too many sizes already: peers choose the sizes.
        """
        with later(), self._lock:
            if unit_bytes not in self._prepared:
                per_slot = SLOT_BYTES // unit_bytes
                count = _NUM_LOCAL_SLOTS * per_slot
                if self._num_units + count > _MAX_UNITS:
                    return None
                slots = np.repeat(np.arange(_NUM_LOCAL_SLOTS), per_slot)
                units = np.arange(count) % per_slot
                addresses = self.landing.address + slots * SLOT_BYTES + units * unit_bytes
                rows = rows_of(addresses.astype(np.uint64), np.full(count, unit_bytes, np.uint64))
                self._prepared[unit_bytes] = self._agent.prepare(None, rows, "DRAM")
                self._num_units += count
            return self._prepared[unit_bytes]

    def close(self) -> None:
        """Unmap the slots; only after the agent is closed. Idempotent."""
        self.landing.close()
