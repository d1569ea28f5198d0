"""The owner's registry over a node in memory; what peers see is read through a directory reader."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import pytest

from llm_datadist._registry import Pool
from llm_datadist._types import (
    BlocksCacheKey,
    Cache,
    CacheKey,
    Placement,
)
from support.registry_owner import (
    OWN,
    PLACEHOLDER,
    Owner,
    S,
    addresses,
    desc,
    key,
    refused,
)


@pytest.fixture
def owner():
    return Owner()


# ---- registering


def test_ids_count_from_1_over_both_kinds(owner):
    registry = owner.registry
    caches = [
        registry.register_cache(desc(), addresses()),
        registry.register_blocks_cache(desc(), addresses()),
        registry.allocate_cache(desc()),
        registry.allocate_blocks_cache(desc()),
    ]
    assert [cache.cache_id for cache in caches] == [1, 2, 3, 4]
    assert [cache.is_blocks_cache for cache in caches] == [False, True, False, True]
    assert caches[0].tensor_addrs == addresses()
    refused(S.LLM_PARAM_INVALID, registry.register_cache, desc(1), [1], [key(1)] * 5)
    assert registry.register_cache(desc(), addresses()).cache_id == 5


def test_a_registered_cache_is_published(owner):
    cache = owner.registry.register_blocks_cache(desc(), addresses(), BlocksCacheKey(OWN, 3))
    remote = owner.seen(BlocksCacheKey(OWN, 3)).cache
    local = owner.registry.find("pull_blocks", cache)
    assert remote.ref == local.ref
    remote.check()
    assert remote.layout.starts == tuple(addresses())
    assert owner.node.ranges(*local.ref) == [(addr, 1024) for addr in addresses()]
    assert local.layout.unit_bytes == 256
    assert local.desc == desc()


@pytest.mark.parametrize(
    ("placement", "given", "accessible"),
    [
        (Placement.DEVICE, None, True),
        (Placement.HOST, None, False),
        (Placement.DEVICE, False, False),
        (Placement.HOST, True, True),
    ],
)
def test_who_may_touch_a_cache(owner, placement, given, accessible):
    cache = owner.registry.register_cache(desc(placement=placement), addresses(), (), given)
    assert owner.seen_id(cache).cache.accessible is accessible
    assert owner.registry.find("x", cache).accessible is accessible


def test_what_a_peer_may_not_access_is_not_found_by_its_entry(owner):
    """Otherwise a peer's notice of a fault could mark it."""
    caches = [
        owner.registry.register_cache(desc(), [address], remote_accessible=accessible)
        for address, accessible in ((0x10000, True), (0x20000, False))
    ]
    shared, private = (owner.registry.get(cache.cache_id) for cache in caches)
    assert owner.registry.accessible_at(shared.ref) is shared
    assert owner.registry.accessible_at((shared.ref[0], shared.ref[1] + 2)) is None
    assert owner.registry.accessible_at(private.ref) is None


def test_the_sum_of_addresses_is_limited():
    owner = Owner(max_registered_addrs=5)
    registry = owner.registry
    first = registry.register_cache(desc(3), addresses(3))
    registry.allocate_cache(desc(3))
    refused(
        S.LLM_PARAM_INVALID,
        registry.register_cache,
        desc(3),
        addresses(3),
        match="6 addresses in sum, the limit is 5",
    )
    registry.register_blocks_cache(desc(2), addresses(2))
    registry.unregister_cache(first.cache_id)
    registry.register_cache(desc(3), addresses(3))
    assert registry.stats().registered_addrs == 5


@pytest.mark.expects_log("model_id 7 now names cache 2; cache 1 is reachable by its id only")
def test_the_same_blocks_key_again_goes_over(owner):
    registry = owner.registry
    blocks_key = BlocksCacheKey(OWN, 7)
    first = registry.register_blocks_cache(desc(), addresses(), blocks_key)
    second = registry.register_blocks_cache(desc(), addresses(), blocks_key)
    assert owner.seen(blocks_key).cache.cache_id == second.cache_id
    assert owner.seen_id(first) is not None
    registry.unregister_cache(first.cache_id)
    assert owner.seen(blocks_key).cache.cache_id == second.cache_id
    registry.unregister_cache(second.cache_id)
    assert owner.seen(blocks_key) is None


