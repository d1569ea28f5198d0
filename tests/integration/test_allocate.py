"""Allocated caches and their keys at the public interface: checklist items 40 to 42."""

import threading

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
)
from support.instances import Side, failing, finalize, initialized, link

PAGE = 1 << 16
NUM_PAGES = 16
UNUSED = 2**64 - 1


def desc_of(pages=1, tensors=1, placement=Placement.DEVICE):
    return CacheDesc(tensors, [1, pages * PAGE], DataType.DT_INT8, placement)


def slots_of(slots, words=128, tensors=2, placement=Placement.DEVICE):
    return CacheDesc(tensors, [slots, words], DataType.DT_UINT64, placement)


@pytest.fixture
def alone():
    """An instance with pools of 16 pages of 64 KiB."""
    with initialized(1, "auto", listen=False, pool=NUM_PAGES * PAGE) as instance:
        yield instance


@pytest.fixture
def pair(linked):
    """The module's owner and user; caches that the test allocates at the owner end with it."""
    owner, user = linked
    made = []

    def allocate(desc, keys=()):
        made.append((owner.manager.allocate_cache(desc, keys), keys))
        return made[-1][0]

    yield owner, user, allocate
    for cache, keys in made:
        owner.manager.deallocate_cache(cache)
        for key in keys:
            owner.manager.remove_cache_key(key)
    user.clean()


def fill(cache, value):
    for tensor in range(cache.cache_desc.num_tensors):
        cache.tensor(tensor)[:] = np.arange(cache.cache_desc.batch_size)[:, None] + value


@pytest.mark.parametrize("placement", list(Placement))
def test_sizes_round_up_to_pages_per_tensor(alone, placement):
    """Item 40."""
    pool = alone.cache_manager
    small = CacheDesc(NUM_PAGES - 1, [1], DataType.DT_INT8, placement)
    cache = pool.allocate_cache(small)
    distances = np.diff(sorted(cache.tensor_addrs))
    assert (distances >= PAGE).all()
    assert all(address % 4096 == 0 for address in cache.tensor_addrs)
    pool.allocate_cache(desc_of(placement=placement))
    with failing("LLM_OUT_OF_MEMORY", "allocate_cache", PAGE, "0 free", "largest free run 0"):
        pool.allocate_cache(CacheDesc(1, [1], DataType.DT_INT8, placement))


@pytest.mark.parametrize("placement", list(Placement))
def test_allocated_caches_are_accessible(pair, placement):
    """Item 40: of both placements, by all keys, and as targets of pushes."""
    owner, user, allocate = pair
    keys = [CacheKey(1, 1), CacheKey(1, 2)]
    cache = allocate(slots_of(4, placement=placement), keys)
    fill(cache, 10)
    target = user.slots(tensors=2)
    user.manager.pull_cache(keys[1], target.cache, 3)
    assert (target.data[:, 3] == 11).all()
    user.manager.pull_cache(CacheKeyByIdAndIndex(1, cache.cache_id, 2), target.cache, 0)
    assert (target.data[:, 0] == 12).all()
    target.data[:, 5] = 99
    user.manager.push_cache(CacheKeyByIdAndIndex(1, cache.cache_id, 3), target.cache, 5)
    assert (cache.tensor(1)[3] == 99).all()
    blocks = owner.manager.allocate_blocks_cache(slots_of(8), BlocksCacheKey(1, 9))
    fill(blocks, 50)
    own = user.blocks(tensors=2)
    user.manager.pull_blocks(BlocksCacheKey(1, 9), own.cache, [7, 0], [0, 1])
    assert (own.data[:, 0] == 57).all()
    assert (own.data[:, 1] == 50).all()
    owner.manager.deallocate_blocks_cache(blocks)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(BlocksCacheKey(1, 9), own.cache, [7], [0])


def test_a_key_outlives_deallocate_cache(pair):
    """Item 41: callers deallocate at once and let the pull free the memory."""
    owner, user, allocate = pair
    keys = [CacheKey(1, number) for number in range(4)]
    cache = allocate(slots_of(4), keys)
    fill(cache, 30)
    owner.manager.deallocate_cache(cache)
    target = user.slots(tensors=2)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache", peer=1):  # the id is gone
        user.manager.pull_cache(CacheKeyByIdAndIndex(1, cache.cache_id), target.cache)
    for slot in (2, 0, 3, 1):
        user.manager.pull_cache(keys[slot], target.cache, slot)
        assert (target.data[:, slot] == 30 + slot).all()
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache", peer=1):
        user.manager.pull_cache(keys[0], target.cache)


