"""Fault marks on a peer's memory: transfers of this end do not touch marked ranges.

Marks come from failed transfers of this end, from notices of the peer, and with its endpoint. A
mark belongs to one generation of a cache: a remap or a new registration ends it.
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
"""Per link. Memory whose mark is dropped makes a transfer fail again."""

Range = tuple[int, int]
"""Address and size."""

__all__ = ["MOST_MARKS", "Range", "PeerFaultMarks"]


class PeerFaultMarks:
    """Fault marks of one link. Thread-safe; false when empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_index: dict[int, tuple[int, tuple[Range, ...]]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_index)

    def add(self, entry: Ref, ranges: Iterable[Range]) -> None:
        """Mark ranges of a cache; marks of an earlier generation are removed."""
        index, value = entry
        with self._lock:
            known_value, known = self._by_index.get(index, (value, ()))
            kept = known if known_value == value else ()
            self._put(index, value, (*kept, *ranges))

    def replace(self, entry: Ref, ranges: Iterable[Range]) -> None:
        """Replace all marks of a cache by those of its owner; invalid ranges are ignored."""
        with self._lock:
            self._put(*entry, ranges)

    def _put(self, index: int, value: int, ranges: Iterable[Range]) -> None:
        """Set the marks of a cache, up to the limit of the link. The lock is held."""
        self._by_index.pop(index, None)
        room = MOST_MARKS - sum(len(marks) for _, marks in self._by_index.values())
        fits = (r for r in ranges if r[0] >= 0 and r[1] > 0 and r[0] + r[1] < _ADDRESS_SPACE)
        marks = tuple(islice(dict.fromkeys(fits), room))
        if marks:
            self._by_index[index] = value, marks

    def forget(self, addr: int, size: int) -> None:
        """Remove the marks that touch a range that the peer has remapped."""
        with self._lock:
            for index, (value, ranges) in list(self._by_index.items()):
                kept = tuple(r for r in ranges if r[0] >= addr + size or r[0] + r[1] <= addr)
                if kept:
                    self._by_index[index] = value, kept
                else:
                    del self._by_index[index]

    def touched(self, entry: Ref, plan: Plan) -> list[Range]:
        """Return the marks of a cache that the remote side of a plan touches."""
        value, ranges = self._by_index.get(entry[0], (0, ()))
        if value != entry[1]:
            return []
        end = plan.remote + plan.length
        return [
            (addr, size)
            for addr, size in ranges
            if ((plan.remote < np.uint64(addr + size)) & (end > np.uint64(addr))).any()
        ]