def test_unregistering_is_final_and_forgets_everything(owner):
    registry = owner.registry
    cache = registry.register_cache(desc(), addresses(), [key(1), key(2)])
    local = registry.find("x", cache)
    registry.unregister_cache(cache.cache_id)
    assert local.closed.is_set()
    assert owner.node.statistics() == (0, 0, 0)
    assert owner.seen_id(cache) is None
    assert owner.seen(key(1)) is None
    assert owner.listener.memory == []
    registry.unregister_cache(cache.cache_id)
    registry.unregister_cache(12345)
    refused(S.LLM_KV_CACHE_NOT_EXIST, registry.find, "copy_cache", cache)


class Memory:
    """What owns the memory of a cache."""


def test_the_owner_of_memory_lives_until_no_peer_can_touch_it(owner):
    registry, held = owner.registry, Memory()
    alive = weakref.ref(held)
    cache = registry.register_blocks_cache(desc(), addresses(), memory=held)
    del held
    close_entry, at_close = owner.node.close_entry, []

    def watched(index, value):
        at_close.append(alive() is not None)
        return close_entry(index, value)

    owner.node.close_entry = watched
    registry.unregister_cache(cache.cache_id)
    assert at_close == [True]
    assert alive() is None


def test_memory_that_could_not_be_withdrawn_is_kept(owner):
    registry, held = owner.registry, Memory()
    alive = weakref.ref(held)
    cache = registry.register_cache(desc(), addresses(), memory=held)
    del held

    def interrupted(index, value):
        raise KeyboardInterrupt

    owner.node.close_entry = interrupted
    with pytest.raises(KeyboardInterrupt):
        registry.unregister_cache(cache.cache_id)
    registry.unregister_cache(cache.cache_id)
    gc.collect()
    assert alive() is not None


def test_an_unregister_of_another_thread_is_waited_for(owner):
    registry = owner.registry
    cache = registry.register_cache(desc(), addresses())
    entered, proceed = threading.Event(), threading.Event()
    close_entry = owner.node.close_entry

    def slow_close(index, value):
        entered.set()
        proceed.wait(10)
        return close_entry(index, value)

    owner.node.close_entry = slow_close
    threads = [
        threading.Thread(target=registry.unregister_cache, args=(cache.cache_id,)) for _ in range(2)
    ]
    threads[0].start()
    entered.wait(10)
    threads[1].start()
    other = registry.register_cache(desc(), addresses())  # nobody else waits
    threads[1].join(0.02)
    assert threads[1].is_alive()
    proceed.set()
    for thread in threads:
        thread.join(10)
    assert owner.node.statistics().live_entries == 1
    assert registry.get(other.cache_id) is not None


def test_kinds_of_caches_are_not_mixed_up(owner):
    registry = owner.registry
    registered = registry.register_cache(desc(), addresses())
    allocated = registry.allocate_cache(desc())
    refused(S.LLM_PARAM_INVALID, registry.unregister_cache, allocated.cache_id, match="deallocate")
    refused(
        S.LLM_PARAM_INVALID, registry.deallocate, "deallocate_cache", registered, match="unregister"
    )


# ---- keys


def test_keys_name_slots_with_placeholders_and_duplicates(owner):
    keys = [key(1), key(PLACEHOLDER), key(2), key(1)]
    cache = owner.registry.register_cache(desc(), addresses(), keys)
    assert owner.seen(key(1)).slot == 3
    assert owner.seen(key(2)).slot == 2
    assert owner.seen(key(PLACEHOLDER)) is None
    assert owner.registry.stats().cache_keys == 2
    assert owner.seen(key(1)).cache.cache_id == cache.cache_id


def test_a_bound_key_is_refused_and_nothing_changed(owner):
    registry = owner.registry
    registry.register_cache(desc(), addresses(), [key(1)])
    before = owner.node.statistics()
    for call, more in ((registry.register_cache, (addresses(),)), (registry.allocate_cache, ())):
        refused(
            S.LLM_PARAM_INVALID, call, desc(), *more, [key(2), key(1)], match="bound by cache 1"
        )
    assert owner.node.statistics() == before
    assert owner.pool.statistics().num_allocations == 0
    assert len(owner.listener.memory) == 1
    registry.register_cache(desc(), addresses(), [key(1, model_id=1), key(2)])


def test_too_many_keys(owner):
    refused(
        S.LLM_PARAM_INVALID,
        owner.registry.allocate_cache,
        desc(),
        [key(i) for i in range(5)],
        match="5 cache_keys for 4 slots",
    )


def test_a_consumed_key_can_be_bound_again(owner):
    registry = owner.registry
    first = registry.register_cache(desc(), addresses(), [key(1)])
    stale = owner.seen(key(1)).key_ref
    assert owner.pull(key(1))
    second = registry.register_cache(desc(), addresses(), [key(1)])
    assert owner.seen(key(1)).cache.cache_id == second.cache_id
    assert owner.seen_id(first) is not None
    assert not owner.node.consume(*stale)


