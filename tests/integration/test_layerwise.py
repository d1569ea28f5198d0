"""transfer_cache_async and CacheTask: checklist items 47 to 49."""

import threading
import time

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    Placement,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from support.instances import LASTING, eventually, failing, finalize, linked_sides

OPERATION = "transfer_cache_async"
SUCCESS, FAILED = LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_FAILED
EXPIRED = LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT
GONE = LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


class Layers(LayerSynchronizer):
    """Says that layers are ready, and remembers when it was asked; sub-classes need no init."""

    def __init__(self, ready=lambda layer: True):
        self.asked = []
        self.ready = ready

    def synchronize_layer(self, layer_index, timeout_in_millis):
        assert timeout_in_millis is None
        self.asked.append(layer_index)
        return self.ready(layer_index)


class Gate(LayerSynchronizer):
    """Lets layers through one by one; does not call super().__init__."""

    def __init__(self):
        self.open = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def synchronize_layer(self, layer_index, timeout_in_millis):
        self.entered.release()
        return self.open.acquire(timeout=20)


@pytest.fixture(scope="module")
def keyed(backend):
    """Two linked sides with enable_remote_cache_accessible, for transfers by key."""
    sides = linked_sides(backend, enable_remote_cache_accessible=True, **LASTING)
    source, target = sides[1].blocks(), sides[0].blocks(key=0)
    config = by_key(target.side.blocks_key(), range(2))
    sides[1].manager.transfer_cache_async(source.cache, Layers(), [config] * 16).synchronize()
    for side in sides:
        side.clean()
    yield sides
    finalize(*sides)


@pytest.fixture
def keys(keyed):
    yield keyed
    for side in keyed:
        side.clean()


def by_key(key, src, dst=None, slot=0):
    return TransferWithCacheKeyConfig(key, src, src if dst is None else dst, slot)


def addresses(held, layers, slot=0):
    """The peer's addresses of layers' tensors, the slot's offset added, as callers do."""
    slot_bytes = held.data[0, 0].nbytes
    return [
        held.data[tensor].ctypes.data + slot * slot_bytes
        for layer in layers
        for tensor in (2 * layer, 2 * layer + 1)
    ]


def run(side, cache, synchronizer, configs, *indices, **named):
    task = side.manager.transfer_cache_async(cache, synchronizer, configs, *indices, **named)
    status = task.synchronize(20000)
    return status, task.get_results(0)


def test_slots_to_slots_by_key(keys):
    """Item 47: layers may land in other layers; the key names the slot."""
    owner, user = keys
    target, source = owner.slots(1, tensors=8), user.slots(2, tensors=8)
    expected = target.data.copy()
    synchronizer = Layers()
    config = by_key(target.slot(3), range(1, 3), range(2), slot=5)
    assert run(user, source.cache, synchronizer, [config]) == (SUCCESS, [SUCCESS])
    expected[:4, 3] = source.data[2:6, 5]
    assert (target.data == expected).all()
    assert synchronizer.asked == [1, 2]


def test_slots_to_slots_by_address(sides):
    """Item 47: the caller has added the slot's offset; None is all layers."""
    owner, user = sides
    target, source = owner.slots(1, tensors=8), user.slots(2, tensors=8)
    expected = target.data.copy()
    synchronizer = Layers()
    configs = [TransferConfig(1, addresses(target, range(4), 6), None, 7)]
    assert run(user, source.cache, synchronizer, configs) == (SUCCESS, [SUCCESS])
    expected[:, 6] = source.data[:, 7]
    assert (target.data == expected).all()
    assert synchronizer.asked == [0, 1, 2, 3]
    configs = [TransferConfig(1, addresses(target, range(1, 3)), range(1, 3), 4)]
    assert run(user, source.cache, Layers(), configs) == (SUCCESS, [SUCCESS])
    expected[2:6, 0] = source.data[2:6, 4]
    assert (target.data == expected).all()


def test_blocks_to_blocks_by_key(keys):
    """Item 47: both lists; or none, which is every block onto itself."""
    owner, user = keys
    target, source = owner.blocks(1, key=0), user.blocks(2)
    expected = target.data.copy()
    config = by_key(BlocksCacheKey(1), range(1, 2))
    assert run(user, source.cache, Layers(), [config], [1, 2], [7, 0]) == (SUCCESS, [SUCCESS])
    expected[2:, [7, 0]] = source.data[2:, [1, 2]]
    assert (target.data == expected).all()
    assert run(user, source.cache, Layers(), (config,))[0] is SUCCESS
    expected[2:] = source.data[2:]
    assert (target.data == expected).all()


def test_blocks_to_blocks_by_address(sides):
    """Item 47: addresses of the whole tensors; with and without the block's size."""
    owner, user = sides
    target, source = owner.blocks(1), user.blocks(2)
    expected = target.data.copy()
    configs = [TransferConfig(1, addresses(target, range(2)))]
    for size in (None, 0, 1024):
        assert run(user, source.cache, Layers(), configs, [3], [5], size)[0] is SUCCESS
        expected[:, 5] = source.data[:, 3]
        assert (target.data == expected).all()
        target.data[:] = expected = expected + 1


