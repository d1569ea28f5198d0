"""link_peer, unlink_peer, describe_links and caches: extensions that take one peer and raise."""

import numpy as np
import pytest

from llm_datadist import CacheDesc, CacheKey, DataType, LLMException, LLMStatusCode
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
