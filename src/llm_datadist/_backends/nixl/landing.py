"""Memory of the library's own into which the engine moves bytes, in slots.

The engine writes nothing but this: a transfer that it cannot be made to give up may go on into a
slot, for as long as it likes, and harms nobody. From a slot, own threads copy into the caches, or
the other way, with the checks and the fault containment that every copy has.
"""

from __future__ import annotations

import ctypes
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from llm_datadist import _native

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_datadist._backends.nixl.agent import Running
    from llm_datadist._backends.node import Node
    from llm_datadist._backends.outcomes import Ref

__all__ = ["SLOT_BYTES", "Landing", "Slots"]

SLOT_BYTES: Final = 8 << 20
_SCRATCH_BYTES: Final = 4096
_MADV_REMOVE: Final = 9
_libc = ctypes.CDLL(None)
_SETTLE_S: Final = 2.0
"""A failed transfer's slot rests this long: parts of it may still be on their way."""


@final
class Landing:
    """Some slots, and a scratch page behind them.

    Args:
        node: The instance.
        num_slots: How many.

    Attributes:
        address, size: The slots, the scratch page included.
        ref: Their entry; nobody else may touch them over lanes.

    Raises:
        OSError: The memory cannot be had.
    """

    def __init__(self, node: Node, num_slots: int) -> None:
        self._node = node
        self.num_slots = num_slots
        self.size = num_slots * SLOT_BYTES + _SCRATCH_BYTES
        self._segment = _native.Segment(self.size, "llm_datadist-nixl")
        self._segment.close_file()  # nobody maps it, and slots of ended links stay
        self.address = self._segment.address
        self.ref: Ref = node.open_entry([self.address], [self.size], accessible=False)

    @property
    def scratch(self) -> int:
        """Address of a page whose contents mean nothing."""
        return self.address + self.num_slots * SLOT_BYTES

    def slot(self, index: int) -> int:
        """Address of a slot."""
        return self.address + index * SLOT_BYTES

    def empty(self) -> None:
        """Give the pages back, not the addresses."""
        _libc.madvise(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size), _MADV_REMOVE)

    def close(self) -> None:
        """Unmap; only when the engine is gone. Idempotent."""
        self._node.close_entry(*self.ref)
        self._segment.close()


@final
class Slots:
    """Which of so many slots are free, in use, or still in the hands of the engine. Thread-safe."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._held: list[tuple[int, Callable[[], bool]]] = []
        self._changed = threading.Condition()

    def take(self, wait_s: float) -> int | None:
        """Return a slot; None when none is free within that time, or none ever may be."""
        with self._changed:
            self._reclaim()
            if not self._free and wait_s > 0:
                self._changed.wait_for(lambda: bool(self._free), wait_s)
            return self._free.pop() if self._free else None

    def give(self, index: int) -> None:
        """Give a slot back that nobody writes any more."""
        with self._changed:
            self._free.append(index)
            self._changed.notify()

    def hold(self, index: int, running: Running) -> None:
        """Give a slot back as soon as the engine is through with it."""
        failed_at: list[float] = []

        def is_quiet() -> bool:
            done = running.poll()
            if done is False:
                failed_at.append(time.monotonic())
                return time.monotonic() - failed_at[0] > _SETTLE_S
            return done is True

        with self._changed:
            self._held.append((index, is_quiet))

    def rest(self, index: int) -> None:
        """Give a slot back after a while: a peer may still look into it."""
        until = time.monotonic() + _SETTLE_S
        with self._changed:
            self._held.append((index, lambda: time.monotonic() > until))

    @property
    def num_held(self) -> int:
        """Slots that wait for the engine."""
        with self._changed:
            self._reclaim()
            return len(self._held)

    def _reclaim(self) -> None:
        for each in list(self._held):
            with suppress(ValueError):
                if each[1]():
                    self._held.remove(each)
                    self._free.append(each[0])
                    self._changed.notify()