def test_block_lists_that_are_arrays(keys, sides):
    """An extension: ranges and integer arrays stand for lists."""
    owner, user = keys
    target, source = owner.blocks(1, key=0), user.blocks(2)
    config = by_key(BlocksCacheKey(1), range(2))
    lists = np.array([5, 1], np.int32), range(3, 5)
    assert run(user, source.cache, Layers(), [config], *lists)[0] is SUCCESS
    assert (target.data[:, 3:5] == source.data[:, [5, 1]]).all()
    owner, user = sides
    target, source = owner.blocks(1, words=32), user.slots(2, words=64)
    configs = [TransferConfig(1, addresses(target, range(2)))]
    assert run(user, source.cache, Layers(), configs, None, np.array([5, 2]), 256)[0] is SUCCESS
    assert (target.data[:, 5] == source.data[:, 0, :32]).all()


def test_slots_to_blocks_by_key(keys):
    """Item 47: piece i of the slot onto dst_block_indices[i]."""
    owner, user = keys
    target, source = owner.blocks(1, key=0, words=32), user.slots(2, words=128)
    expected = target.data.copy()
    config = by_key(BlocksCacheKey(1), range(2))
    status = run(
        user,
        source.cache,
        Layers(),
        [config],
        dst_block_indices=[6, 1, 3],
        dst_block_memory_size=256,
    )
    assert status == (SUCCESS, [SUCCESS])
    for piece, block in enumerate([6, 1, 3]):
        expected[:, block] = source.data[:, 0, 32 * piece : 32 * piece + 32]
    assert (target.data == expected).all()


def test_slots_to_blocks_by_address(sides):
    """Item 47: of any slot of the source."""
    owner, user = sides
    target, source = owner.blocks(1, words=32), user.slots(2, words=128)
    expected = target.data.copy()
    configs = [TransferConfig(1, addresses(target, range(2)), None, 3)]
    assert run(user, source.cache, Layers(), configs, None, [5, 2], 256)[0] is SUCCESS
    for piece, block in enumerate([5, 2]):
        expected[:, block] = source.data[:, 3, 32 * piece : 32 * piece + 32]
    assert (target.data == expected).all()


def test_a_contiguous_source_given_blocks_is_used_as_blocks(keys):
    """Item 47: its dimension 0 are the blocks."""
    owner, user = keys
    target, source = owner.blocks(1, key=0), user.slots(2)
    config = by_key(BlocksCacheKey(1), range(2))
    assert run(user, source.cache, Layers(), [config], [4, 0], [1, 2], 1024)[0] is SUCCESS
    assert (target.data[:, [1, 2]] == source.data[:, [4, 0]]).all()


def test_allocated_caches_take_part(sides):
    """Item 47: pools of both sides."""
    owner, user = sides
    for placement in Placement:
        desc = CacheDesc(4, [2, 64], DataType.DT_UINT64, placement)
        target = owner.manager.allocate_cache(desc)
        source = user.manager.allocate_cache(desc)
        for tensor in range(4):
            source.tensor(tensor)[:] = tensor + 1
        configs = [TransferConfig(1, target.tensor_addrs)]
        assert run(user, source, Layers(), configs)[0] is SUCCESS
        assert [int(target.tensor(tensor)[0, 5]) for tensor in range(4)] == [1, 2, 3, 4]
        assert not target.tensor(0)[1].any()
        owner.manager.deallocate_cache(target)
        user.manager.deallocate_cache(source)


def test_layers_are_sent_when_they_are_ready_not_before(keys):
    """Item 48: what the caller writes before it says ready is what arrives."""
    owner, user = keys
    target, source = owner.blocks(key=0, tensors=8), user.blocks(tensors=8)

    def compute(layer):
        assert not target.data[2 * layer :].any()
        source.data[2 * layer : 2 * layer + 2] = layer + 1
        return True

    config = by_key(BlocksCacheKey(1), range(4))
    assert run(user, source.cache, Layers(compute), [config])[0] is SUCCESS
    for layer in range(4):
        assert (target.data[2 * layer : 2 * layer + 2] == layer + 1).all()


def test_the_call_returns_at_once_and_waits_expire(keys):
    """Items 48 and 49: a slow synchronizer; an expired wait is no end; any thread may wait."""
    owner, user = keys
    target, source = owner.blocks(key=0), user.blocks(3)
    gate = Gate()
    config = by_key(BlocksCacheKey(1), range(2))
    task = user.manager.transfer_cache_async(source.cache, gate, [config])
    assert gate.entered.acquire(timeout=10)
    assert task.synchronize(0) is EXPIRED
    start = time.monotonic()
    assert task.synchronize(50) is EXPIRED
    assert time.monotonic() - start >= 0.05
    assert task.get_results(10) == [EXPIRED]
    assert "is_complete=False" in repr(task)
    results = []
    waiters = [threading.Thread(target=lambda: results.append(task.synchronize())) for _ in "abc"]
    for waiter in waiters:
        waiter.start()
    gate.open.release(2)
    for waiter in waiters:
        waiter.join(10)
    assert results == [SUCCESS] * 3
    for _ in range(2):
        assert task.synchronize() is SUCCESS
        assert task.get_results(1) == [SUCCESS]
    assert (target.data == source.data).all()


