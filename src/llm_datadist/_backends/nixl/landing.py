"""Landing slots: the only memory that the engine may write.

The engine has no cancel, so a transfer may go on after its deadline; it then writes a slot, which
harms no one. This process's threads copy between slots and caches, with the checks and the fault
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

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._backends.nixl.agent import Rows, TransferRequest
    from llm_datadist._backends.node import Node
    from llm_datadist._types.refs import Ref

__all__ = ["SLOT_BYTES", "Landing", "Slot", "Slots"]

SLOT_BYTES: Final = 8 << 20
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
        OSError: The memory cannot be had.
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
