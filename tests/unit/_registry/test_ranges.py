"""Caches by memory, and marks on memory at fault."""

import threading

import pytest

from llm_datadist import CacheDesc, DataType
from llm_datadist._registry.local_cache import LocalCache
from llm_datadist._registry.ranges import MemoryRanges
from llm_datadist._types import Cache

UNIT, UNITS = 0x100, 4
DESC = CacheDesc(2, [UNITS, UNIT], DataType.DT_INT8)


def local(cache_id, addrs):
    return LocalCache.unregistered(Cache(cache_id, DESC, addrs, is_blocks_cache=True))


@pytest.fixture
def ranges():
    """Caches 1 and 2, which share a block of memory."""
    caches = {1: local(1, (0x10000, 0x10400)), 2: local(2, (0x10700, 0x20000))}
    return MemoryRanges(caches, threading.Lock())


def test_caches_are_found_by_any_byte(ranges):
    def found(addr, size):
        return [cache.cache_id for cache in ranges.overlapping(addr, size)]

    assert found(0x10000, 1) == [1]
    assert found(0x106FF, 2) == found(0x10700, 1) == [1, 2]
    assert found(0x10B00, 100) == found(0x20400, 1) == []
    assert found(0xFFFF, 1) == found(0x1FFFF, 1) == []
    assert found(0xFFFF, 2) == [1]


def test_a_range_is_covered_if_caches_hold_every_byte_of_it(ranges):
    assert ranges.covers(0x10000, 0xB00)
    assert not ranges.covers(0x10000, 0xB01)
    assert not ranges.covers(0xFFFF, 2)
    assert not ranges.covers(0x10000, 0x20000 - 0x10000 + UNIT), "there is a hole"


def test_a_mark_is_on_every_cache_of_the_memory_until_it_is_cleared(ranges):
    assert ranges.mark_faulted(0x10700, UNIT)
    assert not ranges.mark_faulted(0x10700, UNIT)
    assert [(cache.cache_id, piece.addr) for cache, piece in ranges.faulted()] == [
        (1, 0x10700),
        (2, 0x10700),
    ]
    ranges.clear_faulted(0x10600, UNIT)
    ranges.clear_faulted(0x10800, UNIT)
    assert len(ranges.faulted()) == 2
    ranges.clear_faulted(0x107FF, 1)
    assert ranges.faulted() == []
