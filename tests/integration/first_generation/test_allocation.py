"""Caches of the pool: ids, addresses, and how long they live (api.md 8)."""

import ctypes
import gc
import threading

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    KvCache,
    LLMRole,
)
from support.first_generation import POOL, desc_of, filled, link, values
from support.instances import eventually, failing


def pool_of(size):
    return CacheDesc(1, [1, size], DataType.DT_INT8)


def live(instance):
    return instance.stats().caches.allocated


def test_ids_count_allocations(instance):
    """1, 2, ... in order, of either kind, never used again."""
    for role in (LLMRole.PROMPT, LLMRole.DECODER):
        pool = instance(role, 1).kv_cache_manager
        kept = [pool.allocate_cache(desc_of()), pool.allocate_blocks_cache(desc_of())]
        pool.deallocate_cache(kept[0])
        with failing("LLM_DEVICE_OUT_OF_MEMORY", "allocate_cache"):
            pool.allocate_cache(pool_of(POOL))
        kept.append(pool.allocate_cache(desc_of()))
        assert [cache.cache_id for cache in kept] == [1, 2, 3]
        assert [cache.is_blocks_cache for cache in kept] == [False, True, False]
        assert all(isinstance(cache, KvCache) for cache in kept)


def test_addresses_are_real_and_writable(linked, managers):
    """per_device_tensor_addrs[0], as programs write the cache through them."""
    prompt, decoder = managers
    source = prompt.allocate_cache(desc_of(units=1))
    target = decoder.allocate_cache(desc_of(units=1))
    (addrs,) = source.per_device_tensor_addrs
    assert len(addrs) == 2
    for addr in addrs:
        ctypes.memset(addr, 5, 512)
    decoder.pull_cache(CacheKeyByIdAndIndex(1, source.cache_id), target)
    for addr in target.per_device_tensor_addrs[0]:
        assert ctypes.string_at(addr, 512) == b"\5" * 512


def test_the_last_reference_ends_the_hold_of_the_id(instance):
    pool = instance(LLMRole.DECODER, 1).kv_cache_manager
    for _ in range(3):
        cache = pool.allocate_cache(pool_of(POOL))
        same = cache
        del cache
        with failing("LLM_DEVICE_OUT_OF_MEMORY", "allocate_blocks_cache"):
            pool.allocate_blocks_cache(pool_of(POOL))
        del same
        blocks = pool.allocate_blocks_cache(pool_of(POOL))
        del blocks


def test_peers_see_at_once_that_the_last_reference_is_gone(linked, managers):
    prompt, decoder = managers
    target = decoder.allocate_cache(desc_of())
    source = filled(prompt.allocate_cache(desc_of()), 3)
    key = CacheKeyByIdAndIndex(1, source.cache_id)
    decoder.pull_cache(key, target)
    del source
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache", peer=1):
        decoder.pull_cache(key, target)


def test_the_hold_of_the_id_ends_once(linked, managers):
    """deallocate_cache and then the end of the object: the key's hold stays."""
    prompt, decoder = managers
    key, other = CacheKey(1, 1), CacheKey(1, 2)
    source = filled(prompt.allocate_cache(desc_of(), [key, other]), 10)
    target = decoder.allocate_cache(desc_of())
    prompt.deallocate_cache(source)
    prompt.deallocate_cache(source)
    del source
    decoder.pull_cache(key, target, 0)
    decoder.pull_cache(other, target, 1)
    assert values(target)[:2] == [10, 11]


def test_a_freed_cache_serves_no_call(managers):
    pool = managers[0]
    cache = pool.allocate_cache(desc_of())
    pool.deallocate_cache(cache)
    for call in (
        lambda: pool.get_cache_tensors(cache),
        lambda: pool.copy_cache(cache, cache, 0, 1),
    ):
        with failing("LLM_KV_CACHE_NOT_EXIST", call.__code__.co_names[-1]):
            call()


def test_views_keep_the_cache(instance):
    """A view of freed memory would write into another cache."""
    one = instance(LLMRole.DECODER, 1)
    pool = one.kv_cache_manager
    view = pool.get_cache_tensors(pool.allocate_cache(pool_of(POOL)))[0].numpy()
    assert live(one) == 1
    view[:] = 1
    del view
    assert live(one) == 0


def test_a_cycle_of_references_ends_with_the_garbage_collector(instance):
    one = instance(LLMRole.DECODER, 1)
    holder = [one.kv_cache_manager.allocate_cache(desc_of())]
    holder.append(holder)
    del holder
    gc.collect()
    assert live(one) == 0


