"""Forged published pages of a peer on the same host."""

from __future__ import annotations

import ctypes
import mmap
import struct

import numpy as np

from llm_datadist import _native

HEADER_WORDS, INCARNATION = 8, 1
CAPACITIES = {"guards": 3, "log": 4, "ranges": 5}  # words of the header
GUARDS, LOG_BYTES = 64, 4096
RANGES_PER_GUARD = 2
PAGE = 4096


class ForgedPage:
    """The page of a real node, in which fields are then changed.

    What is not changed is as an honest peer has it, so a reader gets as far as the forged field.

    Args:
        incarnation: Whose page it says that it is.
        header: Fields that are not what they should be: `guards`, `log`, `ranges` (capacities).
        rows: Begin and end of each address range in the table.
    """

    def __init__(self, incarnation, rows=(), **header):
        guards = max(GUARDS, -(-len(rows) // RANGES_PER_GUARD))
        self._node = _native.Node(incarnation, guards, LOG_BYTES)
        self.fd, self.size = self._node.published_fd, self._node.published_bytes
        self._map = mmap.mmap(self.fd, self.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._words = np.frombuffer(self._map, np.uint64)
        facts = HEADER_WORDS + guards
        ranges = facts + 2 * guards
        self.guards = self._words[HEADER_WORDS:facts]
        self.facts = self._words[facts:ranges]
        self._rows = self._words[ranges : ranges + 2 * RANGES_PER_GUARD * guards]
        self._check_layout(incarnation, guards)
        for field, value in header.items():
            self._words[CAPACITIES[field]] = value
        self.guards[:] = 1
        self._rows[: 2 * len(rows)] = np.asarray(rows, np.uint64).ravel()

    def _check_layout(self, incarnation, guards):
        """Check that everything lies where this class changes it."""
        told = "the layout of the published page has changed: see native/memory/published.h"
        assert self._words[INCARNATION] == incarnation, told
        capacities = {"guards": guards, "log": LOG_BYTES, "ranges": RANGES_PER_GUARD * guards}
        assert {name: self._words[at] for name, at in CAPACITIES.items()} == capacities, told
        link = self._node.open_guard()
        self._node.show_proof(link, bytes(range(16)))
        entry = self._node.open_entry(np.array([PAGE], np.uint64), np.array([8], np.uint64), True)
        for index, value in (link, entry):
            assert self.guards[index] == value, told
        assert self.facts[2 * link[0] :][:2].tobytes() == bytes(range(16)), told
        assert tuple(self.facts[2 * entry[0] :][:2]) == (0, 1), told
        assert tuple(self._rows[:2]) == (PAGE, PAGE + 8), told

    def close(self):
        """Close the file; the memory goes with the object. Idempotent."""
        self._node = None

    def show(self, index, proof):
        self.facts[2 * index : 2 * index + 2] = struct.unpack("<2Q", proof)

    def list(self, index, first, count):
        """Set the rows with the ranges of an entry."""
        self.facts[2 * index : 2 * index + 2] = [first, count]

    def scramble(self, chance):
        """Change fields that a reader reads only once or twice."""
        self._words[chance.choice(list(CAPACITIES.values()))] = chance.randrange(1 << 63)
        self.guards[chance.randrange(8, 16)] = chance.randrange(4)
        self.facts[chance.randrange(16, 32)] = chance.randrange(1 << 20)
