"""Many instances in one process, each linked to the same peer; driven by a test."""

from __future__ import annotations

import time

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMStatusCode,
)
from support.setup import info_of, started

BLOCKS, BLOCK_BYTES = 4, 4096
DESC = CacheDesc(1, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)


class Member:
    """One instance with a small cache."""

    def __init__(self, cluster_id, listen=None, **options):
        options = {"sync_kv_timeout": 20_000, **options}
        self.instance = started(cluster_id, listen=listen, **options)
        self.data = np.full((BLOCKS, BLOCK_BYTES), cluster_id % 251, np.uint8)
        self.cache = self.instance.cache_manager.register_blocks_cache(
            DESC, [self.data.ctypes.data], BlocksCacheKey(cluster_id)
        )

    def link(self, address):
        """Link a listener; return the seconds that it took."""
        began = time.monotonic()
        overall, _ = self.instance.link_clusters([info_of(address)], 60_000)
        assert overall == LLMStatusCode.LLM_SUCCESS, overall
        return time.monotonic() - began

    def pull(self, peer):
        """Pull the peer's first block into the last one; return what is there now."""
        self.instance.cache_manager.pull_blocks(BlocksCacheKey(peer), self.cache, [0], [BLOCKS - 1])
        assert (self.data[-1] == self.data[-1, 0]).all()
        return int(self.data[-1, 0])

    def close(self):
        self.instance.finalize()
        self.cache = None


def serve(member, first_id, count, address, peer, options):
    """Body of another process: make the instances, link them, execute the test's commands."""
    members = [Member(first_id + number, **options) for number in range(count)]
    member.receive(600)  # until the test has looked at what there is without links
    member.send([each.link(address) for each in members])
    while (order := member.receive(600)) != "close":
        assert order == "pull"
        member.send([each.pull(peer) for each in members])
    for each in members:
        each.close()
    member.send(True)