def test_garbage_collected_under_a_lock_of_the_library(instance):
    """The collector may run anywhere, also in the library; the hold ends soon after."""
    one = instance(LLMRole.DECODER, 1)
    registry = one._engine.registry
    cache = one.kv_cache_manager.allocate_cache(desc_of())
    holder = [cache, None]
    holder[1] = holder
    del cache, holder
    node = registry._tables._node

    class Collecting:
        """The registry's native node; opens guards under the registry's lock."""

        def __getattr__(self, name):
            gc.collect()
            return getattr(node, name)

    gc.disable()
    try:
        registry._tables._node = Collecting()
        with failing("LLM_DEVICE_OUT_OF_MEMORY", "allocate_cache"):
            one.kv_cache_manager.allocate_cache(pool_of(POOL + 1))
        kept = one.kv_cache_manager.allocate_cache(desc_of())
    finally:
        registry._tables._node = node
        gc.enable()
    eventually(lambda: live(one) == 1)
    assert kept.cache_id == 2


def test_a_reference_that_outlives_the_instance(instance):
    with instance(LLMRole.DECODER, 1) as one:
        cache = one.kv_cache_manager.allocate_cache(desc_of())
    del cache


def test_references_dropped_by_threads(instance):
    one = instance(LLMRole.DECODER, 1)
    pool = one.kv_cache_manager

    def churn():
        for _ in range(100):
            pool.allocate_cache(desc_of())

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: live(one) == 0)


def test_a_blocks_cache_ends_with_deallocate_cache(linked, managers):
    prompt, decoder = managers
    source = filled(prompt.allocate_blocks_cache(desc_of(), BlocksCacheKey(1, 3)), 20)
    target = decoder.allocate_blocks_cache(desc_of())
    decoder.pull_blocks(BlocksCacheKey(1, 3), target, [3], [0])
    assert values(target)[0] == 23
    prompt.deallocate_cache(source)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        decoder.pull_blocks(BlocksCacheKey(1, 3), target, [3], [0])


def test_a_cache_of_another_instance(managers):
    prompt, decoder = managers
    cache = prompt.allocate_cache(desc_of())
    with failing("LLM_PARAM_INVALID", "deallocate_cache", "another instance"):
        decoder.deallocate_cache(cache)


def test_a_retry_succeeds_when_a_pull_has_freed_enough(instance):
    """The pool is full of caches that only their keys hold."""
    prompt, decoder = instance(LLMRole.PROMPT, 1), instance(LLMRole.DECODER, 2)
    link(decoder, prompt)
    half = CacheDesc(1, [1, POOL // 2], DataType.DT_INT8)
    target = decoder.kv_cache_manager.allocate_cache(half)
    for number in range(2):
        source = prompt.kv_cache_manager.allocate_cache(half, [CacheKey(1, number)])
        source.tensor(0)[:] = number + 1
        prompt.kv_cache_manager.deallocate_cache(source)
    for number in range(2):
        for _ in range(2):
            with failing("LLM_DEVICE_OUT_OF_MEMORY", "allocate_cache", "0 free"):
                prompt.kv_cache_manager.allocate_cache(half)
        decoder.kv_cache_manager.pull_cache(CacheKey(1, number), target)
        assert np.all(target.tensor(0) == number + 1)
        kept = prompt.kv_cache_manager.allocate_cache(half, [CacheKey(1, 7 + number)])
        prompt.kv_cache_manager.deallocate_cache(kept)


@pytest.mark.parametrize("keys", [[], [CacheKey(1, 2**64 - 1)], [CacheKey(1, 30)]])
def test_a_failed_allocation_changes_nothing(managers, keys):
    pool = managers[0]
    kept = pool.allocate_cache(desc_of(), [CacheKey(1, 31)])
    with failing("LLM_PARAM_INVALID", "allocate_cache", "bound"):
        pool.allocate_cache(desc_of(), [*keys, CacheKey(1, 31)])
    with failing("LLM_DEVICE_OUT_OF_MEMORY", "allocate_cache"):
        pool.allocate_cache(pool_of(2 * POOL), keys)
    assert pool.allocate_cache(desc_of(), keys).cache_id == kept.cache_id + 1
    for key in [*keys, CacheKey(1, 31)]:
        pool.remove_cache_key(key)
