"""Program that reads the memory of a process that is neither its parent nor its child.

Needs the standard library only. Without arguments it starts the process to read, and then another
one to read it. Prints JSON: the errno of process_vm_readv, 0 if the bytes arrived, and the same of
a process that reads itself, which only a filter of system calls forbids.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys

_WORD = 0x6B766361636865
_SECONDS = 30


class _Range(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _target() -> None:
    """Own a word of memory until standard input ends."""
    word = ctypes.c_uint64(_WORD)
    sys.stdout.write(f"{os.getpid()} {ctypes.addressof(word)}\n")
    sys.stdout.flush()
    sys.stdin.read()


def _errno(pid: int, address: int) -> int:
    """Read the word of the process `pid`; return the errno."""
    library = ctypes.CDLL(None, use_errno=True)
    found = ctypes.c_uint64()
    local = _Range(ctypes.addressof(found), 8)
    remote = _Range(address, 8)
    count = library.process_vm_readv(
        ctypes.c_int(pid), ctypes.byref(local), ctypes.c_ulong(1), ctypes.byref(remote),
        ctypes.c_ulong(1), ctypes.c_ulong(0),
    )  # fmt: skip
    number = ctypes.get_errno() if count < 0 else 0
    return number or (0 if found.value == _WORD else errno.EIO)


def _both() -> None:
    program = [sys.executable, "-I", "-S", __file__]
    with subprocess.Popen(
        [*program, "target"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as target:
        assert target.stdin is not None
        assert target.stdout is not None
        place = target.stdout.readline().split()
        done = subprocess.run(
            [*program, "reader", *place],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
        target.stdin.close()
    own = ctypes.c_uint64(_WORD)
    found = {"errno": int(done.stdout), "own_errno": _errno(os.getpid(), ctypes.addressof(own))}
    sys.stdout.write(json.dumps(found) + "\n")


def main() -> None:
    """See the module."""
    if sys.argv[1:2] == ["target"]:
        _target()
    elif sys.argv[1:2] == ["reader"]:
        sys.stdout.write(str(_errno(*map(int, sys.argv[2:4]))))
    else:
        _both()


if __name__ == "__main__":
    main()
