"""Forged published pages of a peer on the same host."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

import numpy as np

MAGIC = 0x33304745444C4C4D
HEADER = struct.Struct("<8Q")
EXPORT_BYTES = 1024 * 16 * 8  # the table of exported GPU memory, behind the ranges
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2


class ForgedPage:
    """A sealed memory file with a header, guards, facts, ranges, exports and a log.

    Args:
        incarnation: Whose page it says that it is.
        header: Fields that are not what they should be: `guards`, `log`, `ranges` (capacities).
        rows: Begin and end of each address range in the table.
    """

    def __init__(self, incarnation, rows=(), **header):
        guards, log = 64, 4096
        capacities = {"guards": guards, "log": log, "ranges": max(len(rows), 1)} | header
        room = HEADER.size + 24 * guards + 16 * max(len(rows), 1) + EXPORT_BYTES + log
        self.size = -(-room // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = os.memfd_create("forged", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.size)
        fcntl.fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK)
        self._map = mmap.mmap(self.fd, self.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._words = np.frombuffer(self._map, np.uint64)
        self._words[:8] = [
            MAGIC,
            incarnation,
            2 << 40,
            capacities["guards"],
            capacities["log"],
            capacities["ranges"],
            0,
            0,
        ]
        self.guards = self._words[8 : 8 + guards]
        self.facts = self._words[8 + guards : 8 + 3 * guards]
        self.guards[:] = 1
        if len(rows):
            first = 8 + 3 * guards
            self._words[first : first + 2 * len(rows)] = np.asarray(rows, np.uint64).ravel()

    def close(self):
        """Close the file; the memory goes with the object."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def show(self, index, proof):
        self.facts[2 * index : 2 * index + 2] = struct.unpack("<2Q", proof)

    def list(self, index, first, count):
        """Set the rows with the ranges of an entry."""
        self.facts[2 * index : 2 * index + 2] = [first, count]

    def scramble(self, chance):
        """Change fields that a reader reads only once or twice."""
        self._words[chance.randrange(3, 6)] = chance.randrange(1 << 63)
        self.guards[chance.randrange(8, 16)] = chance.randrange(4)
        self.facts[chance.randrange(16, 32)] = chance.randrange(1 << 20)
