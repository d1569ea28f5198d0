"""Copies within the process: checklist item 50."""

import numpy as np
import pytest

from llm_datadist import Cache, CacheDesc, CacheKey, DataType, Placement
from support.instances import Side, failing, finalize, pattern


@pytest.fixture(scope="module")
def instance():
    side = Side(1, "auto", listen=False, pool=1 << 20)
    big = side.slots(tensors=1, units=2, words=1 << 20)
    side.manager.copy_cache(big.cache, big.cache, 1, 0)  # starts the workers
    side.clean()
    yield side
    finalize(side)


@pytest.fixture
def local(instance):
    """One side without links; its caches end with the test."""
    yield instance
    instance.clean()


@pytest.fixture
def copy(local):
    return local.manager.copy_cache


def cpu_cache(data):
    desc = CacheDesc(len(data), list(data.shape[1:]), DataType.DT_UINT64, Placement.HOST)
    return Cache.create_cpu_cache(desc, [tensor.ctypes.data for tensor in data])


def test_copy_cache_copies_a_slot_of_every_tensor(local, copy):
    """Item 50: between two caches, and between slots of one."""
    source, target = local.slots(1), local.slots(2)
    expected = target.data.copy()
    copy(target.cache, source.cache)
    expected[:, 0] = source.data[:, 0]
    assert (target.data == expected).all()
    copy(target.cache, source.cache, 3, 5)
    expected[:, 3] = source.data[:, 5]
    copy(dst=target.cache, src=target.cache, dst_batch_index=7, src_batch_index=3, req_id=9)
    expected[:, 7] = expected[:, 3]
    assert (target.data == expected).all()


