"""Leases: a prefill side reuses its blocks only after all readers have released them.

The decode side leases the blocks of its request, pulls them, and releases them. The prefill side
takes them back into its free list when the lease has ended, however it ended, and for requests that
were never leased it looks at `leased_blocks` (the release check).
"""

import queue
import threading

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
from llm_datadist.leases import LeaseEnd

PREFILL, DECODE = 1, 2
DESC = CacheDesc(2, [8, 1024], DataType.DT_FLOAT)  # two tensors of 8 blocks


class Scheduler:
    """Gives out the blocks of the prefill side's cache, and takes them back."""

    def __init__(self, manager, cache):
        self.manager = manager
        self.cache = cache
        self.free = set(range(DESC.shape[0]))
        self.changed = threading.Condition()
        manager.on_lease_end(self.lease_ended)

    def take(self, count):
        """Return free blocks; waits for them if there are too few."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.free) >= count, 10)
            return [self.free.pop() for _ in range(count)]

    def give_back(self, blocks):
        """Free blocks; leased ones are freed when their leases end."""
        with self.changed:
            self.free |= set(blocks) - self.manager.leased_blocks(self.cache)
            self.changed.notify_all()

    def lease_ended(self, end: LeaseEnd):
        """Called by the library: released, expired, or the reader is gone."""
        self.give_back(end.blocks)


def instance(role, cluster_id, listen=None):
    config = LLMConfig()
    config.enable_cache_manager = True
    if listen is not None:
        config.listen_ip_info = listen
    made = LLMDataDist(role, cluster_id)
    made.init(config.generate_options())
    return made


def decode_requests(decode, cache, memory, requests):
    """Decode side: each request names blocks of the prefill side and their contents."""
    key = BlocksCacheKey(PREFILL)
    while (request := requests.get()) is not None:
        blocks, value, leased = request
        with decode.cache_manager.lease(key, blocks, ttl_ms=5000):
            leased.set()  # from here on the prefill side will not reuse them
            decode.cache_manager.pull_blocks(key, cache, blocks, list(range(len(blocks))))
        assert (memory[:, : len(blocks)] == value).all()


prefill = instance(LLMRole.PROMPT, PREFILL, "127.0.0.1:0")
decode = instance(LLMRole.DECODER, DECODE)
with prefill, decode:
    source, target = np.zeros((2, 2, *DESC.shape), np.float32)
    addrs = [[tensor.ctypes.data for tensor in tensors] for tensors in (source, target)]
    own = prefill.cache_manager
    cache = own.register_blocks_cache(DESC, addrs[0], BlocksCacheKey(PREFILL))
    scheduler = Scheduler(own, cache)
    dst_cache = decode.cache_manager.register_blocks_cache(DESC, addrs[1])

    peer = LLMClusterInfo()
    peer.append_local_ip_info("127.0.0.1", 0)
    peer.append_remote_ip_info(*prefill.listen_address)
    assert decode.link_clusters([peer])[0] == LLMStatusCode.LLM_SUCCESS

    requests = queue.Queue()
    reader = threading.Thread(target=decode_requests, args=(decode, dst_cache, target, requests))
    reader.start()
    for number in range(1, 21):  # 60 blocks in all, of 8
        blocks = scheduler.take(3)
        source[:, blocks] = number  # prefill
        leased = threading.Event()
        requests.put((blocks, number, leased))
        assert leased.wait(10)
    requests.put(None)
    reader.join()

    # Every block has come back.
    assert sorted(scheduler.take(8)) == list(range(8))
    assert own.leased_blocks(cache) == frozenset()
