"""Host memory: pools, and copies within this process.

Without an accelerator Placement.DEVICE is host memory, too.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from llm_datadist import _native

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt

    from llm_datadist._types.refs import Ref

    U64Array = npt.NDArray[np.uint64]


class PoolMemory:
    """Memory of one pool: a sealed shared segment that peers on this host can map read-only.

    Args:
        size: Bytes; pages are committed when first touched.
        name: Shown in /proc/<pid>/maps.

    Raises:
        MemoryError: The machine has less memory, or the kernel refuses.
    """

    def __init__(self, size: int, name: str) -> None:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > installed:
            raise MemoryError(f"{size} bytes asked, the machine has {installed}")
        try:
            self._segment = _native.Segment(size, name)
        except OSError as error:
            raise MemoryError(f"{size} bytes asked: {error}") from error
        self.fd: int = self._segment.fd
        self.address: int = self._segment.address
        self.size = size

    def close(self) -> None:
        """Unmap the segment; its addresses become invalid. Idempotent."""
        self._segment.close()


_libc = ctypes.CDLL(None, use_errno=True)  # its calls release the GIL
_MADV_HUGEPAGE: Final = 14
_MADV_COLLAPSE: Final = 25  # since Linux 6.1
_ADVICE: Final = {"advise": (_MADV_HUGEPAGE,), "collapse": (_MADV_HUGEPAGE, _MADV_COLLAPSE)}
_HUGE_BYTES_FILE: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def ask_huge_pages(ranges: Iterable[tuple[int, int]], how: Literal["advise", "collapse"]) -> int:
    """Ask the kernel to make huge pages of memory; contents and addresses stay.

    Args:
        ranges: Address and size of each range; adjacent ones count as one. Only whole huge pages
            within them are concerned.
        how: "advise": whenever the kernel gets to it; "collapse": now, which copies the memory.

    Returns:
        Bytes for which the kernel agreed. It refuses memory that cannot have huge pages, and
        addresses without memory, which is no error.
    """
    try:
        huge_bytes = int(_HUGE_BYTES_FILE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    agreed = 0
    for begin, end in _merged(ranges):
        first = -(-begin // huge_bytes) * huge_bytes
        size = end // huge_bytes * huge_bytes - first
        arguments = ctypes.c_void_p(first), ctypes.c_size_t(size)
        if size > 0 and all(_libc.madvise(*arguments, each) == 0 for each in _ADVICE[how]):
            agreed += size
    return agreed


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (begin, end) of ranges, ascending, with adjacent ones merged."""
    merged: list[tuple[int, int]] = []
    for begin, size in sorted(ranges):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], begin + size)
        else:
            merged.append((begin, begin + size))
    return merged


NEVER_NS: Final = 2**63 - 1
"""A deadline that is never reached."""


def copy(
    node: _native.Node,
    dst: U64Array,
    src: U64Array,
    length: U64Array,
    dst_ref: Ref,
    src_ref: Ref,
    deadline_ns: int = NEVER_NS,
) -> tuple[int, int, int, int]:
    """Copy `length[i]` bytes from `src[i]` to `dst[i]` on several threads, GIL released.

    Both entries are checked around every batch. A source that cannot be read gives REMOTE_FAULT, a
    destination that cannot be written LOCAL_FAULT, memory of a GPU that cannot be accessed
    LOCAL_FAULT without an index.
    """
    return _native.copy(dst, src, length, node, dst_ref, src_ref, deadline_ns)
