"""Which options select the first generation, and what an instance in it has (api.md 8)."""

import gc
import os
from pathlib import Path

import pytest

from llm_datadist import CacheDesc, DataType, KvCacheManager, LLMDataDist, LLMRole, Placement
from llm_datadist.testing import leaks_since, snapshot
from support.first_generation import POOL, desc_of, options_of
from support.instances import failing


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("more", [{}, {"enable_cache_manager": False}])
def test_the_mode_is_selected_by_options(instance, more):
    """Neither the cache manager nor local_comm_res."""
    one = instance(LLMRole.PROMPT, 1, **more)
    manager = one.kv_cache_manager
    assert isinstance(manager, KvCacheManager)
    assert one.kv_cache_manager is manager
    with failing("LLM_FEATURE_NOT_ENABLED", "cache_manager", "kv_cache_manager property"):
        _ = one.cache_manager


@pytest.mark.parametrize("more", [{"enable_cache_manager": True}, {"local_comm_res": ""}])
def test_the_cache_manager_excludes_it(instance, more):
    one = instance(LLMRole.PROMPT, 1, **more)
    assert one.cache_manager
    with failing("LLM_FEATURE_NOT_ENABLED", "kv_cache_manager", "cache_manager property"):
        _ = one.kv_cache_manager


def test_it_is_initialized_from_init_to_finalize():
    one = LLMDataDist(LLMRole.DECODER, 1)
    with pytest.raises(RuntimeError, match="not initialized"):
        _ = one.kv_cache_manager
    with one:
        one.init(options_of(LLMRole.DECODER))
        manager = one.kv_cache_manager
        assert manager.is_initialized() is True
    assert manager.is_initialized() is False
    with pytest.raises(RuntimeError, match="not initialized"):
        _ = one.kv_cache_manager
    with pytest.raises(RuntimeError, match="not initialized"):
        manager.allocate_cache(desc_of())


def test_a_prompt_needs_a_listen_address():
    with failing("LLM_PARAM_INVALID", "init", "llm.listenIpInfo", "Prompt", "listen_ip_info"):
        LLMDataDist(LLMRole.PROMPT, 1).init(options_of(LLMRole.PROMPT, listen=None))


def test_a_mix_serves_where_it_has_an_address(instance):
    assert instance(LLMRole.MIX, 1).listen_address is not None
    assert instance(LLMRole.MIX, 2, listen=None).listen_address is None


def test_a_decoder_listens_nowhere(instance):
    """Both sides of one machine may be given the same options."""
    prompt = instance(LLMRole.PROMPT, 1)
    address = "{}:{}".format(*prompt.listen_address)
    assert instance(LLMRole.DECODER, 2, listen_ip_info=address).listen_address is None


def test_the_pool_is_a_fraction_of_the_size(instance):
    """ge.flowGraphMemMaxSize x mem_utilization bytes, to the last of them."""
    pool = instance(LLMRole.DECODER, 1, pool=POOL, mem_utilization=0.25).kv_cache_manager
    with failing("LLM_DEVICE_OUT_OF_MEMORY", "allocate_cache", POOL // 4, "flowGraphMemMaxSize"):
        pool.allocate_cache(CacheDesc(1, [1, POOL // 4 + 1], DataType.DT_INT8))
    assert pool.allocate_cache(CacheDesc(1, [1, POOL // 4], DataType.DT_INT8))


def test_both_placements_share_the_pool(instance):
    pool = instance(LLMRole.DECODER, 1).kv_cache_manager
    half = [
        pool.allocate_cache(CacheDesc(1, [1, POOL // 2], DataType.DT_INT8, placement))
        for placement in Placement
    ]
    assert len(half) == 2
    for placement in Placement:
        with failing("LLM_DEVICE_OUT_OF_MEMORY", "allocate_blocks_cache"):
            pool.allocate_blocks_cache(CacheDesc(1, [1, 1], DataType.DT_INT8, placement))


def test_an_empty_pool_is_full(instance):
    pool = instance(LLMRole.DECODER, 1, mem_utilization=0.0).kv_cache_manager
    with failing("LLM_DEVICE_OUT_OF_MEMORY", "allocate_cache", "0 free"):
        pool.allocate_cache(desc_of())


def test_a_pool_larger_than_the_machine_cannot_be_had():
    with failing("LLM_OUT_OF_MEMORY", "init", "ge.flowGraphMemMaxSize"):
        LLMDataDist(LLMRole.DECODER, 1).init(options_of(LLMRole.DECODER, pool=1 << 50))


def test_pages_are_taken_when_they_are_touched(instance):
    """The pool without a size is half of the machine's memory, and costs nothing yet."""
    gc.collect()
    before = resident()
    pool = instance(LLMRole.PROMPT, 1, pool=None).kv_cache_manager
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with failing("LLM_DEVICE_OUT_OF_MEMORY", "allocate_cache", "free"):
        pool.allocate_cache(CacheDesc(1, [1, installed // 2 + 1], DataType.DT_INT8))
    cache = pool.allocate_cache(CacheDesc(1, [1, installed // 2], DataType.DT_INT8))
    assert resident() - before < 64 << 20
    cache.tensor(0)[0, -1] = 7
    assert resident() - before < 64 << 20


def test_a_buffer_pool_neither_caps_nor_refuses(instance):
    """llm.BufPoolCfg with a largest buffer of 8 KiB."""
    text = '{"buf_cfg": [{"total_size": 65536, "blk_size": 256, "max_buf_size": 8192}]}'
    pool = instance(LLMRole.DECODER, 1, buf_pool_cfg=text).kv_cache_manager
    assert pool.allocate_cache(CacheDesc(1, [1, POOL], DataType.DT_INT8))
    with failing("LLM_PARAM_INVALID", "init", "llm.BufPoolCfg"):
        instance(LLMRole.DECODER, 2, buf_pool_cfg="[]")


def test_finalize_leaves_nothing(instance):
    before = snapshot()
    with LLMDataDist(LLMRole.PROMPT, 1) as one:
        one.init(options_of(LLMRole.PROMPT))
        cache = one.kv_cache_manager.allocate_cache(desc_of())
        assert cache.cache_id == 1
    assert leaks_since(before) == []
    with one:
        one.init(options_of(LLMRole.PROMPT))
        del cache  # of the former init: it is no hold of this one's cache 1
        again = one.kv_cache_manager.allocate_cache(desc_of())
        assert again.cache_id == 1
