"""Error texts: each names operation, status, peer, what is wrong and what to do.

`test_arguments` looks at the texts of all refused arguments; here are the failures of calls that
were made well, as far as a person needs more than the status.
"""

import copy
import pickle
import re
from functools import partial

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Placement,
)
from support.instances import check_text

S = LLMStatusCode
DESC = CacheDesc(2, [8, 256], DataType.DT_FLOAT)


def pull(instance, key, cache, block=0):
    return lambda: instance.cache_manager.pull_blocks(key, cache, [block], [0])


@pytest.fixture
def far(instance, blocks):
    made = instance(2, mem_pool_cfg='{"memory_size": 65536}')
    blocks(made, 2)
    desc = CacheDesc(1, [8, 256], DataType.DT_FLOAT, Placement.HOST)
    made.cache_manager.register_blocks_cache(desc, [4096], BlocksCacheKey(2, 3))
    return made


@pytest.fixture
def near(instance, info, far):
    made = instance(1)
    assert made.link_clusters([info(far)])[0] is S.LLM_SUCCESS
    return made


def teaching(call, status, operation, *words, peer=None):
    """Check the exception of a call; return it."""
    with pytest.raises(LLMException) as caught:
        call()
    check_text(caught.value, status, operation, *words, peer=peer)
    text = str(caught.value)
    assert "\n" not in text
    assert " object at 0x" not in text
    return caught.value


def test_a_key_that_names_nothing(near, blocks):
    cache = blocks(near, 1).cache
    for key, *words in (
        (BlocksCacheKey(2, 77), "model_id=77", "it has BlocksCacheKeys with model_id 0, 3"),
        (CacheKey(2, 5), "req_id=5", "it has no CacheKeys"),
        (CacheKeyByIdAndIndex(2, 99), "cache_id=99", "it has caches 1, 2"),
    ):
        call = (
            pull(near, key, cache)
            if isinstance(key, BlocksCacheKey)
            else lambda key=key: near.cache_manager.pull_blocks(key, cache, [], [0])
        )
        teaching(call, "LLM_KV_CACHE_NOT_EXIST", "pull_blocks", *words, peer=2)


@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_a_key_that_is_gone_says_why(instance, info, backend):
    """Also before the owner has noticed what a peer did to its key."""
    pool = {"mem_pool_cfg": '{"memory_size": 1048576}', "transfer_backend": backend}
    near, far = instance(1, **pool), instance(2, **pool)
    assert near.link_clusters([info(far)])[0] is S.LLM_SUCCESS
    owner, target = far.cache_manager, near.cache_manager.allocate_cache(DESC)
    keys = [CacheKey(2, number) for number in range(5)]
    cache = owner.allocate_cache(DESC, keys)

    def gone(key, why):
        call = partial(near.cache_manager.pull_cache, key, target)
        teaching(call, "LLM_KV_CACHE_NOT_EXIST", "pull_cache", f"{key} any more: {why}", peer=2)

    near.cache_manager.pull_cache(keys[0], target)
    gone(keys[0], "a pull has consumed it;")
    owner.remove_cache_key(keys[1])  # the owner notices the pull too
    gone(keys[0], "a pull has consumed it;")
    gone(keys[1], "its owner has removed it;")
    owner.deallocate_cache(cache)
    gone(CacheKeyByIdAndIndex(2, cache.cache_id), "it was deallocated;")
    near.cache_manager.pull_cache(keys[2], target)
    memory = np.zeros((2, 8, 256), np.float32)
    addrs = [tensor.ctypes.data for tensor in memory]
    registered = owner.register_cache(DESC, addrs, [CacheKey(2, 9)])
    near.cache_manager.pull_cache(CacheKeyByIdAndIndex(2, registered.cache_id), target)
    owner.unregister_cache(registered.cache_id)
    gone(CacheKeyByIdAndIndex(2, registered.cache_id), "it was unregistered;")
    gone(CacheKey(2, 9), "its cache was unregistered;")


def test_a_cache_of_this_instance_that_is_gone_says_why(near, far):
    manager = far.cache_manager
    cache = manager.allocate_cache(CacheDesc(1, [4], DataType.DT_INT8))
    manager.deallocate_cache(cache)
    call = partial(manager.copy_cache, cache, cache)
    teaching(call, "LLM_KV_CACHE_NOT_EXIST", "copy_cache", "is gone: it was deallocated")


def test_a_cache_that_is_not_for_peers(near, blocks):
    cache = blocks(near, 1).cache
    call = pull(near, BlocksCacheKey(2, 3), cache)
    teaching(call, "LLM_PARAM_INVALID", "pull_blocks", "cache 2", "remote_accessible", peer=2)