@pytest.mark.expects_log("layer 1")
def test_a_target_that_goes_between_two_layers(keys):
    """Items 47 and 55: what was sent stays; the rest is reported."""
    owner, user = keys
    source, target = user.blocks(2), owner.blocks(1, key=0)
    before = target.data.copy()

    def end(layer):
        if layer == 1:
            owner.clean()
        return True

    config = by_key(BlocksCacheKey(1), range(2))
    assert run(user, source.cache, Layers(end), [config]) == (GONE, [GONE])
    assert (target.data[:2] == source.data[:2]).all()
    assert (target.data[2:] == before[2:]).all()


@pytest.mark.expects_log("layer 1")
def test_a_source_that_goes_between_two_layers(sides):
    """Items 47 and 55."""
    owner, user = sides
    source, target = user.blocks(2), owner.blocks()

    def end(layer):
        if layer == 1:
            user.clean()
        return True

    configs = [TransferConfig(1, addresses(target, range(2)))]
    assert run(user, source.cache, Layers(end), configs, [0], [0]) == (GONE, [GONE])
    assert not target.data[2:].any()


def test_cancel(keys):
    """Item 49: no further layer is sent; idempotent; after the end it does nothing."""
    owner, user = keys
    source, target = user.blocks(2, tensors=8), owner.blocks(key=0, tensors=8)
    gate = Gate()
    config = by_key(BlocksCacheKey(1), range(4))
    task = user.manager.transfer_cache_async(source.cache, gate, [config])
    gate.open.release()
    assert gate.entered.acquire(timeout=10)
    assert gate.entered.acquire(timeout=10)  # asked for layer 1: layer 0 was sent
    for _ in range(2):
        task.cancel()  # the synchronizer still blocks; no thread waits for it
        assert task.synchronize(0) is FAILED
        assert task.get_results(0) == [FAILED]
    target.data[2:] = 7
    gate.open.release(3)
    eventually(lambda: not user.instance._engine.layerwise._running)
    assert (target.data[:2] == source.data[:2]).all()
    assert (target.data[2:] == 7).all()
    done = user.manager.transfer_cache_async(source.cache, Layers(), [config])
    assert done.synchronize(20000) is SUCCESS
    done.cancel()
    assert done.get_results() == [SUCCESS]


def test_quiet_after_cancel(keys):
    """Item 49: a layer that is on its way lands whole before cancel returns, or not at all."""
    owner, user = keys
    big = {"tensors": 4, "units": 32, "words": 32768}
    source, target = user.blocks(2, **big), owner.blocks(key=0, **big)
    configs = [by_key(BlocksCacheKey(1), range(2))]
    for attempt in range(6):
        target.data[:] = 0
        gate = Gate()
        task = user.manager.transfer_cache_async(source.cache, gate, configs)
        gate.open.release(2)
        time.sleep(0.001 * attempt)
        task.cancel()
        landed = target.data[:, ::4, ::512].copy()
        assert task.synchronize(0) in {SUCCESS, FAILED}
        time.sleep(0.02)
        assert (target.data[:, ::4, ::512] == landed).all()


def test_finalize_ends_tasks(backend):
    """Items 13 and 49: LLM_ENGINE_FINALIZED, even though the synchronizer never returns."""
    sides = linked_sides(backend, enable_remote_cache_accessible=True)
    owner, user = sides
    target, gate = owner.blocks(key=0), Gate()
    try:
        task = user.manager.transfer_cache_async(
            user.blocks(2).cache, gate, [by_key(BlocksCacheKey(1), range(2))]
        )
        assert gate.entered.acquire(timeout=10)
        finalize(user)
        assert task.synchronize(5000) is LLMStatusCode.LLM_ENGINE_FINALIZED
        assert task.get_results() == [LLMStatusCode.LLM_ENGINE_FINALIZED]
    finally:
        gate.open.release(4)
        finalize(*sides)
    assert not target.data.any()


def test_foreign_and_dead_sources(keys):
    """Items 39 and 47."""
    owner, user = keys
    foreign, gone = owner.blocks(key=0), user.blocks()
    user.manager.unregister_cache(gone.id)
    config = by_key(BlocksCacheKey(1), range(2))
    with failing("LLM_KV_CACHE_NOT_EXIST", OPERATION):
        user.manager.transfer_cache_async(gone.cache, Layers(), [config])
    with pytest.raises(LLMException) as caught:
        user.manager.transfer_cache_async(foreign.cache, Layers(), [config])
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