def test_pulls_free_memory_without_the_owner(pair):
    """Item 41: a cycle of allocate, deallocate, pull that would fill the pool many times over."""
    owner, user, allocate = pair
    big = slots_of(1, words=512 << 10, tensors=2)  # half of the pool
    target = user.slots(tensors=2, units=1, words=512 << 10)
    for turn in range(6):
        key = CacheKey(1, turn % 2)
        cache = allocate(big, [key])
        fill(cache, turn)
        owner.manager.deallocate_cache(cache)
        user.manager.pull_cache(key, target.cache)
        assert (target.data == turn).all()


def test_full_pulls_consume_the_key(pair):
    """Item 42: by pull_cache and pull_blocks, whole or in part of the slot's bytes."""
    _, user, allocate = pair
    keys = [CacheKey(1, number) for number in range(3)]
    allocate(slots_of(3, words=128, tensors=4), keys)
    slots, blocks = user.slots(words=128), user.blocks(words=32)
    user.manager.pull_cache(keys[0], slots.cache)
    user.manager.pull_cache(keys[1], slots.cache, size=8)
    user.manager.pull_blocks(keys[2], blocks.cache, [], [5])
    for key in keys:
        with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache", f"req_id={key.req_id}", peer=1):
            user.manager.pull_cache(key, slots.cache)


def test_failed_pulls_do_not_consume(pair):
    """Item 42."""
    _, user, allocate = pair
    key = CacheKey(1, 6)
    fill(allocate(slots_of(2), [key]), 70)
    small, target = user.slots(tensors=2, words=64), user.slots(tensors=2)
    three = user.slots(tensors=3)
    for cache, options in (
        (small.cache, {"size": 1024}),
        (target.cache, {"size": 1025}),
        (target.cache, {"batch_index": 8}),
        (three.cache, {}),
    ):
        with failing("LLM_PARAM_INVALID", "pull_cache"):
            user.manager.pull_cache(key, cache, **options)
    user.manager.pull_cache(key, target.cache)
    assert (target.data[:, 0] == 70).all()


def test_one_of_many_pullers_gets_a_key(backend):
    """Item 42: several peers pull one key at once; exactly one of them has it."""
    owner = Side(1, backend, pool=1 << 20)
    users = [Side(number, backend) for number in (2, 3, 4)]
    try:
        for user in users:
            link(user.instance, owner.address)
        targets = [user.slots(tensors=2) for user in users]
        for turn in range(20):
            key = CacheKey(1, turn)
            cache = owner.manager.allocate_cache(slots_of(1), [key])
            owner.manager.deallocate_cache(cache)
            fill(cache, turn)
            winners, others = [], []
            start = threading.Barrier(len(users))

            def pull(index, key=key, winners=winners, others=others, start=start):
                start.wait()
                try:
                    users[index].manager.pull_cache(key, targets[index].cache)
                except LLMException as error:
                    others.append(error.status_code)
                else:
                    winners.append(index)

            threads = [threading.Thread(target=pull, args=(index,)) for index in range(len(users))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(winners) == 1, (turn, winners, others)
            assert set(others) == {LLMStatusCode.LLM_KV_CACHE_NOT_EXIST}
            assert (targets[winners[0]].data[:, 0] == turn).all()
    finally:
        finalize(owner, *users)


def test_deallocating_frees_the_memory_for_others(pair):
    """Item 41: what is allocated next over the same pages is not seen under the old id."""
    owner, user, allocate = pair
    target = user.slots(tensors=2)
    for turn in range(10):
        cache = allocate(slots_of(2))
        fill(cache, turn)
        key = CacheKeyByIdAndIndex(1, cache.cache_id)
        user.manager.pull_cache(key, target.cache)
        assert (target.data[:, 0] == turn).all()
        owner.manager.deallocate_cache(cache)
        with failing("LLM_KV_CACHE_NOT_EXIST", "pull_cache"):
            user.manager.pull_cache(key, target.cache)