@pytest.mark.parametrize(("offset", "size"), [(0, 8), (16, 24), (1000, -1), (1016, 8), (0, 1024)])
def test_copy_cache_offset_and_size(local, copy, offset, size):
    """Item 50: offset counts on both sides; -1 is the rest of the slot."""
    source, target = local.slots(1), local.slots(2)
    expected = target.data.copy()
    copy(target.cache, source.cache, 1, 2, offset, size)
    stop = 1024 if size == -1 else offset + size
    words = slice(offset // 8, stop // 8)
    expected[:, 1, words] = source.data[:, 2, words]
    assert (target.data == expected).all()


def test_copy_cache_of_allocated_and_freed_caches(local, copy):
    """Item 50: a freed cache is not there any more, on either side."""
    desc = CacheDesc(2, [4, 100], DataType.DT_FLOAT)
    source, target = (local.manager.allocate_cache(desc) for _ in range(2))
    source.tensor(0)[2], source.tensor(1)[2] = 5, 6
    copy(target, source, 1, 2)
    assert (target.tensor(0)[1] == 5).all()
    assert (target.tensor(1)[1] == 6).all()
    local.manager.deallocate_cache(source)
    for pair in ((target, source), (source, target)):
        with failing("LLM_KV_CACHE_NOT_EXIST", "copy_cache", f"cache {source.cache_id}"):
            copy(*pair)
    local.manager.deallocate_cache(target)


def test_a_cache_held_by_a_key_only_is_freed_for_its_owner(local, copy):
    """Items 41 and 50: the id is gone, although a peer may pull the key still."""
    desc = CacheDesc(2, [4, 100], DataType.DT_FLOAT)
    source = local.manager.allocate_cache(desc, [CacheKey(1, 5)])
    target = local.manager.allocate_cache(desc)
    local.manager.deallocate_cache(source)
    with failing("LLM_KV_CACHE_NOT_EXIST", "copy_cache"):
        copy(target, source)
    local.manager.remove_cache_key(CacheKey(1, 5))
    local.manager.deallocate_cache(target)


def test_copies_of_other_instances_caches_are_refused(local, copy):
    """Item 50."""
    other = Side(2, "auto", listen=False)
    foreign, own = other.slots(1), local.slots()
    with failing("LLM_PARAM_INVALID", "copy_cache", "another instance"):
        copy(own.cache, foreign.cache)
    finalize(other)


def test_copy_blocks(local):
    """Item 50: each key onto every listed block, in the dict's order, as if one by one."""
    held = local.blocks(1, units=16)
    expected = held.data.copy()
    copies = {0: [3], 5: [6, 7, 9], 2: [], 8: (10,), 3: [11], 12: [12]}
    local.manager.copy_blocks(held.cache, copies)
    for block, targets in copies.items():
        for target in targets:
            expected[:, target] = expected[:, block]
    assert (held.data == expected).all()
    local.manager.copy_blocks(held.cache, {})
    random = np.random.default_rng(50)
    for _ in range(20):
        copies = {
            int(block): random.integers(0, 16, 3).tolist() for block in random.permutation(16)[:6]
        }
        local.manager.copy_blocks(held.cache, copies)
        for block, targets in copies.items():
            for target in targets:
                expected[:, target] = expected[:, block]
        assert (held.data == expected).all(), copies


def test_copy_blocks_refusals(local):
    """Item 50: types with the texts that callers know; indices named."""
    held = local.blocks(1)
    before = held.data.copy()
    copy = local.manager.copy_blocks
    for wrong in ([(0, [1])], None, "01", 1):
        with pytest.raises(TypeError, match="only support"):
            copy(held.cache, wrong)
    for wrong in (None, 1):
        with pytest.raises(TypeError, match="only support"):
            copy(wrong, {0: [1]})
    for wrong in ({"0": [1]}, {0: 1}, {0: ["1"]}, {0: [1.0]}, {0.0: [1]}, {0: None}, {0: {1}}):
        with pytest.raises(TypeError, match="inner type only support"):
            copy(held.cache, wrong)
    assert (held.data == before).all()
    local.manager.unregister_cache(held.id)
    with failing("LLM_KV_CACHE_NOT_EXIST", "copy_blocks"):
        copy(held.cache, {0: [1]})


def test_swap_blocks_in_both_directions(local):
    """Item 50: between a device blocks cache and a host one; block counts may differ."""
    device = local.blocks(1, units=8)
    host = pattern((4, 20, 128), 2)
    cpu = cpu_cache(host)
    device_before, host_before = device.data.copy(), host.copy()
    local.manager.swap_blocks(device.cache, cpu, {0: 19, 7: 0, 3: 5})
    host_before[:, [19, 0, 5]] = device_before[:, [0, 7, 3]]
    assert (host == host_before).all()
    local.manager.swap_blocks(src_cache=cpu, dst_cache=device.cache, src_to_dst={19: 1, 2: 2})
    device_before[:, [1, 2]] = host_before[:, [19, 2]]
    assert (device.data == device_before).all()
    local.manager.swap_blocks(cpu, device.cache, {})
    assert (device.data == device_before).all()


def test_swap_blocks_of_any_placements(local):
    """Item 50: an extension; allocated, registered and wrapped caches."""
    desc = CacheDesc(4, [8, 128], DataType.DT_UINT64, Placement.HOST)
    registered = local.blocks(3, placement=Placement.HOST)
    allocated = local.manager.allocate_blocks_cache(desc)
    other = local.blocks()
    local.manager.swap_blocks(registered.cache, allocated, {1: 2})
    local.manager.swap_blocks(allocated, other.cache, {2: 3})
    assert (other.data[:, 3] == registered.data[:, 1]).all()
    local.manager.deallocate_blocks_cache(allocated)
    with failing("LLM_KV_CACHE_NOT_EXIST", "swap_blocks"):
        local.manager.swap_blocks(allocated, other.cache, {2: 3})


def test_large_copies(local, copy):
    """Item 50: of many threads' worth of bytes."""
    source = local.slots(1, tensors=2, units=2, words=1 << 20)
    target = local.slots(tensors=2, units=2, words=1 << 20)
    copy(target.cache, source.cache, 1, 0)
    assert (target.data[:, 1] == source.data[:, 0]).all()
    assert not target.data[:, 0].any()
