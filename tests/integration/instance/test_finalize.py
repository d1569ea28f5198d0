"""LLMDataDist.finalize, also with calls under way (api.md 4.3)."""

import gc
import threading
import time

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LayerSynchronizer,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    MemInfo,
    Memtype,
    TransferWithCacheKeyConfig,
)
from llm_datadist.testing import leaks_since, snapshot

S = LLMStatusCode
#: The cache may be seen to be gone a moment before the link is.
OUT_OF_REACH = {S.LLM_KV_CACHE_NOT_EXIST, S.LLM_LINK_FAILED, S.LLM_NOT_YET_LINK}


class Gate(LayerSynchronizer):
    """Lets layers pass when asked, or calls something else first."""

    def __init__(self, first=lambda: None):
        self.entered = threading.Event()
        self.opened = threading.Event()
        self._first = first

    def synchronize_layer(self, layer_index, timeout_in_millis):
        self.entered.set()
        self._first()
        return self.opened.wait(30)


def test_finalize_of_what_is_not_initialized_does_nothing(options):
    """api.md checklist 13."""
    one = LLMDataDist(LLMRole.MIX, 1)
    one.finalize()
    one.init(options())
    one.finalize()
    one.finalize()


@pytest.mark.expects_log("dropped by the test", "link to cluster 1 at .* lost: ")
@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_descriptors_and_mappings_go_at_once(instance, info, blocks, backend):
    """Without the cyclic garbage collector, whatever the caller keeps (api.md checklist 13)."""
    kept = []

    def use_a_pair(number):
        pool = '{"memory_size": 65536}'
        near, far = (instance(each, mem_pool_cfg=pool, transfer_backend=backend) for each in (1, 2))
        near.link_clusters([info(far)])
        cache = blocks(near, 1).cache
        blocks(far, 2)
        near.cache_manager.pull_blocks(BlocksCacheKey(2), cache, [0], [0])
        with pytest.raises(LLMException) as caught:
            near.cache_manager.pull_blocks(BlocksCacheKey(2, 9), cache, [0], [0])
        lease = near.cache_manager.lease(BlocksCacheKey(2), [0])
        kept.append((near, far, near.cache_manager, cache, caught.value, lease))
        if number % 2:  # and the other end makes it again, until it is finalized
            near._engine.links.drop(near._engine.links.get(2), "dropped by the test")
        for side in (near, far) if number % 3 else (far, near):
            side.finalize()

    use_a_pair(0)
    gc.collect()
    gc.disable()
    try:
        before = snapshot()
        for number in range(12):
            use_a_pair(number)
        left = leaks_since(before, within_s=0)
    finally:
        gc.enable()
    assert [line for line in left if not line.startswith("thread")] == []


def test_peers_notice_at_once(pair, failure, eventually):
    """api.md checklist 13."""
    near, far = pair
    near.finalize()
    eventually(lambda: status_of(far.describe_link, 1) is S.LLM_NOT_YET_LINK, 1)
    assert failure(far.check_link_status, 1).status_code is S.LLM_NOT_YET_LINK


def status_of(call, *arguments):
    try:
        call(*arguments)
    except LLMException as error:
        return error.status_code
    return S.LLM_SUCCESS


def test_memory_is_out_of_reach_when_it_returns(pair, blocks, failure, eventually):
    """api.md checklist 13."""
    near, far = pair
    memory = blocks(near, 1).memory
    cache, target = blocks(far, 2)
    pulls = far.cache_manager
    pulls.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
    near.finalize()
    memory[:] = 77
    for _ in range(5):
        error = failure(pulls.pull_blocks, BlocksCacheKey(1), cache, [1], [1])
        assert error.status_code in OUT_OF_REACH
        error = failure(pulls.push_blocks, BlocksCacheKey(1), cache, [1], [1])
        assert error.status_code in OUT_OF_REACH
    assert (memory == 77).all()
    assert (target[:, 1:] == 2).all()
    eventually(lambda: status_of(far.check_link_status, 1) is S.LLM_NOT_YET_LINK)


def dial(one, address, info, cache, key):
    return one.link_clusters([info(address)], 30_000)


def unlink(one, address, info, cache, key):
    return one.unlink_clusters([info(cluster_id=9)], 30_000)


def check(one, address, info, cache, key):
    return one.check_link_status(9)


def pull(one, address, info, cache, key):
    return one.cache_manager.pull_blocks(key, cache, [0], [0])


def push(one, address, info, cache, key):
    return one.cache_manager.push_blocks(key, cache, [0], [0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "backend"),
    [
        (dial, "auto"),
        (unlink, "auto"),
        (check, "auto"),
        (push, "auto"),
        (pull, "tcp"),
        (push, "tcp"),
    ],
)
def test_calls_under_way_end_within_a_second(
    remote, instance, info, blocks, black_hole, background, eventually, call, backend
):
    """api.md checklist 13."""
    peer = remote(9, transfer_backend=backend)
    one = instance(1, transfer_backend=backend, sync_kv_timeout=30_000)
    assert one.link_clusters([info(peer)])[0] is S.LLM_SUCCESS
    cache, memory = blocks(one, 1)
    key = BlocksCacheKey(9)
    one.cache_manager.pull_blocks(key, cache, [7], [7])
    peer.peer.freeze()
    running = background(lambda: call(one, black_hole, info, cache, key))
    running.join(0.3)
    assert running.is_alive(), running.result()
    started = time.monotonic()
    one.finalize()
    took = time.monotonic() - started
    error = running.result()
    assert isinstance(error, LLMException)
    assert error.status_code is S.LLM_ENGINE_FINALIZED, error
    assert running.ended_at - started < 1
    assert took < 3
    peer.peer.thaw()
    assert (memory[:, :7] == 1).all()