def test_removing_a_key(owner):
    registry = owner.registry
    cache = registry.register_cache(desc(), addresses(), [key(1), key(2)])
    registry.remove_cache_key(key(1))
    registry.remove_cache_key(key(1))
    registry.remove_cache_key(key(77))
    assert owner.seen(key(1)) is None
    assert owner.seen(key(2)).slot == 1
    assert registry.get(cache.cache_id) is not None
    assert owner.node.statistics() == (1, 1, 2)


# ---- allocating


def test_no_pool_of_that_placement(owner):
    refused(
        S.LLM_FEATURE_NOT_ENABLED,
        owner.registry.allocate_cache,
        desc(placement=Placement.HOST),
        match=r"llm\.HostMemPoolConfig",
    )
    refused(
        S.LLM_FEATURE_NOT_ENABLED,
        Owner(pools={}).registry.allocate_blocks_cache,
        desc(),
        match=r"llm\.MemPoolConfig",
    )


def test_allocated_caches_come_from_the_pool_of_their_placement():
    host = Pool(1 << 40, 1 << 20, 16)
    owner = Owner(pools={Placement.DEVICE: Pool(1 << 32, 1 << 20, 16), Placement.HOST: host})
    cache = owner.registry.allocate_blocks_cache(desc(placement=Placement.HOST))
    assert cache.tensor_addrs == [1 << 40, (1 << 40) + 65536]
    assert owner.seen_id(cache).cache.accessible
    assert host.statistics().num_allocations == 2


def test_a_full_pool_says_what_is_left(owner):
    owner.registry.allocate_cache(desc(14, (1, 1024)))
    refused(
        S.LLM_OUT_OF_MEMORY,
        owner.registry.allocate_cache,
        desc(1, (3, 1000)),
        match="3072 bytes asked, 2048 free, largest free run 2048",
    )


def test_deallocating_frees_at_once_and_twice_is_nothing(owner):
    cache = owner.registry.allocate_blocks_cache(desc(), BlocksCacheKey(OWN))
    owner.registry.deallocate("deallocate_blocks_cache", cache)
    owner.registry.deallocate("deallocate_blocks_cache", cache)
    assert owner.pool.statistics().num_allocations == 0
    assert owner.node.statistics() == (0, 0, 0)
    assert owner.seen(BlocksCacheKey(OWN)) is None
    refused(S.LLM_KV_CACHE_NOT_EXIST, owner.registry.find, "copy_blocks", cache)


def test_keys_outlive_deallocation(owner):
    registry = owner.registry
    cache = registry.allocate_cache(desc(), [key(1), key(2)])
    registry.deallocate("deallocate_cache", cache)
    registry.deallocate("deallocate_cache", cache)
    assert owner.seen_id(cache) is None
    assert owner.pool.statistics().num_allocations == 2
    assert owner.pull(key(1))
    assert registry.reap() == 1
    assert owner.seen(key(1)) is None
    assert owner.seen(key(2)).slot == 1
    registry.remove_cache_key(key(2))
    assert owner.pool.statistics().num_allocations == 0
    assert owner.node.statistics() == (0, 0, 0)


def test_the_id_outlives_the_keys(owner):
    cache = owner.registry.allocate_cache(desc(), [key(1)])
    owner.pull(key(1))
    owner.registry.reap()
    assert owner.seen_id(cache) is not None
    owner.registry.deallocate("deallocate_cache", cache)
    assert owner.pool.statistics().num_allocations == 0


def test_consumed_keys_are_reaped_before_the_pool_is_full(owner):
    registry = owner.registry
    cache = registry.allocate_cache(desc(16, (1, 1024)), [key(1)])
    registry.deallocate("deallocate_cache", cache)
    owner.pull(key(1))
    again = registry.allocate_cache(desc(16, (1, 1024)))
    assert again.tensor_addrs == cache.tensor_addrs


def test_pages_return_after_the_entry_is_closed(owner):
    cache = owner.registry.allocate_cache(desc(16, (1, 1024)))
    free_at_close = []
    close_entry = owner.node.close_entry

    def watched(index, value):
        free_at_close.append(owner.pool.statistics().free)
        return close_entry(index, value)

    owner.node.close_entry = watched
    owner.registry.deallocate("deallocate_cache", cache)
    assert free_at_close == [0]
    assert owner.pool.statistics().free == 16 << 10


