"""Pages that never come: memory whose page faults have no handler."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import struct

_NUMBER = {"x86_64": 323, "aarch64": 282}.get(platform.machine())
_API, _REGISTER = 0xC018AA3F, 0xC020AA00
_API_VERSION, _MODE_MISSING = 0xAA, 1
_USER_MODE_ONLY = 1


@contextlib.contextmanager
def silent_pages(num_pages, *, for_all=False):
    """Yield the address of such memory, or None where the kernel does not allow it.

    At the end all that wait for a page get zeros.

    Args:
        num_pages: How much.
        for_all: Whether readers from other processes wait, too, which takes privileges; else they
            are told at once that it cannot be read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    fd = (
        -1
        if _NUMBER is None
        else libc.syscall(_NUMBER, flags | (0 if for_all else _USER_MODE_ONLY))
    )
    if fd < 0:
        yield None
        return
    memory = mmap.mmap(-1, num_pages * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    hold = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(hold)
    try:
        fcntl.ioctl(fd, _API, struct.pack("QQQ", _API_VERSION, 0, 0))
        asked = struct.pack("QQQQ", address, num_pages * mmap.PAGESIZE, _MODE_MISSING, 0)
        fcntl.ioctl(fd, _REGISTER, asked)
        yield address
    finally:
        os.close(fd)
        del hold
        memory.close()
