"""link_peer, unlink_peer, describe_*, caches: extensions that take one peer and raise."""

import json

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    DataType,
    LLMException,
    LLMStatusCode,
    Placement,
)
from llm_datadist.layouts import dense
from support.instances import failing
from support.setup import started


@pytest.fixture
def instances():
    made = [started(1), started(2), started(3, listen=None)]
    yield made
    for instance in made:
        instance.finalize()


def test_a_peer_is_linked_by_its_address_alone(instances):
    one, other, client = instances
    ip, port = one.listen_address
    assert other.link_peer(f"{ip}:{port}") == 1
    assert client.link_peer(one.listen_address, cluster_id=1, timeout=5000) == 1
    assert client.link_peer((f"{ip}", port)) == 1  # already linked
    assert client.link_peer(f"localhost:{other.listen_address[1]}") == 2
    assert [link["cluster_id"] for link in client.describe_links()] == [1, 2]
    assert client.describe_links()[0] == client.describe_link(1)
    client.unlink_peer(1)
    client.unlink_peer(1)
    assert [link["cluster_id"] for link in client.describe_links()] == [2]
    client.unlink_peer(2, force=True)
    assert client.describe_links() == []


def test_what_link_clusters_reports_is_raised(instances):
    one, other, client = instances
    client.link_peer(one.listen_address)
    with failing("LLM_LINK_FAILED", "link_peer", "4", "2"):
        client.link_peer(other.listen_address, cluster_id=4)
    ip, port = other.listen_address
    other.finalize()
    with pytest.raises(LLMException, match=f"{ip}:{port}") as refused:
        client.link_peer((ip, port))
    assert refused.value.status_code is LLMStatusCode.LLM_LINK_FAILED


@pytest.mark.parametrize("address", ["", "127.0.0.1", ":1", "127.0.0.1:", "127.0.0.1:1x", "::1"])
def test_addresses_that_are_none(instances, address):
    with failing("LLM_PARAM_INVALID", "link_peer", "address is"):
        instances[2].link_peer(address)


def test_arguments(instances):
    client = instances[2]
    for bad in (None, 5, ["127.0.0.1", 1], ("127.0.0.1",)):
        with pytest.raises(TypeError, match="address must be str or"):
            client.link_peer(bad)
    with pytest.raises(ValueError, match="port"):
        client.link_peer("127.0.0.1:70000")
    with pytest.raises(TypeError, match="cluster_id"):
        client.link_peer("127.0.0.1:1", cluster_id="1")
    with failing("LLM_PARAM_INVALID", "link_peer", "timeout is 0"):
        client.link_peer("127.0.0.1:1", timeout=0)
    with failing("LLM_PARAM_INVALID", "unlink_peer", "timeout is 0"):
        client.unlink_peer(1, timeout=0)
    with pytest.raises(TypeError, match="force"):
        client.unlink_peer(1, force=1)


def test_not_initialized(instances):
    one = instances[0]
    one.finalize()
    for call in (
        lambda: one.link_peer("127.0.0.1:1"),
        lambda: one.unlink_peer(1),
        one.describe_links,
        lambda: one.describe_remote_caches(2),
    ):
        with pytest.raises(RuntimeError, match="not initialized"):
            call()


def test_the_live_caches():
    instance = started(1, mem_pool_cfg='{"memory_size": 1048576}')
    manager = instance.cache_manager
    assert manager.caches() == []
    array = np.zeros((4, 8))
    registered = manager.register_tensors([array])
    allocated = manager.allocate_cache(CacheDesc(1, [2, 8], DataType.DT_INT8), [CacheKey(1, 5)])
    assert manager.caches() == [registered, allocated]
    manager.deallocate_cache(allocated)  # its key holds it still
    assert manager.caches() == [registered]
    manager.unregister_cache(registered.cache_id)
    assert manager.caches() == []
    instance.finalize()
    with pytest.raises(RuntimeError, match="caches"):
        manager.caches()


@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_the_caches_that_a_peer_offers_now(backend):
    owner = started(1, transfer_backend=backend, mem_pool_cfg='{"memory_size": 1048576}')
    reader = started(2, transfer_backend=backend, listen=None)
    reader.link_peer(owner.listen_address)
    assert reader.describe_remote_caches(1) == []
    manager = owner.cache_manager
    layout = dense(
        "NHD", layers=range(1), kv_heads=2, heads=range(2), head_size=4,
        data_type=DataType.DT_FLOAT, block_tokens=4,
    )  # fmt: skip
    blocks = [np.zeros((8, 32), np.float32) for _ in range(2)]
    shared = manager.register_tensors(blocks, BlocksCacheKey(1, 7), layout=layout)
    private = manager.register_cache(
        CacheDesc(1, [4, 2], DataType.DT_INT8, Placement.HOST), [blocks[0].ctypes.data]
    )
    keys = [CacheKey(1, 5), CacheKey(1, 6, 2, 3)]
    pooled = manager.allocate_cache(CacheDesc(1, [2, 8], DataType.DT_INT8), keys)
    first, second, third = reader.describe_remote_caches(1)
    assert first == {
        "cache_id": shared.cache_id,
        "kind": "blocks",
        "num_tensors": 2,
        "shape": [8, 32],
        "data_type": "DT_FLOAT",
        "placement": "HOST",
        "bytes": 2048,
        "on_device": False,
        "accessible": True,
        "named": True,
        "blocks_key": {"model_id": 7},
        "keys": [],
        "layout": str(layout),
    }
    assert (second["cache_id"], second["accessible"]) == (private.cache_id, False)
    assert (second["kind"], second["placement"], second["bytes"]) == ("contiguous", "HOST", 8)
    assert (third["cache_id"], third["blocks_key"], third["layout"]) == (
        pooled.cache_id,
        None,
        None,
    )
    names = ("req_id", "model_id", "prefix_id")
    assert third["keys"] == [{name: getattr(key, name) for name in names} for key in keys]
    assert json.loads(json.dumps([first, second, third])) == [first, second, third]
    manager.unregister_cache(shared.cache_id)
    manager.remove_cache_key(keys[0])
    left = reader.describe_remote_caches(1)
    assert [cache["cache_id"] for cache in left] == [private.cache_id, pooled.cache_id]
    assert [key["req_id"] for key in left[1]["keys"]] == [6]
    for instance in (owner, reader):
        instance.finalize()


def test_the_caches_of_a_peer_that_is_not_linked(instances):
    with failing("LLM_NOT_YET_LINK", "describe_remote_caches", "9"):
        instances[2].describe_remote_caches(9)
    with pytest.raises(TypeError, match="cluster_id"):
        instances[2].describe_remote_caches("9")
