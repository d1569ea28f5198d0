"""Memory of a peer that is known to be at fault, so that no transfer of this end touches it again.

This end learns of it by its own transfers, from the peer while the link is up, and with the link's
set-up. A mark belongs to one life of a cache: a remap or a new registration ends it.
"""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_datadist._plan import Plan
    from llm_datadist._types.refs import Ref

_ADDRESS_SPACE = 1 << 64
MOST_MARKS = 4096
"""Of one link, whatever the peer says: those beyond it are found out by transfers again."""

Range = tuple[int, int]
"""Address and size."""

__all__ = ["MOST_MARKS", "Range", "PeerFaultMarks"]


class PeerFaultMarks:
    """The marks of one link. Thread-safe; false when there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_index: dict[int, tuple[int, tuple[Range, ...]]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_index)

    def add(self, entry: Ref, ranges: Iterable[Range]) -> None:
        """Mark ranges of the cache that had this entry; marks of an earlier life of it go."""
        index, value = entry
        with self._lock:
            known_value, known = self._by_index.get(index, (value, ()))
            kept = known if known_value == value else ()
            self._put(index, value, (*kept, *ranges))

    def replace(self, entry: Ref, ranges: Iterable[Range]) -> None:
        """Take the owner's word for all the marks of a cache; what is no range is left out."""
        with self._lock:
            self._put(*entry, ranges)

    def _put(self, index: int, value: int, ranges: Iterable[Range]) -> None:
        """Make these the marks of a cache, as far as there is room; with the lock held."""
        self._by_index.pop(index, None)
        room = MOST_MARKS - sum(len(marks) for _, marks in self._by_index.values())
        fits = (r for r in ranges if r[0] >= 0 and r[1] > 0 and r[0] + r[1] < _ADDRESS_SPACE)
        marks = tuple(islice(dict.fromkeys(fits), room))
        if marks:
            self._by_index[index] = value, marks

    def forget(self, addr: int, size: int) -> None:
        """The peer has remapped a range: marks that touch it go."""
        with self._lock:
            for index, (value, ranges) in list(self._by_index.items()):
                kept = tuple(r for r in ranges if r[0] >= addr + size or r[0] + r[1] <= addr)
                if kept:
                    self._by_index[index] = value, kept
                else:
                    del self._by_index[index]

    def touched(self, entry: Ref, plan: Plan) -> list[Range]:
        """Return the marks of a cache that a plan's remote side touches."""
        value, ranges = self._by_index.get(entry[0], (0, ()))
        if value != entry[1]:
            return []
        end = plan.remote + plan.length
        return [
            (addr, size)
            for addr, size in ranges
            if ((plan.remote < np.uint64(addr + size)) & (end > np.uint64(addr))).any()
        ]