def test_nobody_linked(near, blocks):
    cache = blocks(near, 1).cache
    for call, operation in (
        (pull(near, BlocksCacheKey(7), cache), "pull_blocks"),
        (lambda: near.check_link_status(7), "check_link_status"),
        (lambda: near.describe_link(7), "describe_link"),
    ):
        teaching(call, "LLM_NOT_YET_LINK", operation, "link_clusters", peer=7)


@pytest.mark.slow
def test_a_peer_that_does_not_answer(instance, info, blocks, remote):
    peer = remote(9, transfer_backend="tcp")
    near = instance(1, transfer_backend="tcp", sync_kv_timeout=200)
    cache = blocks(near, 1).cache
    assert near.link_clusters([info(peer)])[0] is S.LLM_SUCCESS
    peer.peer.freeze()
    address = "{}:{}".format(*peer.listen_address)
    words = ("200 ms", "sync_kv_timeout", "127.0.0.1", str(peer.listen_address[1]), "link")
    teaching(pull(near, BlocksCacheKey(9), cache), "LLM_TIMEOUT", "pull_blocks", *words, peer=9)
    call = partial(near.check_link_status, 9)
    teaching(call, "LLM_TIMEOUT", "check_link_status", "200 ms", address, peer=9)
    peer.peer.thaw()


@pytest.mark.slow
@pytest.mark.expects_log("link to cluster 9 at .* lost: ")
def test_a_peer_that_dies(instance, info, blocks, remote, eventually, background):
    peer = remote(9, transfer_backend="tcp")
    near = instance(1, transfer_backend="tcp", sync_kv_timeout=20_000)
    cache = blocks(near, 1).cache
    assert near.link_clusters([info(peer)])[0] is S.LLM_SUCCESS
    peer.peer.freeze()
    pulling = background(pull(near, BlocksCacheKey(9), cache))
    pulling.join(0.1)
    peer.kill()
    words = ("link", str(peer.listen_address[1]), "again")
    error = pulling.result(2)
    check_text(error, "LLM_LINK_FAILED", "pull_blocks", *words, peer=9)
    assert f"cluster 9 at 127.0.0.1:{peer.listen_address[1]} ended during the call: " in str(error)
    eventually(lambda: not near._engine.links.links())
    call = pull(near, BlocksCacheKey(9), cache)
    teaching(call, "LLM_NOT_YET_LINK", "pull_blocks", "lost", "link_clusters", peer=9)


def test_addresses_that_cannot_be_had(near, options):
    taken = "{}:{}".format(*near.listen_address)
    one = LLMDataDist(LLMRole.MIX, 3)
    teaching(lambda: one.init(options(listen=taken)), "LLM_FAILED", "init", taken, "free port")
    with one:
        one.init(options())
        call = partial(one.switch_role, LLMRole.MIX, {"llm.listenIpInfo": taken})
        words = (near.listen_address[1], "earlier state")
        teaching(call, "LLM_FAILED", "switch_role", *words)


def test_a_call_before_init_says_what_to_call():
    one = LLMDataDist(LLMRole.MIX, 3)
    with pytest.raises(RuntimeError, match=r"check_link_status: .* not initialized; call init\(\)"):
        one.check_link_status(1)


@pytest.mark.expects_log("link_clusters: ", "17 clusters")
def test_reasons_of_returned_failures_are_in_the_log(near, instance, info, refusing, caplog):
    """A status list has no room for them."""
    near.link_clusters([info(refusing), info(instance(4), cluster_id=5)], 2000)
    near.link_clusters([info(instance(2))])
    near.link_clusters([info(refusing)] * 17)
    lines = [re.sub(r":\d+", ":PORT", record.getMessage()) for record in caplog.records]
    wanted = [
        r"link_clusters: clusters\[0\]: .*LLM_LINK_FAILED: 127.0.0.1:PORT: .*check that the peer",
        r"link_clusters: clusters\[1\]: .*LLM_LINK_FAILED: .* expected cluster 5, .* cluster 4; ",
        r"link_clusters: clusters\[0\]: .*LLM_ALREADY_LINK: .* cluster id 2 .*; .* different ids",
        r"link_clusters: 17 clusters in one call, the limit is 16; split the call",
    ]
    for pattern in wanted:
        assert any(re.match(pattern, line) for line in lines), (pattern, lines)


def test_an_exception_carries_its_facts(near, blocks):
    call = pull(near, BlocksCacheKey(2, 77), blocks(near, 1).cache)
    error = teaching(call, "LLM_KV_CACHE_NOT_EXIST", "pull_blocks", peer=2)
    assert isinstance(error, RuntimeError)
    assert not isinstance(error, TypeError | ValueError)
    assert error.faults == ()
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is LLMException
        assert str(twin) == str(error)
        assert (twin.status_code, twin.operation, twin.cluster_id, twin.faults) == (
            error.status_code,
            error.operation,
            error.cluster_id,
            error.faults,
        )
