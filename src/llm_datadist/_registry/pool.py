"""Page allocator of a memory pool.

Free runs are kept sorted by address and neighbors are joined when memory comes back, so that
`largest free run` is exact and fragmentation never outlives the allocations that caused it.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import NamedTuple, final


class PoolUse(NamedTuple):
    """Figures of a pool, all in bytes.

    Attributes:
        size: Whole pages of the pool.
        free: Bytes that are free.
        largest_free: Longest run of free bytes.
        num_allocations: Extents that are handed out.
    """

    size: int
    free: int
    largest_free: int
    num_allocations: int


class OutOfMemory(Exception):
    """The pool has no room for the request; nothing was allocated.

    Attributes:
        asked: Bytes asked, rounded up to pages.
        free: Bytes free.
        largest_free: Longest free run, bytes.
    """

    def __init__(self, asked: int, free: int, largest_free: int) -> None:
        super().__init__(f"{asked} bytes asked, {free} free, largest free run {largest_free}")
        self.asked = asked
        self.free = free
        self.largest_free = largest_free


@final
class Pool:
    """Allocates extents of the address range `[address, address + size)`; never touches it.

    Args:
        address: First byte.
        size: Bytes; what is left over from whole pages is not used.
        page_shift: A page has `1 << page_shift` bytes.
        device: The GPU whose memory it is, None for host memory.

    Attributes:
        publication: Held while caches are allocated and published, and while memory is put under
            the pool: no transfer of a new cache begins meanwhile.

    Thread-safe.
    """

    def __init__(self, address: int, size: int, page_shift: int, device: int | None = None) -> None:
        self.address = address
        self.device = device
        self.publication: threading.Lock = threading.Lock()
        self._page_shift = page_shift
        self._num_pages = size >> page_shift
        self._free_pages = self._num_pages
        # Free runs: first pages in ascending order, and the length of each.
        self._starts: list[int] = [0] if self._num_pages else []
        self._lengths: list[int] = [self._num_pages] if self._num_pages else []
        self._extents: dict[int, int] = {}
        self._lock = threading.Lock()

    def allocate(self, tensor_bytes: int, num_tensors: int) -> tuple[int, ...]:
        """Return the addresses of `num_tensors` extents, each of whole pages.

        They lie one behind the other where one free run has room for all (transfers of
        neighboring tensors can then be merged), else where there is room.

        Raises:
            OutOfMemory: There is no room for all of them; none was taken.
        """
        pages = max(1, -(-tensor_bytes >> self._page_shift))
        asked = pages * num_tensors
        with self._lock:
            start = self._take(asked)
            if start is None:
                firsts = self._take_apart(pages, num_tensors)
            else:
                firsts = list(range(start, start + asked, pages))
            for first in firsts:
                self._extents[first] = pages
        return tuple(self.address + (first << self._page_shift) for first in firsts)

    def free(self, addresses: tuple[int, ...]) -> None:
        """Free extents.

        Raises:
            ValueError: An address is not that of an extent that is handed out.
        """
        with self._lock:
            firsts = [(address - self.address) >> self._page_shift for address in addresses]
            for first, address in zip(firsts, addresses, strict=True):
                if first not in self._extents:
                    raise ValueError(f"{address:#x} was not allocated from this pool")
                self._give(first, self._extents.pop(first))

    def statistics(self) -> PoolUse:
        """Return what is used and free now."""
        with self._lock:
            return PoolUse(
                self._num_pages << self._page_shift,
                self._free_pages << self._page_shift,
                max(self._lengths, default=0) << self._page_shift,
                len(self._extents),
            )

    def _take(self, pages: int) -> int | None:
        """Take pages from the shortest run that is long enough; return the first page, or None."""
        best = -1
        best_length = self._num_pages + 1
        for place, length in enumerate(self._lengths):
            if pages <= length < best_length:
                best, best_length = place, length
                if length == pages:
                    break
        if best < 0:
            return None
        start = self._starts[best]
        if best_length == pages:
            del self._starts[best], self._lengths[best]
        else:
            self._starts[best] += pages
            self._lengths[best] -= pages
        self._free_pages -= pages
        return start

    def _take_apart(self, pages: int, num_tensors: int) -> list[int]:
        """Take extents wherever they fit, or none at all."""
        if sum(length // pages for length in self._lengths) < num_tensors:
            shift = self._page_shift
            raise OutOfMemory(
                pages * num_tensors << shift,
                self._free_pages << shift,
                max(self._lengths, default=0) << shift,
            )
        firsts: list[int] = []
        while len(firsts) < num_tensors:
            start = self._take(pages)
            assert start is not None
            firsts.append(start)
        return firsts

    def _give(self, start: int, pages: int) -> None:
        """Return a run, joined with the free runs before and behind it."""
        place = bisect_left(self._starts, start)
        self._free_pages += pages
        joins_before = place > 0 and self._starts[place - 1] + self._lengths[place - 1] == start
        joins_behind = place < len(self._starts) and start + pages == self._starts[place]
        if joins_before and joins_behind:
            self._lengths[place - 1] += pages + self._lengths[place]
            del self._starts[place], self._lengths[place]
        elif joins_before:
            self._lengths[place - 1] += pages
        elif joins_behind:
            self._starts[place] = start
            self._lengths[place] += pages
        else:
            self._starts.insert(place, start)
            self._lengths.insert(place, pages)
