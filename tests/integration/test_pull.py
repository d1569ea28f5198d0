"""Pulls at the public interface: checklist items 43 and 44."""

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
)
from support.instances import Side, failing, finalize, link, linked_sides
from support.setup import info_of


def test_a_slot_lands_in_a_slot(sides):
    """Item 43: size -1 is the local slot, in every tensor, and nothing else is touched."""
    owner, user = sides
    source, target = owner.slots(1), user.slots(2)
    expected = target.data.copy()
    user.manager.pull_cache(source.slot(3), target.cache, 5)
    expected[:, 5] = source.data[:, 3]
    assert (target.data == expected).all()
    user.manager.pull_cache(cache_key=source.slot(7), cache=target.cache, batch_index=0, size=-1)
    expected[:, 0] = source.data[:, 7]
    assert (target.data == expected).all()


@pytest.mark.parametrize("size", [1, 8, 123, 1023, 1024])
def test_size_is_bytes_per_tensor(sides, size):
    """Item 43."""
    owner, user = sides
    source, target = owner.slots(1), user.slots(2)
    before = target.data.copy()
    user.manager.pull_cache(source.slot(2), target.cache, 1, size)
    got, want = (
        held[:, slot].view(np.uint8) for held, slot in ((target.data, 1), (source.data, 2))
    )
    assert (got[:, :size] == want[:, :size]).all()
    assert (got[:, size:] == before[:, 1].view(np.uint8)[:, size:]).all()
    assert (np.delete(target.data, 1, axis=1) == np.delete(before, 1, axis=1)).all()


def test_slots_may_differ_in_size(sides):
    """Item 43: -1 takes the local slot's bytes, which the source must have."""
    owner, user = sides
    big, small = owner.slots(1, words=256), user.slots(words=64)
    user.manager.pull_cache(big.slot(6), small.cache, 4)
    assert (small.data[:, 4] == big.data[:, 6, :64]).all()
    large = user.slots(words=512)
    user.manager.pull_cache(big.slot(), large.cache, size=2048)
    assert (large.data[:, 0, :256] == big.data[:, 0]).all()
    assert not large.data[:, 0, 256:].any()


def test_the_batch_must_be_outermost_to_address_a_slot(sides):
    """Item 43, and 5.1: on either side; a batch of one is its whole tensor."""
    owner, user = sides
    data = np.arange(2 * 4 * 8, dtype=np.uint64).reshape(2, 4, 8)
    target = np.zeros_like(data)
    addrs, own = ([t.ctypes.data for t in array] for array in (data, target))
    inner = CacheDesc(2, [4, 8], DataType.DT_UINT64, batch_dim_index=1)
    single = CacheDesc(2, [1, 32], DataType.DT_UINT64, batch_dim_index=0)
    one = CacheDesc(2, [32, 1], DataType.DT_UINT64, batch_dim_index=1)
    remote = owner.manager.register_cache(inner, addrs)
    ones = owner.manager.register_cache(one, addrs)
    local = user.manager.register_cache(single, own)
    inner_local = user.manager.register_cache(inner, own)
    try:
        with failing("LLM_PARAM_INVALID", "pull_cache", "batch_dim_index 1"):
            user.manager.pull_cache(CacheKeyByIdAndIndex(1, remote.cache_id), local)
        with failing("LLM_PARAM_INVALID", "pull_cache", "batch_dim_index 1"):
            user.manager.pull_cache(CacheKeyByIdAndIndex(1, ones.cache_id), inner_local)
        nowhere = CacheDesc(2, [4, 8], DataType.DT_UINT64, batch_dim_index=7)
        with failing("LLM_PARAM_INVALID", "register_cache", "batch_dim_index 7"):
            user.manager.register_cache(nowhere, own, [CacheKey(2, 1)])
        lost = user.manager.register_cache(nowhere, own)
        with failing("LLM_PARAM_INVALID", "pull_cache", "batch_dim_index 7"):
            user.manager.pull_cache(CacheKeyByIdAndIndex(1, ones.cache_id), lost)
        user.manager.unregister_cache(lost.cache_id)
        user.manager.pull_cache(CacheKeyByIdAndIndex(1, ones.cache_id), local)
        assert (target == data).all()
    finally:
        for side, caches in ((owner, (remote, ones)), (user, (local, inner_local))):
            for cache in caches:
                side.manager.unregister_cache(cache.cache_id)


