"""Memory for backend checks: registered tensors with unregistered gaps between them."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from llm_datadist._backends.transfer import U64Array

PAGE_BYTES = mmap.PAGESIZE
TENSOR_BYTES = 4 << 20
NUM_TENSORS = 2

_libc = ctypes.CDLL(None, use_errno=True)


def pattern(seed: int, size: int = TENSOR_BYTES * NUM_TENSORS) -> npt.NDArray[np.uint8]:
    """Return random bytes of a seed."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


class Arena:
    """Anonymous memory of some tensors, with an unregistered page after each.

    Attributes:
        address: First byte of the first tensor.
    """

    def __init__(self) -> None:
        self._pitch = TENSOR_BYTES + PAGE_BYTES
        self._memory = mmap.mmap(-1, self._pitch * NUM_TENSORS)
        view = np.frombuffer(self._memory, dtype=np.uint8)
        self.address = int(view.ctypes.data)
        self._rows = view.reshape(NUM_TENSORS, self._pitch)

    @property
    def addresses(self) -> U64Array:
        """First byte of each tensor."""
        firsts = range(self.address, self.address + NUM_TENSORS * self._pitch, self._pitch)
        return np.array(firsts, dtype=np.uint64)

    @property
    def sizes(self) -> U64Array:
        """Bytes of each tensor."""
        return np.full(NUM_TENSORS, TENSOR_BYTES, dtype=np.uint64)

    def fill(self, seed: int) -> None:
        """Write `pattern(seed)` over the tensors, one after the other."""
        self._rows[:, :TENSOR_BYTES] = pattern(seed).reshape(NUM_TENSORS, TENSOR_BYTES)

    def contents(self) -> npt.NDArray[np.uint8]:
        """Return a copy of the tensors' bytes, one tensor after the other."""
        return np.ascontiguousarray(self._rows[:, :TENSOR_BYTES]).reshape(-1)

    def gaps(self) -> npt.NDArray[np.uint8]:
        """Return a copy of the bytes that are not registered."""
        return np.ascontiguousarray(self._rows[:, TENSOR_BYTES:]).reshape(-1)

    def protect(self, offset: int, *, accessible: bool) -> None:
        """Forbid or allow access to the page at an offset of the first tensor; its bytes stay."""
        rights = mmap.PROT_READ | mmap.PROT_WRITE if accessible else 0
        address = (self.address + offset) & ~(PAGE_BYTES - 1)
        if _libc.mprotect(ctypes.c_void_p(address), PAGE_BYTES, rights) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
