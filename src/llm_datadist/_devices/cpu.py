"""Host memory: pools, and copies within this process.

Without an accelerator Placement.DEVICE is host memory, too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llm_datadist import _native

if TYPE_CHECKING:
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


_NEVER_NS = 2**63 - 1


def copy(
    node: _native.Node,
    dst: U64Array,
    src: U64Array,
    length: U64Array,
    dst_ref: Ref,
    src_ref: Ref,
) -> tuple[int, int, int, int]:
    """Copy `length[i]` bytes from `src[i]` to `dst[i]` on several threads, GIL released.

    Both entries are checked around every batch. A source that cannot be read gives REMOTE_FAULT, a
    destination that cannot be written LOCAL_FAULT.
    """
    return _native.copy(dst, src, length, node, dst_ref, src_ref, _NEVER_NS)