def test_pulls_of_many_blocks_in_any_order(sides):
    """Item 44: random permutations, runs and single blocks, against numpy."""
    owner, user = sides
    random = np.random.default_rng(44)
    source, target = owner.blocks(1, key=0, units=200), user.blocks(2, units=100)
    expected = target.data.copy()
    for _ in range(30):
        count = int(random.integers(1, 100))
        dst = random.permutation(100)[:count].tolist()
        src = random.integers(0, 200, count).tolist()  # a source block may serve twice
        if random.random() < 0.5:
            dst.sort()
            src = list(range(src[0] % 100, src[0] % 100 + count))
        user.manager.pull_blocks(owner.blocks_key(), target.cache, src, tuple(dst))
        expected[:, dst] = source.data[:, src]
        assert (target.data == expected).all()


@pytest.mark.parametrize("words", [1, 3, 16384])
def test_pulls_of_small_and_large_blocks(sides, words):
    """Item 44: 8 bytes to 128 KiB a block, whole caches of up to 32 MiB."""
    owner, user = sides
    source = owner.blocks(1, key=0, units=64, words=words)
    target = user.blocks(units=64, words=words)
    every = list(range(64))
    user.manager.pull_blocks(owner.blocks_key(), target.cache, every, every[::-1])
    assert (target.data == source.data[:, ::-1]).all()


@pytest.mark.parametrize("by_id", [True, False])
def test_a_contiguous_source_is_cut_into_blocks(sides, by_id):
    """Item 44: piece i of the slot lands in dst_blocks[i]; all, or the first ones."""
    owner, user = sides
    source = owner.slots(1, keys=[CacheKey(1, number) for number in range(8)], units=8, words=256)
    target = user.blocks(words=64, units=10)

    def key(slot):
        return source.slot(slot) if by_id else CacheKey(1, slot)

    user.manager.pull_blocks(key(2), target.cache, [], [7, 0, 3, 4])
    for piece, block in enumerate([7, 0, 3, 4]):
        want = source.data[:, 2, piece * 64 : (piece + 1) * 64]
        assert (target.data[:, block] == want).all()
    user.manager.pull_blocks(key(3), target.cache, dst_blocks=(9, 8))
    assert (target.data[:, 9] == source.data[:, 3, :64]).all()
    assert (target.data[:, 8] == source.data[:, 3, 64:128]).all()
    assert not target.data[:, [1, 2, 5, 6]].any()
    with failing("LLM_PARAM_INVALID", "pull_blocks", "dst_blocks has 5", "4 pieces"):
        user.manager.pull_blocks(key(4), target.cache, [], [0, 1, 2, 3, 4])
    with failing("LLM_PARAM_INVALID", "pull_blocks", "src_blocks has 1"):
        user.manager.pull_blocks(key(4), target.cache, [0], [0])


def test_slot_bytes_that_are_no_multiple_of_the_block(sides):
    """Item 44: only whole pieces count."""
    owner, user = sides
    source, target = owner.slots(1, words=100), user.blocks(words=64)
    user.manager.pull_blocks(source.slot(), target.cache, [], [1])
    assert (target.data[:, 1] == source.data[:, 0, :64]).all()
    with failing("LLM_PARAM_INVALID", "pull_blocks", "1 pieces"):
        user.manager.pull_blocks(source.slot(), target.cache, [], [1, 2])


