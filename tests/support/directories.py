"""A peer's directory over a log in memory, its records, and its reader."""

from __future__ import annotations

import time

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._plan.layouts import dense
from llm_datadist._registry.reader import DirectoryReader
from llm_datadist._registry.records import Added, KeyRecord
from llm_datadist._registry.writer import DirectoryWriter
from llm_datadist._types import CacheKeyByIdAndIndex, DataType
from llm_datadist.testing.in_memory_node import InMemoryNode

PEER = 9
FAR = time.monotonic_ns() + 10**15
UNUSED_PREFIX = 2**64 - 1


class Source:
    """A log as a reader sees it; counts what it is asked."""

    def __init__(self, log):
        self.log = log
        self.version_calls = 0
        self.reads = []

    def version(self, _deadline_ns):
        self.version_calls += 1
        return self.log.version()

    def read_log(self, offset, size, _deadline_ns):
        self.reads.append((offset, size))
        return self.log.read_log(offset, size)


class Peer:
    def __init__(self, capacity=1 << 20):
        self.log = InMemoryNode(log_capacity=capacity)
        self.writer = DirectoryWriter(self.log, capacity)
        self.source = Source(self.log)
        self.reader = DirectoryReader(self.source, PEER)

    def refresh(self):
        return self.reader.refresh("pull_blocks", FAR)

    def resolve(self, key, fresh=False):
        return self.reader.resolve("pull_blocks", key, FAR, fresh=fresh)


def added(cache_id, *, is_blocks=True, shape=(4, 10), addrs=(4096, 8192), accessible=True, **more):
    return Added(
        cache_id=cache_id,
        entry=(cache_id * 2, 5),
        is_blocks=is_blocks,
        num_tensors=len(addrs),
        shape=shape,
        data_type=DataType.DT_FLOAT16.value,
        placement=1,
        batch_dim_index=more.pop("batch_dim_index", 0),
        addrs=np.array(addrs if accessible else [], "<u8").tobytes(),
        accessible=accessible,
        **more,
    )


def key_record(req_id, slot, guard):
    return KeyRecord(req_id, 0, UNUSED_PREFIX, slot, guard)


def layout(**change):
    """A layout that fits `added`: K and V of one layer, 10 elements a block."""
    fields = {"layers": range(7, 8), "kv_heads": 4, "heads": range(1, 2), "head_size": 5}
    return dense("NHD", **(fields | change), data_type=DataType.DT_FLOAT16, block_tokens=2)


def by_id(cache_id, index=0):
    return CacheKeyByIdAndIndex(PEER, cache_id, index)


def missing(peer, key, fresh=True):
    with pytest.raises(LLMException, match=r"peer cluster 9: the peer has no cache under") as error:
        peer.resolve(key, fresh)
    return error.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
