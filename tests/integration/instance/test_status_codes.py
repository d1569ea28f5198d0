"""Every status code that the API can give is given by some real situation (api.md 9)."""

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
    TransferConfig,
)
from support.instances import Pages, check_text

S = LLMStatusCode
DESC = CacheDesc(2, [8, 256], DataType.DT_FLOAT)

#: For callers to compare with; no call of this package gives them. LLM_UNLINK_FAILED and the two
#: after it have a second code for the same thing, which is the one that is given.
NEVER_GIVEN = {
    S.LLM_UNLINK_FAILED,
    S.LLM_DEVICE_OUT_OF_MEMORY,
    S.LLM_LINK_BUSY,
    S.LLM_UNKNOWN_ERROR,
    S.LLM_REPEAT_REQUEST,
    S.LLM_REQUEST_ALREADY_COMPLETED,
    S.LLM_PREFIX_ALREADY_EXIST,
    S.LLM_PREFIX_NOT_EXIST,
    S.LLM_SEQ_LENOVERLIMIT,
    S.LLM_NO_FREE_BLOCK,
    S.LLM_BLOCKS_OUT_OF_MEMORY,
}


class Situation:
    """What the situations below are made of."""

    def __init__(self, request):
        for name in ("instance", "info", "blocks", "remote", "options", "background"):
            setattr(self, name, request.getfixturevalue(name))
        for name in ("refusing", "black_hole"):
            setattr(self, name, request.getfixturevalue(name))

    def linked(self, other, **properties):
        """Return an instance that is linked to another, and a blocks cache of it."""
        near = self.instance(1, **properties)
        assert near.link_clusters([self.info(other)])[0] is S.LLM_SUCCESS
        return near, self.blocks(near, 1).cache

    def two(self, **properties):
        far = self.instance(2, **properties)
        self.blocks(far, 2)
        near, cache = self.linked(far, **properties)
        return near, far, cache


@pytest.fixture
def situation(request):
    return Situation(request)


def success(at):
    near, _, cache = at.two()
    near.cache_manager.pull_blocks(BlocksCacheKey(2), cache, [0], [0])
    return near.link_clusters([])[0]


def param_invalid(at):
    near, _, cache = at.two()
    near.cache_manager.pull_blocks(BlocksCacheKey(2), cache, [0], [99])


def kv_cache_not_exist(at):
    near, _, cache = at.two()
    near.cache_manager.pull_blocks(BlocksCacheKey(2, 5), cache, [0], [0])


def not_yet_link(at):
    near = at.instance(1)
    cache = at.blocks(near, 1).cache
    near.cache_manager.pull_blocks(BlocksCacheKey(2), cache, [0], [0])


def already_link(at):
    near, _, _ = at.two()
    return near.link_clusters([at.info(at.instance(2))])[0]


def link_failed(at):
    return at.instance(1).link_clusters([at.info(at.refusing)])[0]


def link_failed_in_a_call(at):
    peer = at.remote(9)
    near, cache = at.linked(peer, sync_kv_timeout=20_000, transfer_backend="tcp")
    peer.peer.freeze()
    pulling = at.background(
        lambda: near.cache_manager.pull_blocks(BlocksCacheKey(9), cache, [0], [0])
    )
    pulling.join(0.1)
    peer.kill()
    raise pulling.result(2)


def notify_prompt_unlink_failed(at):
    peer = at.remote(9)
    near, _ = at.linked(peer)
    peer.peer.freeze()
    status = near.unlink_clusters([at.info(cluster_id=9)], 200)[0]
    peer.peer.thaw()
    return status


def processing_link(at):
    """Another call sets the same link up, for longer than the timeout of this one."""
    near, far = at.instance(1), at.instance(2)
    held, let_go = threading.Event(), threading.Event()
    plane = near._engine.links._context.delegate
    connect = plane.connect

    def slow_connect(*arguments):
        held.set()
        assert let_go.wait(10)
        return connect(*arguments)

    plane.connect = slow_connect
    first = at.background(lambda: near.link_clusters([at.info(far)], 20_000)[0])
    assert held.wait(20)
    status = near.link_clusters([at.info(far)], 500)[0]
    let_go.set()
    assert first.result() is S.LLM_SUCCESS
    return status


def cluster_num_exceed_limit(at):
    return at.instance(1).link_clusters([at.info(at.refusing)] * 17)[0]


def exist_link(at):
    at.two()[0].switch_role(LLMRole.PROMPT)


def feature_not_enabled(at):
    at.instance(1).cache_manager.allocate_cache(DESC)


def timeout(at):
    peer = at.remote(9, transfer_backend="tcp")
    near, cache = at.linked(peer, sync_kv_timeout=200, transfer_backend="tcp")
    peer.peer.freeze()
    try:
        near.cache_manager.pull_blocks(BlocksCacheKey(9), cache, [0], [0])
    finally:
        peer.peer.thaw()


def link_timeout(at):
    return at.instance(1).link_clusters([at.info(at.black_hole)], 200)[0]


class Slow(LayerSynchronizer):
    def __init__(self, answer, gate=None):
        self.answer, self.gate = answer, gate

    def synchronize_layer(self, layer_index, timeout_in_millis):
        if self.gate is not None:
            self.gate.result()
        return self.answer


