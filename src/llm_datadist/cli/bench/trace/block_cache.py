"""The bounded cache of the decode process: blocks of a prompt by their hashes, oldest out first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Admission", "BlockCache"]


@dataclass
class _Entry:
    slot: int
    pins: int = 1
    has_arrived: bool = False


@dataclass
class Admission:
    """Slots of one request, which stay its own until `BlockCache.release`.

    Attributes:
        missing: Slot of each hash that the request has to fetch.
        present: Hashes that are there, or that an earlier request fetches.
    """

    missing: dict[int, int] = field(default_factory=dict)
    present: list[int] = field(default_factory=list)


class BlockCache:
    """Slots by hash. Several threads may call its methods.

    Args:
        capacity: Number of slots.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._free = list(reversed(range(capacity)))
        self._changed = threading.Condition()
        self._is_aborted = False

    def admit(self, hash_ids: Iterable[int]) -> Admission:
        """Give a request its slots; wait until others have released enough.

        Raises:
            ValueError: It has more blocks than there are slots.
            RuntimeError: `abort` was called.
        """
        wanted = dict.fromkeys(hash_ids)
        if len(wanted) > self.capacity:
            raise ValueError(f"{len(wanted)} blocks are more than the {self.capacity} of the cache")
        with self._changed:
            self._wait(lambda: self._has_room(wanted))
            admission = Admission()
            for each in wanted:
                entry = self._entries.get(each)
                if entry is not None:
                    entry.pins += 1
                    self._entries.move_to_end(each)
                    admission.present.append(each)
            for each in wanted:
                if each not in self._entries:
                    slot = self._free.pop() if self._free else self._evict()
                    self._entries[each] = _Entry(slot)
                    admission.missing[each] = slot
            return admission

    def arrived(self, hash_ids: Iterable[int]) -> None:
        """Note that these blocks have arrived."""
        with self._changed:
            for each in hash_ids:
                self._entries[each].has_arrived = True
            self._changed.notify_all()

    def wait_for(self, hash_ids: Iterable[int]) -> None:
        """Wait until blocks that other requests fetch have arrived.

        Raises:
            RuntimeError: `abort` was called.
        """
        entries = [self._entries[each] for each in hash_ids]
        with self._changed:
            self._wait(lambda: all(entry.has_arrived for entry in entries))

    def release(self, admission: Admission) -> None:
        """Let the slots of a request be used for others when they become the oldest."""
        with self._changed:
            for each in (*admission.present, *admission.missing):
                self._entries[each].pins -= 1
            self._changed.notify_all()

    def abort(self) -> None:
        """Make all waiting calls, and later ones, raise."""
        with self._changed:
            self._is_aborted = True
            self._changed.notify_all()

    def slots(self) -> dict[int, int]:
        """Return the slots of all blocks that have arrived, by hash."""
        with self._changed:
            return {each: e.slot for each, e in self._entries.items() if e.has_arrived}

    def _wait(self, condition: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._is_aborted or condition())
        if self._is_aborted:
            raise RuntimeError("another request failed")

    def _has_room(self, wanted: dict[int, None]) -> bool:
        missing = sum(each not in self._entries for each in wanted) - len(self._free)
        if missing <= 0:
            return True
        entries = self._entries.items()
        return sum(not entry.pins and each not in wanted for each, entry in entries) >= missing

    def _evict(self) -> int:
        oldest = next(each for each, entry in self._entries.items() if not entry.pins)
        return self._entries.pop(oldest).slot
