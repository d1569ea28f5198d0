"""register_tensors, and block lists that are ranges and arrays (extensions)."""

import gc
import weakref

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheKey,
    DataType,
    Placement,
)
from support.instances import failing, pattern


def tensors(num, units=8, words=16, seed=0):
    """Return `num` tensors, each an array of its own."""
    return [pattern((units, words), seed + i).copy() for i in range(num)]


def registered(side, arrays, *arguments, **options):
    return side.manager.register_tensors(arrays, *arguments, **options)


@pytest.fixture
def caches(sides):
    """Make caches of tensors that end with the test."""
    made = []

    def register(side, arrays, *arguments, **options):
        cache = side.manager.register_tensors(arrays, *arguments, **options)
        made.append((side, cache))
        return cache

    yield register
    for side, cache in made:
        side.manager.unregister_cache(cache.cache_id)


@pytest.mark.parametrize(
    ("src_blocks", "dst_blocks"),
    [
        (range(1, 4), range(6, 0, -2)),
        (np.array([5, 2], np.int32), np.array([0, 7], np.uint8)),
        (range(2, 3), [4]),
        (np.arange(0), ()),
    ],
)
def test_blocks_of_tensors_are_pulled_and_pushed(sides, caches, src_blocks, dst_blocks):
    owner, user = sides
    source, target = tensors(4, seed=1), tensors(4, seed=9)
    caches(owner, source, BlocksCacheKey(1, 77))
    cache = caches(user, target)
    before = [array.copy() for array in source]
    user.manager.pull_blocks(BlocksCacheKey(1, 77), cache, src_blocks, dst_blocks)
    for local, remote in zip(target, source, strict=True):
        assert (local[list(dst_blocks)] == remote[list(src_blocks)]).all()
    user.manager.push_blocks(BlocksCacheKey(1, 77), cache, dst_blocks, src_blocks)
    assert all((array == old).all() for array, old in zip(source, before, strict=True))


def test_what_a_cache_of_tensors_is(sides, caches):
    owner, _ = sides
    arrays = tensors(2)
    cache = caches(owner, arrays, remote_accessible=False)
    desc = cache.cache_desc
    assert cache.tensor_addrs == [array.ctypes.data for array in arrays]
    assert (desc.num_tensors, desc.shape, desc.data_type) == (2, [8, 16], DataType.DT_UINT64)
    assert desc.placement is Placement.HOST
    assert cache.is_blocks_cache


def test_slots_of_tensors(sides, caches):
    owner, user = sides
    source, target = tensors(2, seed=1), tensors(2, seed=9)
    caches(owner, source, [CacheKey(1, 50), CacheKey(1, 51)], placement=Placement.DEVICE)
    cache = caches(user, target, CacheKey(2, 60))
    assert not cache.is_blocks_cache
    user.manager.pull_cache(CacheKey(1, 51), cache, 3)
    assert all((local[3] == remote[1]).all() for local, remote in zip(target, source, strict=True))


def test_the_cache_keeps_its_tensors_until_it_is_unregistered(sides):
    owner, user = sides
    arrays, target = tensors(2, seed=3), tensors(2)
    alive = [weakref.ref(array) for array in arrays]
    expected = arrays[0][6].copy()
    source = registered(owner, arrays, BlocksCacheKey(1, 78))
    local = registered(user, target)
    del arrays
    gc.collect()
    assert all(array() is not None for array in alive)
    user.manager.pull_blocks(BlocksCacheKey(1, 78), local, [6], [0])
    assert (target[0][0] == expected).all()
    owner.manager.unregister_cache(source.cache_id)
    gc.collect()
    assert all(array() is None for array in alive)
    user.manager.unregister_cache(local.cache_id)


def test_tensors_that_are_refused(sides):
    manager = sides[0].manager
    one, *_ = arrays = tensors(2)
    calls = {
        "tensors is empty": [],
        "tensors[1] has another shape than tensors[0]: (8, 8)": [one, one[:, :8].copy()],
        "tensors[1] has another type": [one, one.view(np.int64)],
        "tensors[0] of shape (8, 8) is not contiguous": [one[:, ::2]],
    }
    for text, given in calls.items():
        with failing("LLM_PARAM_INVALID", "register_tensors", text):
            manager.register_tensors(given)
    for bad in (one, None, {"k": one}, [one, 3]):
        with pytest.raises(TypeError, match="tensors"):
            manager.register_tensors(bad)
    with pytest.raises(TypeError, match="key must be"):
        manager.register_tensors(arrays, 7)


def test_blocks_are_copied_onto_ranges_and_arrays(sides, caches):
    (array,) = arrays = tensors(1)
    cache = caches(sides[0], arrays)
    expected = array.copy()
    expected[[2, 3, 4, 7]] = expected[[0, 0, 0, 1]]
    sides[0].manager.copy_blocks(cache, {0: range(2, 5), 1: np.array([7])})
    assert (array == expected).all()
