"""Transfers to bare addresses, which the receiver checks: checklist item 59."""

import numpy as np
import pytest

from llm_datadist import (
    CacheDesc,
    DataType,
    LayerSynchronizer,
    LLMStatusCode,
    Placement,
    TransferConfig,
)
from support.instances import zeros

SUCCESS = LLMStatusCode.LLM_SUCCESS
DENIED = LLMStatusCode.LLM_PARAM_INVALID
NBYTES = 8 * 128 * 8  # of one tensor

refused = pytest.mark.expects_log("the peer refused", "LLM_NOT_YET_LINK")


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


def send(user, source, addrs, *indices, cluster_id=1):
    config = TransferConfig(cluster_id, addrs)
    return user.manager.transfer_cache_async(source.cache, Ready(), [config], *indices).synchronize(
        20000
    )


@pytest.fixture
def source(sides):
    """A contiguous cache of one layer: two tensors of 8 slots of 1 KiB."""
    return sides[1].slots(9, tensors=2)


def test_addresses_inside_registered_memory(sides, source):
    """Item 59: any cache, any place in it, without alignment; layers may go to several caches."""
    owner, user = sides
    first, second = owner.blocks(1, tensors=2), owner.slots(2, tensors=2)
    assert send(user, source, [first.data[0].ctypes.data, second.data[1].ctypes.data]) is SUCCESS
    assert (first.data[0, 0] == source.data[0, 0]).all()
    assert (second.data[1, 0] == source.data[1, 0]).all()
    last = [tensor.ctypes.data + NBYTES - 1024 for tensor in first.data]
    assert send(user, source, last) is SUCCESS
    assert (first.data[:, 7] == source.data[:, 0]).all()
    middle = [tensor.ctypes.data + 1500 for tensor in first.data]
    assert send(user, source, middle) is SUCCESS
    for tensor in range(2):
        got = first.data[tensor].reshape(-1).view(np.uint8)[1500:2524]
        assert (got == source.data[tensor, 0].view(np.uint8)).all()


def test_pool_memory(sides, source):
    """Item 59: allocated caches are registered memory; free pages of the pool are not."""
    owner, user = sides
    cache = owner.manager.allocate_blocks_cache(CacheDesc(2, [8, 128], DataType.DT_UINT64))
    addrs = cache.tensor_addrs
    assert send(user, source, addrs) is SUCCESS
    assert (cache.tensor(1)[0] == source.data[1, 0]).all()
    owner.manager.deallocate_blocks_cache(cache)


@refused
def test_addresses_outside_registered_memory(sides, source):
    """Item 59: a byte beyond either end is too much; nothing of that request is written."""
    owner, user = sides
    data = zeros(4, 8, 128)
    target = owner.blocks(data=data[1:3])
    start, end = data[1].ctypes.data, data[3].ctypes.data
    good = data[1].ctypes.data
    for bad in (start - 1, start - 1024, end - 1023, end, 4096, 2**64 - 1025, 1):
        assert send(user, source, [good, bad]) is DENIED
        assert send(user, source, [bad, good]) is DENIED
        assert not data.any(), bad
    with pytest.raises(ValueError, match="wrap"):
        send(user, source, [good, 2**64 - 1024])
    assert send(user, source, [good, end - 1024]) is SUCCESS
    assert (target.data[0, 0] == source.data[0, 0]).all()


@refused
def test_caches_that_are_not_accessible(sides, source):
    """Item 59: HOST by default, DEVICE when it was said so."""
    owner, user = sides
    for kwargs in ({"placement": Placement.HOST}, {"accessible": False}):
        target = owner.blocks(tensors=2, **kwargs)
        assert send(user, source, target.cache.tensor_addrs) is DENIED
        assert not target.data.any()
    # The same memory in an accessible cache, too: that one decides.
    both = owner.blocks(data=target.data)
    assert send(user, source, both.cache.tensor_addrs) is SUCCESS
    assert (target.data[:, 0] == source.data[:, 0]).all()


@refused
def test_memory_that_is_unregistered(sides, source):
    """Items 39 and 59: not any more."""
    owner, user = sides
    target = owner.blocks(tensors=2)
    addrs = target.cache.tensor_addrs
    assert send(user, source, addrs) is SUCCESS
    owner.manager.unregister_cache(target.id)
    target.data[:] = 0
    assert send(user, source, addrs) is DENIED
    assert not target.data.any()


@refused
def test_freed_pool_memory(sides, source):
    """Items 41 and 59."""
    owner, user = sides
    cache = owner.manager.allocate_cache(CacheDesc(2, [8, 128], DataType.DT_UINT64))
    addrs = cache.tensor_addrs
    owner.manager.deallocate_cache(cache)
    assert send(user, source, addrs) is DENIED


@refused
def test_every_address_of_a_request_is_checked(sides, source):
    """Item 59: one bad block among many good ones."""
    owner, user = sides
    blocks = user.blocks(5, tensors=2, units=64)
    target = owner.blocks(tensors=2, units=63)
    every = list(range(64))
    assert send(user, blocks, target.cache.tensor_addrs, every, every) is DENIED
    assert not target.data[:, :62].any()
    assert send(user, blocks, target.cache.tensor_addrs, every[:63], every[:63]) is SUCCESS
    assert (target.data == blocks.data[:, :63]).all()


@refused
def test_the_callers_own_memory_is_no_address_of_the_peer(sides, source):
    """Item 59: memory that only the caller has registered, and unlinked clusters."""
    _, user = sides
    own = user.blocks(tensors=2)
    assert send(user, source, own.cache.tensor_addrs) is DENIED
    status = send(user, source, own.cache.tensor_addrs, cluster_id=77)
    assert status is LLMStatusCode.LLM_NOT_YET_LINK
    assert not own.data.any()


def test_ranges_over_two_registered_neighbors(sides):
    """Item 59: a write may not straddle two caches, even where they touch; two may be one run."""
    owner, user = sides
    source = user.blocks(3, tensors=2, units=4)
    data = zeros(4, 4, 128)
    owner.blocks(data=data[:2])
    owner.blocks(data=data[2:])
    addrs = [data[1].ctypes.data, data[2].ctypes.data]
    assert send(user, source, addrs, [0, 1, 2, 3], [0, 1, 2, 3]) is SUCCESS
    assert (data[1:3] == source.data).all()