def test_empty_lists_check_key_and_link(sides):
    """Item 44: nothing moves, and what is not there is still found out."""
    owner, user = sides
    held, target = owner.blocks(1, key=5), user.blocks()
    for _ in range(2):
        user.manager.pull_blocks(owner.blocks_key(5), target.cache)
        user.manager.push_blocks(owner.blocks_key(5), target.cache, [], [])
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(owner.blocks_key(6), target.cache)
    owner.manager.unregister_cache(held.id)
    with failing("LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=1):
        user.manager.pull_blocks(owner.blocks_key(5), target.cache)
    with failing("LLM_KV_CACHE_NOT_EXIST", "push_blocks", peer=1):
        user.manager.push_blocks(owner.blocks_key(5), target.cache)
    with failing("LLM_NOT_YET_LINK", "pull_blocks", peer=77):
        user.manager.pull_blocks(BlocksCacheKey(77), target.cache)


def test_every_data_type(sides):
    """Item 43: bytes are bytes; a cache and its peer's may differ in type and shape."""
    owner, user = sides
    source = owner.slots(1, units=2, words=12)
    for data_type in DataType:
        if data_type is DataType.DT_STRING:
            continue
        itemsize = {"DT_FLOAT16": 2, "DT_BF16": 2, "DT_INT16": 2, "DT_UINT16": 2}.get(
            data_type.name
        )
        if itemsize is None:
            itemsize = CacheDesc(1, [1], data_type).size
        data = np.zeros((4, 2, 96), np.uint8)
        desc = CacheDesc(4, [2, 96 // itemsize], data_type)
        cache = user.manager.register_cache(desc, [t.ctypes.data for t in data])
        user.manager.pull_cache(source.slot(1), cache, 1)
        assert (data[:, 1] == source.data[:, 1].view(np.uint8)).all()
        user.manager.unregister_cache(cache.cache_id)


def test_unaligned_memory(sides):
    """Items 43 and 44: no alignment is required."""
    owner, user = sides
    remote, local = (np.zeros(2 * 4 * 333 + 7, np.uint8) for _ in range(2))
    remote[:] = np.arange(len(remote)) % 251
    desc = CacheDesc(2, [4, 333], DataType.DT_INT8)
    source = owner.manager.register_blocks_cache(
        desc, [remote.ctypes.data + 1, remote.ctypes.data + 1335], BlocksCacheKey(1, 30)
    )
    target = user.manager.register_blocks_cache(
        desc, [local.ctypes.data + 3, local.ctypes.data + 1337]
    )
    user.manager.pull_blocks(BlocksCacheKey(1, 30), target, [0, 1, 3], [2, 3, 0])
    for shift_local, shift_remote in ((3, 1), (1337, 1335)):
        for src, dst in ((0, 2), (1, 3), (3, 0)):
            got = local[shift_local + 333 * dst :][:333]
            assert (got == remote[shift_remote + 333 * src :][:333]).all()
    owner.manager.unregister_cache(source.cache_id)
    user.manager.unregister_cache(target.cache_id)


def test_equal_ids_on_both_sides(backend):
    """Items 18 and 44: keys then mean the linked peer."""
    first, second = Side(5, backend), Side(5, backend)
    try:
        link(second.instance, first.address)
        held = first.blocks(1, key=0), second.blocks(2, key=0)
        target = second.blocks()
        second.manager.pull_blocks(BlocksCacheKey(5), target.cache, [1], [2])
        assert (target.data[:, 2] == held[0].data[:, 1]).all()
    finally:
        finalize(first, second)


def test_a_pull_after_the_unlink(backend):
    """Items 43 and 44: LLM_NOT_YET_LINK, at both ends; linked again it works again."""
    first, second = linked_sides(backend)
    try:
        first.blocks(1, key=0)
        second.blocks(2, key=0)
        first_own, second_own = first.blocks(), second.blocks()
        for _ in range(2):
            second.manager.pull_blocks(BlocksCacheKey(1), second_own.cache, [1], [1])
            first.manager.pull_blocks(BlocksCacheKey(2), first_own.cache, [1], [1])
            second.instance.unlink_clusters([info_of(cluster_id=1)])
            with failing("LLM_NOT_YET_LINK", "pull_blocks", "link_clusters", peer=1):
                second.manager.pull_blocks(BlocksCacheKey(1), second_own.cache, [1], [1])
            with failing("LLM_NOT_YET_LINK", "pull_blocks", peer=2):
                first.manager.pull_blocks(BlocksCacheKey(2), first_own.cache, [1], [1])
            link(second.instance, first.address)
    finally:
        finalize(first, second)
