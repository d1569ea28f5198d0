"""Memory whose pages can be made inaccessible and replaced, for --inject-fault."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAP_FIXED = 0x10
_NEW_PAGES = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
_NO_ACCESS = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def on_own_pages(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an array of zeros on pages of its own."""
    size = int(np.prod(shape)) * 4
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.float32, size // 4).reshape(shape)
    array[:] = 0.0
    return array


def protect(address: int, size: int) -> None:
    """Forbid every access to whole pages.

    Raises:
        OSError: The kernel refuses.
    """
    if _libc.mprotect(address, size, _NO_ACCESS) != 0:
        _fail("mprotect")


def lose(address: int, size: int) -> None:
    """Replace pages with inaccessible ones.

    Raises:
        OSError: The kernel refuses.
    """
    _map(address, size, _NO_ACCESS)


def renew(address: int, size: int) -> None:
    """Replace pages with new ones of zeros.

    Raises:
        OSError: The kernel refuses.
    """
    _map(address, size, mmap.PROT_READ | mmap.PROT_WRITE)


def _map(address: int, size: int, access: int) -> None:
    if _libc.mmap(address, size, access, _NEW_PAGES, -1, 0) != address:
        _fail("mmap")


def _fail(call: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{call}: {os.strerror(number)}")
