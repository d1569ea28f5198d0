"""The live caches of an instance by the memory that they cover, and their memory at fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from llm_datadist._plan.layout import Piece
    from llm_datadist._registry.local_cache import LocalCache


@final
class MemoryRanges:
    """Finds caches by address ranges, and keeps the fault marks of their memory. Thread-safe.

    Args:
        caches: The live caches, by id.
        lock: Guards them.
    """

    def __init__(self, caches: Mapping[int, LocalCache], lock: threading.Lock) -> None:
        self._caches = caches
        self._lock = lock

    def overlapping(self, addr: int, size: int) -> list[LocalCache]:
        """Return the caches that have a byte in `[addr, addr + size)`, in order of id."""
        with self._lock:
            return [local for local in self._caches.values() if local.overlaps(addr, size)]

    def covers(self, addr: int, size: int) -> bool:
        """Return whether every byte of `[addr, addr + size)` is in some cache."""
        reached = addr
        ranges = sorted(
            (start, start + local.layout.tensor_bytes)
            for local in self.overlapping(addr, size)
            for start in local.layout.starts
        )
        for begin, end in ranges:
            if begin > reached:
                break
            reached = max(reached, end)
        return reached >= addr + size

    def mark_faulted(self, addr: int, size: int) -> bool:
        """Mark slots and blocks in `[addr, addr + size)` as at fault; return whether one is new."""
        marked = False
        for local in self.overlapping(addr, size):
            found = tuple(local.layout.locate(addr, size))
            with self._lock:
                new = tuple(piece for piece in found if piece not in local.faulted)
                local.faulted += new
            marked = marked or bool(new)
        return marked

    def clear_faulted(self, addr: int, size: int) -> None:
        """Remove the fault marks that touch `[addr, addr + size)`."""
        for local in self.overlapping(addr, size):
            with self._lock:
                local.faulted = tuple(
                    piece
                    for piece in local.faulted
                    if piece.addr >= addr + size or piece.addr + piece.size <= addr
                )

    def faulted(self) -> list[tuple[LocalCache, Piece]]:
        """Return all fault marks."""
        with self._lock:
            return [(local, piece) for local in self._caches.values() for piece in local.faulted]
