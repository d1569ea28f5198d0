"""Reads from a peer process on this host through the native core."""

from __future__ import annotations

import numpy as np

from llm_datadist import _native

INSTANCE = (0, 1)
NO_REF = (0, 0)


class Reading:
    """A peer process, own memory as large as its entry, and the calls that tests make."""

    def __init__(self, node, peer_process, pages, tools, count, *, sums):
        self.node = node
        self.sums = sums
        self.tools = tools
        self.peer = peer_process(count)
        self.host = self.peer.seen_from(node)
        self.own = pages(count)
        self.local_ref = node.open_entry(
            tools.u64(self.own.address), tools.u64(self.own.size), True
        )

    def read(self, first=0, count=None, **changes):
        count = self.own.count - first if count is None else count
        page = self.own.page
        steps = np.arange(first, first + count, dtype=np.uint64) * np.uint64(page)
        refs = {
            "local_ref": self.local_ref,
            "link_ref": INSTANCE,
            "cache_ref": self.peer.entry,
            "key_ref": NO_REF,
            "deadline_ns": self.tools.soon(),
        } | {name: value for name, value in changes.items() if name != "base"}
        return self.read_ranges(
            steps + np.uint64(self.own.address),
            steps + np.uint64(changes.get("base", self.peer.address)),
            np.full(count, page, dtype=np.uint64),
            **refs,
        )

    def read_ranges(self, local, remote, length, *arguments, **refs):
        rows = np.concatenate((local, remote, length))
        if not self.sums:
            return self.host.read(rows, *arguments, **refs)
        outcome, sums = self.host.read_and_sum(rows, *arguments, **refs)
        self.found = (local, length, np.frombuffer(sums, np.uint32))
        assert len(self.found[2]) == len(length)
        return outcome

    def has_every_byte(self, shift=0):
        """Whether all has arrived, and the checksums, if there are any, are those of it."""
        if self.sums:
            for address, length, found in zip(*self.found, strict=True):
                begin = int(address) - self.own.address
                data = self.own.bytes[begin : begin + int(length)].tobytes()
                assert found == _native.crc32c(data)
        return np.array_equal(self.own.bytes, self.expected(shift))

    def expected(self, shift=0):
        return (np.arange(self.own.size) // self.own.page % 251 + shift).astype(np.uint8)

    def write_all(self, value):
        self.own.bytes[:] = value