def test_a_remap_under_way_ends_too(remote, instance, info, blocks, background):
    """api.md checklist 13."""
    peer, one = remote(9), instance(1, sync_kv_timeout=30_000)
    assert one.link_clusters([info(peer)])[0] is S.LLM_SUCCESS
    cache, _ = blocks(one, 1)
    peer.peer.freeze()
    region = MemInfo(Memtype.MEM_TYPE_DEVICE, cache.tensor_addrs[0], 1024)
    running = background(lambda: one.cache_manager.remap_registered_memory(region))
    running.join(0.3)
    assert running.is_alive(), running.result()
    started = time.monotonic()
    one.finalize()
    assert running.result().status_code is S.LLM_ENGINE_FINALIZED
    assert running.ended_at - started < 1
    peer.peer.thaw()


def task_of(one, peer_id, cache, synchronizer):
    layers = range(1)
    config = TransferWithCacheKeyConfig(BlocksCacheKey(peer_id), layers, layers)
    return one.cache_manager.transfer_cache_async(cache, synchronizer, [config], [0], [0])


def test_layerwise_transfers_end_too(instance, info, blocks):
    """api.md checklist 13."""
    near = instance(1, enable_remote_cache_accessible=True)
    far = instance(2, enable_remote_cache_accessible=True)
    assert near.link_clusters([info(far)])[0] is S.LLM_SUCCESS
    blocks(far, 2)
    gate = Gate()
    task = task_of(near, 2, blocks(near, 1).cache, gate)
    assert gate.entered.wait(5)
    started = time.monotonic()
    near.finalize()
    assert task.synchronize(1000) is S.LLM_ENGINE_FINALIZED
    assert task.get_results(0) == [S.LLM_ENGINE_FINALIZED]
    assert time.monotonic() - started < 2
    gate.opened.set()


def test_a_synchronizer_may_finalize(instance, info, blocks):
    """api.md checklist 13."""
    near = instance(1, enable_remote_cache_accessible=True)
    far = instance(2, enable_remote_cache_accessible=True)
    assert near.link_clusters([info(far)])[0] is S.LLM_SUCCESS
    target = blocks(far, 2).memory
    gate = Gate(near.finalize)
    gate.opened.set()
    task = task_of(near, 2, blocks(near, 1).cache, gate)
    assert task.synchronize(5000) is S.LLM_ENGINE_FINALIZED
    assert (target == 2).all()


def test_several_threads_may_finalize(pair, background):
    """api.md checklist 13."""
    near, _ = pair
    for ended in [background(near.finalize) for _ in range(4)]:
        assert ended.result() is None


def test_finalize_while_transfers_run(pair, blocks, background):
    """api.md checklist 13."""
    near, far = pair
    blocks(near, 1)
    cache, _ = blocks(far, 2)
    manager = far.cache_manager

    def pull_on():
        while True:
            manager.pull_blocks(BlocksCacheKey(1), cache, [0, 1, 2], [2, 1, 0])

    running = [background(pull_on) for _ in range(3)]
    time.sleep(0.05)
    far.finalize()
    for pulls in running:
        error = pulls.result()
        assert type(error) is RuntimeError or error.status_code is S.LLM_ENGINE_FINALIZED, error


def test_ids_restart_and_the_instance_works_again(pair, options, info, blocks, eventually):
    """api.md checklist 13, 33."""
    near, far = pair
    ids, comm_ids = [], []
    ranks, table = {1: 0, 2: 1}, '{"version": "1.0", "server_list": []}'
    for life in range(2):
        blocks(near, life, BlocksCacheKey(1, 1))
        ids.append(blocks(near, 10 + life).cache.cache_id)
        cache, memory = blocks(far, 0, BlocksCacheKey(2, life))
        far.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [3], [4])
        assert (memory[:, 4] == 10 + life).all()
        comm_ids.append(near.link(f"domain {life}", ranks, table))
        near.finalize()
        near.init(options())
        assert far.link_clusters([info(near)])[0] is S.LLM_SUCCESS
    assert ids == [2, 2]
    assert comm_ids == [1, 1]


def test_an_allocated_cache_goes_with_its_instance(instance, options):
    """api.md checklist 13."""
    one = instance(mem_pool_cfg='{"memory_size": 1048576}')
    cache = one.cache_manager.allocate_cache(CacheDesc(1, [4, 64], DataType.DT_INT8))
    one.finalize()
    one.init(options(mem_pool_cfg='{"memory_size": 1048576}'))
    again = one.cache_manager.allocate_cache(CacheDesc(1, [4, 64], DataType.DT_INT8))
    assert again.cache_id == cache.cache_id == 1
    assert not np.any(again.tensor(0))
    with pytest.raises(LLMException) as caught:
        one.cache_manager.copy_cache(again, cache)
    assert caught.value.status_code in {S.LLM_PARAM_INVALID, S.LLM_KV_CACHE_NOT_EXIST}
