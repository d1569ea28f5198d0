"""The other process of the same-host tests: does what it is told, line by line."""

import ctypes
import json
import mmap
import os
import sys

import numpy as np

from llm_datadist import _native

PAGE = mmap.PAGESIZE
MADV_DONTNEED = 4
REUSED = 253  # not of the pattern
FAR_AWAY = 0x2000_0000_0000  # where a hole stays one; elsewhere the next mapping may fill it
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def tell(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def view(address, size):
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def main():
    size = int(sys.argv[1]) * PAGE
    node = _native.Node(int.from_bytes(os.urandom(7), "little"), 1024, 1 << 16)
    address = libc.mmap(FAR_AWAY, size, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    segment = _native.Segment(size, "test-segment")
    pattern = (np.arange(size) // PAGE % 251).astype(np.uint8)
    view(address, size)[:] = pattern
    view(segment.address, size)[:] = pattern + np.uint8(1)

    def entry(begin):
        return node.open_entry(np.array([begin], np.uint64), np.array([size], np.uint64), True)

    link = node.open_guard()
    proof = os.urandom(16)
    node.show_proof(link, proof)
    refs = {"entry": entry(address), "segment_entry": entry(segment.address)}
    tell(
        {
            "incarnation": node.incarnation,
            "page_address": node.page_address,
            "link": link,
            "proof": list(proof),
            "published_fd": node.published_fd,
            "published_bytes": node.published_bytes,
            "address": address,
            "size": size,
            "segment": [segment.fd, segment.address, segment.size],
            **refs,
        }
    )
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "unmap":
            tell(libc.munmap(address + arguments[0] * PAGE, arguments[1] * PAGE))
        elif command in {"protect", "protect_segment"}:
            begin = address if command == "protect" else segment.address
            tell(libc.mprotect(begin + arguments[0] * PAGE, arguments[1] * PAGE, arguments[2]))
        elif command == "forget":  # the pages are absent until this process touches them
            tell(libc.madvise(address + arguments[0] * PAGE, arguments[1] * PAGE, MADV_DONTNEED))
        elif command in {"open_key", "close_key", "close_entry", "reopen_entry", "close_guard"}:
            tell(getattr(node, command)(*arguments))
        elif command == "close_entry_and_reuse":  # the end of its memory first
            closed = node.close_entry(*arguments)
            view(address, size)[-PAGE:] = REUSED
            view(address, size)[:] = REUSED
            tell(closed)
        elif command == "restore_and_open_entry":
            view(address, size)[:] = pattern
            tell(entry(address))
        elif command == "show_proof":
            tell(node.show_proof(link, bytes(arguments[0])))
        elif command == "append":
            node.append(bytes(arguments[0]))
            tell(node.version())
        elif command == "close":
            node.close()
            tell(True)


if __name__ == "__main__":
    main()
