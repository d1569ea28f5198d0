"""Pages of an owner that can be replaced under its caches; a peer's memory seen from outside."""

import ctypes
import mmap
import os

import numpy as np

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mremap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_void_p,
]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MREMAP_MAYMOVE_FIXED = 3
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


def anonymous(size):
    """Map fresh private pages; their address."""
    address = _libc.mmap(None, size, _READ_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert address != _FAILED, os.strerror(ctypes.get_errno())
    return address


def words_at(address, shape):
    """A view of words at an address, which must outlive it."""
    size = int(np.prod(shape))
    return np.frombuffer((ctypes.c_uint64 * size).from_address(address), np.uint64).reshape(shape)


def replace_pages(address, content):
    """Put other pages, with this content, where others are, in one step."""
    fresh = anonymous(content.nbytes)
    words_at(fresh, content.shape)[:] = content
    size = content.nbytes
    moved = _libc.mremap(fresh, size, size, _MREMAP_MAYMOVE_FIXED, address)
    assert moved == address, os.strerror(ctypes.get_errno())


def protect(address, size, *, accessible):
    """Take pages away, or give them back with what was in them."""
    result = _libc.mprotect(address, size, _READ_WRITE if accessible else 0)
    assert result == 0, os.strerror(ctypes.get_errno())


class Region:
    """Memory of one cache of the caller's: `data[tensor, unit, word]`, page by page."""

    def __init__(self, tensors, units, words):
        self.shape = (tensors, units, words)
        self.size = tensors * units * words * 8
        self.address = anonymous(self.size)
        self.data = words_at(self.address, self.shape)

    @property
    def addrs(self):
        step = self.size // self.shape[0]
        return [self.address + index * step for index in range(self.shape[0])]


def peek(pid, address, size):
    """Read another process's memory, frozen ones' too; None when it is gone."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123 - unbuffered
            memory.seek(address)
            data = memory.read(size)
    except OSError:
        return None
    return np.frombuffer(data, np.uint64) if data is not None and len(data) == size else None
