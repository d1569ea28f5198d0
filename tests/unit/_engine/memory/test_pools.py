"""Pools of an instance."""

import os

import pytest

from llm_datadist import LLMException
from llm_datadist._engine.memory.pools import MemoryPools
from llm_datadist._errors import LLMStatusCode
from llm_datadist._options.settings import Pool
from llm_datadist._types import Placement
from llm_datadist._types.stats import PoolStats

INSTALLED = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_each_placement_has_the_pool_of_its_option():
    pools = MemoryPools()
    pools.add("mem_pool_cfg", None, Placement.DEVICE)
    config = Pool(memory_size=5 << 12, page_shift=12)
    pools.add("host_mem_pool_cfg", config, Placement.HOST)
    assert list(pools.by_placement) == [Placement.HOST]
    (memory,) = pools.memories
    pool = pools.by_placement[Placement.HOST]
    assert pool.statistics().size == memory.size == 5 << 12
    assert pool.allocate(1, 1) == (memory.address,)
    pools.close()
    pools.close()


def test_a_pool_that_cannot_be_had_is_named():
    pools = MemoryPools()
    config = Pool(memory_size=INSTALLED + 1, page_shift=16)
    with pytest.raises(LLMException, match=r"mem_pool_cfg cannot be had.*ask for less") as raised:
        pools.add("mem_pool_cfg", config, Placement.DEVICE)
    assert raised.value.status_code is LLMStatusCode.LLM_OUT_OF_MEMORY
    assert pools.memories == []


def test_the_use_of_each_pool_is_counted():
    pools = MemoryPools()
    pools.add("mem_pool_cfg", Pool(memory_size=8 << 12, page_shift=12), Placement.DEVICE)
    pools.by_placement[Placement.DEVICE].allocate(1, 3)
    assert pools.stats() == (PoolStats("device", 8 << 12, 3 << 12, 5 << 12, 5 << 12, 3),)
    pools.close()


def test_a_pool_of_both_placements_is_counted_once():
    pools = MemoryPools()
    pools.add("shared", Pool(memory_size=1 << 12, page_shift=12), *Placement)
    assert [use.name for use in pools.stats()] == ["shared"]
    pools.close()