def push_layers(at, synchronizer, timeout_ms=None):
    near, far, cache = at.two()
    target = at.blocks(far, 3, BlocksCacheKey(2, 1)).cache
    config = TransferConfig(2, target.tensor_addrs)
    task = near.cache_manager.transfer_cache_async(cache, synchronizer, [config], [0], [0])
    status = task.synchronize(timeout_ms)
    if timeout_ms is not None:
        assert task.synchronize() is S.LLM_SUCCESS
    return status


def wait_process_timeout(at):
    return push_layers(at, Slow(True, at.background(lambda: time.sleep(0.3))), 20)


def failed(at):
    return push_layers(at, Slow(False))


def failed_to_listen(at):
    taken = at.instance(1).listen_address
    LLMDataDist(LLMRole.MIX, 2).init(at.options(listen="{}:{}".format(*taken)))


def out_of_memory(at):
    near = at.instance(1, mem_pool_cfg='{"memory_size": 65536}')
    near.cache_manager.allocate_cache(DESC)


def with_missing_page(at, *, remote):
    near, far, _ = at.two()
    pages = Pages(2, 8)
    desc = CacheDesc(2, [8, pages.shape[2]], DataType.DT_UINT64)
    faulty, good = (far, near) if remote else (near, far)
    addrs = [pages.at(0, 0), pages.at(1, 0)]
    bad = faulty.cache_manager.register_blocks_cache(desc, addrs, BlocksCacheKey(2, 7))
    data = np.zeros(pages.shape, np.uint64)
    addrs = [tensor.ctypes.data for tensor in data]
    other = good.cache_manager.register_blocks_cache(desc, addrs, BlocksCacheKey(2, 7))
    pages.unmap(0, 1)
    try:
        own = other if remote else bad
        near.cache_manager.pull_blocks(BlocksCacheKey(2, 7), own, [1], [1])
    finally:
        faulty.cache_manager.unregister_cache(bad.cache_id)
        good.cache_manager.unregister_cache(other.cache_id)
        pages.close()


def device_mem_error(at):
    with_missing_page(at, remote=False)


def suspect_remote_error(at):
    with_missing_page(at, remote=True)


def engine_finalized(at):
    peer = at.remote(9)
    near, _ = at.linked(peer, sync_kv_timeout=20_000)
    peer.peer.freeze()
    checking = at.background(lambda: near.check_link_status(9))
    checking.join(0.1)
    near.finalize()
    peer.peer.thaw()
    raise checking.result(2)


#: Situation -> (status, the call that is to be named, its peer); the call is None where the status
#: is returned.
GIVEN = {
    success: (S.LLM_SUCCESS, None, None),
    param_invalid: (S.LLM_PARAM_INVALID, "pull_blocks", None),
    kv_cache_not_exist: (S.LLM_KV_CACHE_NOT_EXIST, "pull_blocks", 2),
    not_yet_link: (S.LLM_NOT_YET_LINK, "pull_blocks", 2),
    already_link: (S.LLM_ALREADY_LINK, None, None),
    link_failed: (S.LLM_LINK_FAILED, None, None),
    link_failed_in_a_call: (S.LLM_LINK_FAILED, "pull_blocks", 9),
    notify_prompt_unlink_failed: (S.LLM_NOTIFY_PROMPT_UNLINK_FAILED, None, None),
    processing_link: (S.LLM_PROCESSING_LINK, None, None),
    cluster_num_exceed_limit: (S.LLM_CLUSTER_NUM_EXCEED_LIMIT, None, None),
    exist_link: (S.LLM_EXIST_LINK, "switch_role", None),
    feature_not_enabled: (S.LLM_FEATURE_NOT_ENABLED, "allocate_cache", None),
    timeout: (S.LLM_TIMEOUT, "pull_blocks", 9),
    link_timeout: (S.LLM_TIMEOUT, None, None),
    wait_process_timeout: (S.LLM_WAIT_PROCESS_TIMEOUT, None, None),
    failed: (S.LLM_FAILED, None, None),
    failed_to_listen: (S.LLM_FAILED, "init", None),
    out_of_memory: (S.LLM_OUT_OF_MEMORY, "allocate_cache", None),
    device_mem_error: (S.LLM_DEVICE_MEM_ERROR, "pull_blocks", 2),
    suspect_remote_error: (S.LLM_SUSPECT_REMOTE_ERROR, "pull_blocks", 2),
    engine_finalized: (S.LLM_ENGINE_FINALIZED, "check_link_status", 9),
}


def test_every_status_is_given_or_never():
    given = {status for status, _, _ in GIVEN.values()}
    assert given | NEVER_GIVEN == set(LLMStatusCode)
    assert not given & NEVER_GIVEN


@pytest.mark.slow
@pytest.mark.expects_log
@pytest.mark.leaves_resources("exceptions hold what their calls held")
@pytest.mark.parametrize("cause", GIVEN, ids=lambda cause: cause.__name__)
def test_a_status_is_given(situation, cause):
    status, operation, peer = GIVEN[cause]
    if operation is None:
        assert cause(situation) is status
    else:
        with pytest.raises(LLMException) as caught:
            cause(situation)
        check_text(caught.value, status.name, operation, peer=peer)
