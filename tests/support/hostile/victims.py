"""Instances with memory that peers may not access."""

from __future__ import annotations

import re
import secrets
import struct
from pathlib import Path

import numpy as np

from llm_datadist._registry.records import Added, decode_frames, encode_frame
from support.station import Station

BLOCKS, WORDS, TENSORS = 4, 512, 4
BLOCK_BYTES = WORDS * 8
SHAPE = {"blocks": BLOCKS, "words": WORDS}
EVERY = list(range(BLOCKS))


class Victim(Station):
    """A station with memory of the heap, beside its cache, that is full of its token."""

    def __init__(self, cluster_id, listen="127.0.0.1:0", **options):
        super().__init__(cluster_id, listen, **SHAPE, sync_kv_timeout=500, **options)
        self.token = secrets.token_bytes(16)
        size = BLOCKS * BLOCK_BYTES
        self.page = np.frombuffer(bytearray(self.token * (size // 16)), np.uint8)

        self.closed = np.frombuffer(bytearray(secrets.token_bytes(16) * (size // 4)), np.uint64)
        self.closed = self.closed.reshape(TENSORS, BLOCKS, WORDS)
        self._outside = self.page.tobytes(), self.closed.tobytes()
        self.manager.register_blocks_cache(
            self._desc, [each.ctypes.data for each in self.closed], remote_accessible=False
        )

    def page_address(self):
        return self.page.ctypes.data

    def closed_addresses(self):
        """Addresses of memory that peers may not access."""
        return [self.page_address(), self.closed.ctypes.data, self.closed[1].ctypes.data]

    def tokens(self):
        return [self.token, self._outside[1][:16]]

    def is_outside_as_it_was(self):
        return (self.page.tobytes(), self.closed.tobytes()) == self._outside

    def closed_entry(self):
        """The entry of the cache that is not accessible."""
        node = self.instance._engine.node.native
        log = node.read_log(0, node.version() & ((1 << 40) - 1))
        return tuple(entries_of(log)[-1].entry)

    def link_ref_of(self, other):
        """The guard of another instance's link to this one, on the page of the other."""
        return tuple(other.instance._engine.links.get(self.cluster_id, "test").data.own_link_ref)

    @staticmethod
    def peak_bytes(*, reset=False):
        """Peak memory of this process since the last reset."""
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10

    def mark(self):
        return self.token


def entries_of(directory):
    """Return the caches of a directory."""
    return [record for record in decode_frames(directory) if isinstance(record, Added)]


def directory_at(address, entry, key=66, *, shape=(BLOCKS, WORDS), tensors=TENSORS):
    """A directory whose one cache has all its tensors at one address; with its version."""
    record = Added(
        cache_id=1,
        entry=tuple(entry),
        is_blocks=True,
        num_tensors=tensors,
        shape=tuple(shape),
        data_type=10,
        placement=1,
        batch_dim_index=0,
        addrs=struct.pack("<Q", address % 2**64) * tensors,
        accessible=True,
        blocks_key=key,
    )
    log = encode_frame(record)
    return (2 << 40) | len(log), log
