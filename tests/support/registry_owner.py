"""An owner's registry over a node in memory, and a peer that reads its directory."""

from __future__ import annotations

import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._registry import CacheRegistry, DirectoryReader, Pool
from llm_datadist._types import (
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    Placement,
)
from llm_datadist.testing.in_memory_node import InMemoryNode

S = LLMStatusCode
OWN = 5
FAR = time.monotonic_ns() + 10**15
PLACEHOLDER = 2**64 - 1
POOL_ADDRESS = 1 << 32


def desc(num_tensors=2, shape=(4, 256), placement=Placement.DEVICE, **more):
    return CacheDesc(num_tensors, shape, DataType.DT_INT8, placement, **more)


def addresses(count=2, base=0x10000):
    return [base + 0x10000 * place for place in range(count)]


class Source:
    def __init__(self, node):
        self.node = node

    def version(self, _deadline_ns):
        return self.node.version()

    def read_log(self, offset, size, _deadline_ns):
        return self.node.read_log(offset, size)


class Listener:
    def __init__(self):
        self.memory = []

    def adopt(self, operation, layout, placement):
        return None

    def register(self, operation, layout, placement, device):
        self.memory.append((layout.starts, placement))

    def deregister(self, layout, placement, device):
        self.memory.remove((layout.starts, placement))


class Owner:
    """A registry, its node and pools, and a peer that reads its directory."""

    def __init__(self, guard_capacity=256, log_capacity=1 << 20, **options):
        self.node = InMemoryNode(guard_capacity, log_capacity)
        self.pool = Pool(POOL_ADDRESS, 16 << 10, 10)
        self.listener = Listener()
        pools = options.pop("pools", {Placement.DEVICE: self.pool})
        self.registry = CacheRegistry(
            self.node, pools=pools, listener=self.listener, log_capacity=log_capacity, **options
        )
        self.reader = DirectoryReader(Source(self.node), OWN)

    def seen(self, key):
        """What a peer gets for a key, None if there is nothing."""
        self.reader.refresh("pull_blocks", FAR)
        return self.reader.lookup(key)

    def seen_id(self, cache):
        return self.seen(CacheKeyByIdAndIndex(OWN, cache.cache_id))

    def pull(self, key):
        """What a pull by CacheKey does when it has all bytes: consumes the key."""
        return self.node.consume(*self.seen(key).key_ref)


def key(req_id, model_id=0):
    return CacheKey(OWN, req_id, model_id)


def refused(status, call, *args, match=None):
    with pytest.raises(LLMException, match=match) as error:
        call(*args)
    assert error.value.status_code is status
