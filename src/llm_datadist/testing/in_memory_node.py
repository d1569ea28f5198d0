"""Stand-in for the native node without native code, for unit tests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TAIL_BITS = 40


class Statistics(NamedTuple):
    """Counts of a node.

    Attributes:
        live_entries: Entries that are open.
        live_guards: Key guards that are neither closed nor consumed.
        used_slots: Guard slots in use, consumed ones that were not closed included.
    """

    live_entries: int
    live_guards: int
    used_slots: int


@final
class InMemoryNode:
    """Guards (odd = live), entries and the directory log of one instance, in plain Python.

    It has the native node's semantics: slots are reused last in, first out, and every opening and
    closing of a slot adds one to its value; a consumed key keeps its slot until it is closed.

    Args:
        guard_capacity: Guards that it can hold, the instance's own included.
        log_capacity: Bytes of its log.

    Thread-safe.
    """

    def __init__(self, guard_capacity: int = 1 << 16, log_capacity: int = 1 << 20) -> None:
        self._lock = threading.RLock()
        self._guards = [1] + [0] * (guard_capacity - 1)
        self._free = list(range(guard_capacity - 1, 0, -1))
        self._keys: set[int] = set()
        self._consumed: list[tuple[int, int]] = []
        self._entries: dict[tuple[int, int], tuple[list[tuple[int, int]], bool]] = {}
        self._suspended: dict[int, tuple[list[tuple[int, int]], bool]] = {}
        self._log_capacity = log_capacity
        self._log = b""
        self._era = 0

    def version(self) -> int:
        """Return the directory's version, `era << 40 | tail`."""
        with self._lock:
            return self._era << _TAIL_BITS | len(self._log)

    def append(self, record: bytes, /) -> None:
        """Append to the log; ValueError when it is full."""
        with self._lock:
            if len(self._log) + len(record) > self._log_capacity:
                raise ValueError("the directory log is full")
            self._log += record

    def rewrite(self, records: bytes, /) -> None:
        """Replace the log; ValueError when it does not fit."""
        with self._lock:
            if len(records) > self._log_capacity:
                raise ValueError("the directory does not fit its log")
            self._log = records
            self._era += 2

    def read_log(self, offset: int, size: int) -> bytes:
        """Return a piece of the log."""
        with self._lock:
            return self._log[offset : offset + size]

    def open_entry(
        self,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
        accessible: bool,
        device: int | None = None,
        /,
    ) -> tuple[int, int]:
        """Open an entry over address ranges; ValueError when no guard is left."""
        del device  # nothing is moved here
        ranges = list(zip(addresses.tolist(), sizes.tolist(), strict=True))
        with self._lock:
            ref = self._open()
            self._entries[ref] = (ranges, accessible)
            return ref

    def close_entry(self, index: int, value: int, /) -> bool:
        """Close an entry; False if it was not live at that value."""
        with self._lock:
            if self._entries.pop((index, value), None) is None:
                return False
            self._guards[index] += 1
            self._free.append(index)
            return True

    def reopen_entry(self, index: int, value: int, /) -> int:
        """Give an entry a new value; 0 if it was not live."""
        with self._lock:
            entry = self._entries.pop((index, value), None)
            if entry is None:
                return 0
            self._guards[index] += 2
            self._entries[index, value + 2] = entry
            return value + 2

    def suspend_entry(self, index: int, value: int, /) -> bool:
        """Close an entry, to be resumed; False if it was not live."""
        with self._lock:
            entry = self._entries.pop((index, value), None)
            if entry is None:
                return False
            self._guards[index] += 1
            self._suspended[index] = entry
            return True

    def resume_entry(self, index: int, /) -> int:
        """Make a suspended entry live again; its new value."""
        with self._lock:
            self._guards[index] += 1
            self._entries[index, self._guards[index]] = self._suspended.pop(index)
            return self._guards[index]

    def open_key(self) -> tuple[int, int]:
        """Open a key guard; ValueError when none is left."""
        with self._lock:
            ref = self._open()
            self._keys.add(ref[0])
            return ref

    def close_key(self, index: int, value: int, /) -> bool:
        """Close a key guard and free its slot; False if a peer had consumed it."""
        with self._lock:
            if index not in self._keys:
                return False
            self._keys.remove(index)
            was_live = self._guards[index] == value
            if was_live:
                self._guards[index] += 1
            self._free.append(index)
            return was_live

    def consume(self, index: int, value: int, /) -> bool:
        """Consume a key, as a peer does; True once."""
        with self._lock:
            if index not in self._keys or self._guards[index] != value:
                return False
            self._guards[index] += 1
            self._consumed.append((index, value))
            return True

    def consumed(self) -> list[tuple[int, int]]:
        """Return the keys consumed since the last call."""
        with self._lock:
            refs, self._consumed = self._consumed, []
            return refs

    def guard(self, index: int) -> int:
        """Return a guard's value now."""
        with self._lock:
            return self._guards[index]

    def ranges(self, index: int, value: int) -> list[tuple[int, int]]:
        """Return the (address, size) ranges of a live entry."""
        with self._lock:
            return self._entries[index, value][0]

    def statistics(self) -> Statistics:
        """Return what is held."""
        with self._lock:
            live = sum(self._guards[index] % 2 for index in self._keys)
            return Statistics(len(self._entries), live, len(self._entries) + len(self._keys))

    def _open(self) -> tuple[int, int]:
        if not self._free:
            raise ValueError("all guards are in use")
        index = self._free.pop()
        self._guards[index] += 1
        return index, self._guards[index]