def test_caches_of_others(owner):
    foreign = Owner().registry.allocate_cache(desc())
    for call in (owner.registry.deallocate, owner.registry.find):
        refused(S.LLM_PARAM_INVALID, call, "copy_cache", foreign, match="another instance")
    wrapped = Cache.create_cpu_cache(desc(placement=Placement.HOST), addresses())
    owner.registry.deallocate("deallocate_cache", wrapped)
    local = owner.registry.find("swap_blocks", wrapped)
    assert local.ref == (0, 0)
    assert local.layout.starts == tuple(addresses())


# ---- limits, the end


def test_running_out_of_guards_changes_nothing():
    owner = Owner(guard_capacity=4)
    owner.registry.register_cache(desc(), addresses())
    refused(
        S.LLM_OUT_OF_MEMORY, owner.registry.allocate_cache, desc(), [key(1), key(2)],
        match="no room for another cache",
    )  # fmt: skip
    assert owner.node.statistics() == (1, 0, 1)
    assert owner.pool.statistics().num_allocations == 0
    assert owner.registry.allocate_cache(desc(), [key(1)]).cache_id == 2


def test_running_out_of_directory_changes_nothing():
    owner = Owner(log_capacity=100)
    owner.registry.register_cache(desc(), addresses())
    refused(S.LLM_OUT_OF_MEMORY, owner.registry.register_cache, desc(), addresses())
    assert owner.node.statistics() == (1, 0, 1)


def test_close_ends_everything(owner):
    registry = owner.registry
    registry.register_cache(desc(), addresses(), [key(1)])
    registry.allocate_cache(desc(), [key(2)])
    registry.close()
    registry.close()
    assert owner.node.statistics() == (0, 0, 0)
    assert owner.pool.statistics().num_allocations == 0
    refused(S.LLM_ENGINE_FINALIZED, registry.register_cache, desc(), addresses())
    assert owner.listener.memory == []


# ---- remapping


def test_a_remap_gives_new_entries(owner):
    registry = owner.registry
    cache = registry.register_cache(desc(), addresses())
    gone = registry.find("x", registry.register_cache(desc(), addresses()))
    registry.unregister_cache(gone.cache_id)
    local = registry.find("x", cache)
    before = owner.seen_id(cache).cache.ref
    registry.remap([local, gone])
    index, value = before
    assert local.ref == (index, value + 2)
    assert owner.seen_id(cache).cache.ref == local.ref
    registry.unregister_cache(cache.cache_id)
    assert owner.node.statistics() == (0, 0, 0)


@pytest.mark.parametrize("fails", [False, True])
def test_caches_rest_while_their_memory_is_replaced(owner, fails):
    """And live on afterwards, whatever comes of it; one that ended before does not."""
    registry = owner.registry
    local = registry.find("x", registry.allocate_cache(desc()))
    gone = registry.find("x", registry.allocate_cache(desc()))
    registry.deallocate("deallocate_cache", gone.cache)
    index, value = local.ref

    def replace():
        assert owner.node.guard(index) == value + 1  # nothing accesses it
        if fails:
            raise MemoryError

    with pytest.raises(MemoryError) if fails else contextlib.nullcontext():
        registry.remap_around([local, gone], replace)
    assert local.ref == owner.seen_id(local.cache).cache.ref == (index, value + 2)
    registry.deallocate("deallocate_cache", local.cache)
    assert owner.node.statistics() == (0, 0, 0)


def test_many_threads(owner):
    registry = owner.registry
    failures = []

    def work(name):
        try:
            for turn in range(40):
                own = key(turn % 3, model_id=name)
                cache = registry.allocate_cache(desc(1), [own])
                registry.remap([registry.find("x", cache)])
                registry.deallocate("deallocate_cache", cache)
                if turn % 2:
                    owner.pull(own)
                else:
                    registry.remove_cache_key(own)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry.reap()
    assert failures == []
    assert owner.node.statistics() == (0, 0, 0)
    assert owner.pool.statistics().free == 16 << 10


def test_caches_and_their_bytes_are_counted():
    owner = Owner()
    registry = owner.registry
    registry.register_cache(desc(3), addresses(3))
    registry.register_blocks_cache(desc(2), addresses(2), BlocksCacheKey(1))
    registry.allocate_cache(desc(3), [CacheKey(1, 5), CacheKey(1, 6)])
    size = desc(1).tensor_bytes
    found = registry.stats()
    assert (found.registered, found.registered_bytes) == (2, 5 * size)
    assert (found.allocated, found.allocated_bytes) == (1, 3 * size)
    assert (found.registered_addrs, found.cache_keys, found.blocks_cache_keys) == (5, 2, 1)
    assert found.directory_bytes > 0
