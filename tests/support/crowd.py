"""Many instances in one process, each linked to the same peer; driven by a test."""

from __future__ import annotations

import time

import numpy as np

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMRole,
    LLMStatusCode,
)

BLOCKS, BLOCK_BYTES = 4, 4096
DESC = CacheDesc(1, [BLOCKS, BLOCK_BYTES], DataType.DT_UINT8)


class Member:
    """One instance with a small cache."""

    def __init__(self, cluster_id, listen=None, **options):
        config = LLMConfig()
        config.enable_cache_manager = True
        config.sync_kv_timeout = 20_000
        if listen is not None:
            config.listen_ip_info = listen
        for name, value in options.items():
            setattr(config, name, value)
        self.instance = LLMDataDist(LLMRole.MIX, cluster_id)
        self.instance.init(config.generate_options())
        self.data = np.full((BLOCKS, BLOCK_BYTES), cluster_id % 251, np.uint8)
        self.cache = self.instance.cache_manager.register_blocks_cache(
            DESC, [self.data.ctypes.data], BlocksCacheKey(cluster_id)
        )

    def link(self, address):
        """Link a listener; return the seconds that it took."""
        info = LLMClusterInfo()
        info.append_local_ip_info("127.0.0.1", 0)
        info.append_remote_ip_info(*address)
        began = time.monotonic()
        overall, _ = self.instance.link_clusters([info], 60_000)
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


def serve(here, first_id, count, address, peer, options):
    """Body of another process: make the instances, link them, do what the test says."""
    members = [Member(first_id + number, **options) for number in range(count)]
    here.receive(600)  # until the test has looked at what there is without links
    here.send([member.link(address) for member in members])
    while (order := here.receive(600)) != "close":
        assert order == "pull"
        here.send([member.pull(peer) for member in members])
    for member in members:
        member.close()
    here.send(True)
