"""LLMDataDist.link_clusters and what a link is good for (api.md 4.4).

The table below it is tested in tests/integration/links.
"""

import pytest

from llm_datadist import (
    BlocksCacheKey,
    LLMClusterInfo,
    LLMRole,
    LLMStatusCode,
)

S = LLMStatusCode
OK = (S.LLM_SUCCESS, [S.LLM_SUCCESS])
FAILS = pytest.mark.expects_log("link_clusters: ")


@FAILS
def test_one_status_per_cluster_in_order_and_the_first_failure_overall(
    instance, info, refusing, black_hole
):
    """api.md checklist 15."""
    one = instance(1)
    two, three = instance(2), instance(3)
    overall, each = one.link_clusters(
        [info(two), info(black_hole), info(refusing), info(three)], 500
    )
    assert each == [S.LLM_SUCCESS, S.LLM_TIMEOUT, S.LLM_LINK_FAILED, S.LLM_SUCCESS]
    assert overall is S.LLM_TIMEOUT
    assert type(each) is list
    assert all(type(status) is LLMStatusCode for status in each)


@pytest.mark.parametrize("kind", [list, tuple])
def test_clusters_are_a_list_or_a_tuple(instance, info, kind):
    """api.md checklist 15."""
    one, two = instance(1), instance(2)
    result = one.link_clusters(kind([info(two)]))
    assert result == OK
    assert type(result) is tuple
    assert one.link_clusters(kind()) == (S.LLM_SUCCESS, [])


def test_the_timeout_is_a_keyword_too(instance, info):
    """api.md checklist 15."""
    assert instance(1).link_clusters(clusters=[info(instance(2))], timeout=5000) == OK


@pytest.mark.expects_log("17 clusters in one call, the limit is 16")
def test_at_most_16_clusters(instance, info, failure):
    """api.md checklist 16."""
    one, two = instance(1), instance(2)
    status = S.LLM_CLUSTER_NUM_EXCEED_LIMIT
    assert one.link_clusters([info(two)] * 17) == (status, [status] * 17)
    assert failure(one.describe_link, 2).status_code is S.LLM_NOT_YET_LINK
    assert one.link_clusters([info(two)] * 16) == (S.LLM_SUCCESS, [S.LLM_SUCCESS] * 16)


def test_threads_that_link_one_peer_all_succeed(instance, info, background):
    """api.md checklist 19."""
    one, two = instance(1), instance(2)
    calls = [background(lambda: one.link_clusters([info(two)])) for _ in range(8)]
    assert [call.result() for call in calls] == [OK] * 8
    assert one.describe_link(2)["generation"] == 1


def test_a_missing_local_ip_is_named(instance, info, failure):
    """api.md checklist 17."""
    one, two = instance(1), instance(2)
    error = failure(one.link_clusters, [info(two), info(two, local=None)])
    assert error.status_code is S.LLM_PARAM_INVALID
    assert "local_ip_info_list is empty" in str(error)
    assert "clusters[1]" in str(error)
    assert failure(one.describe_link, 2).status_code is S.LLM_NOT_YET_LINK


def test_one_local_ip_and_no_more(instance, info, failure):
    """api.md checklist 17."""
    several = info(instance(2))
    several.append_local_ip_info("127.0.0.1", 5)
    error = failure(instance(1).link_clusters, [several])
    assert error.status_code is S.LLM_PARAM_INVALID
    assert "local_ip_info_list has 2 entries" in str(error)


@pytest.mark.parametrize("value", ["", '{"version": "1.3"}'])
def test_local_comm_res_does_without_local_ips(instance, info, value):
    """api.md checklist 17."""
    one = instance(1, local_comm_res=value)
    assert one.link_clusters([info(instance(2), local=None)]) == OK


def test_a_remote_address_is_needed(instance, failure):
    """api.md checklist 17."""
    without = LLMClusterInfo()
    without.remote_cluster_id = 2
    without.append_local_ip_info("127.0.0.1", 0)
    error = failure(instance(1).link_clusters, [without])
    assert error.status_code is S.LLM_PARAM_INVALID
    assert "remote_ip_info_list is empty" in str(error)


@pytest.mark.parametrize("as_text", [True, False])
def test_addresses_as_text_or_as_numbers(instance, as_text):
    """api.md checklist 18."""
    one, two = instance(1), instance(2)
    loopback = "127.0.0.1" if as_text else 127 + (1 << 24)
    by = LLMClusterInfo()
    by.append_remote_ip_info(loopback, two.listen_address[1])
    by.append_local_ip_info(loopback, 65535)
    assert one.link_clusters([by]) == OK


def pulls(reader, key, blocks, value):
    """Return whether the reader gets the value through the key."""
    cache, memory = blocks(reader, 0, BlocksCacheKey(reader.cluster_id, 90 + int(value)))
    reader.cache_manager.pull_blocks(key, cache, [1, 2], [5, 6])
    return (memory[:, 5:7] == value).all() and (memory[:, :5] == 0).all()


@pytest.mark.parametrize("cluster_id", [0, 2**64 - 1])
def test_an_id_is_learned(instance, info, blocks, cluster_id):
    """api.md checklist 18."""
    one, two = instance(5), instance(cluster_id)
    blocks(two, 2)
    blocks(one, 5)
    assert one.link_clusters([info(two)]) == OK
    assert one.describe_link(cluster_id)["cluster_id"] == cluster_id
    assert pulls(one, BlocksCacheKey(cluster_id), blocks, 2)
    assert pulls(two, BlocksCacheKey(5), blocks, 5)


def test_an_instance_links_to_itself(instance, info, blocks):
    """api.md checklist 20."""
    one = instance(1)
    blocks(one, 6)
    assert one.link_clusters([info(one)]) == OK
    assert one.describe_link(1)["is_self"] is True
    one.check_link_status(1)
    assert pulls(one, BlocksCacheKey(1), blocks, 6)
    assert one.unlink_clusters([info(cluster_id=1)]) == OK


@FAILS
def test_a_frozen_peer_times_out_and_can_be_linked_later(instance, info, remote):
    """api.md checklist 22."""
    one, peer = instance(1), remote(9)
    peer.peer.freeze()
    assert one.link_clusters([info(peer)], 300) == (S.LLM_TIMEOUT, [S.LLM_TIMEOUT])
    peer.peer.thaw()
    assert one.link_clusters([info(peer)], 10_000) == OK


ROLES = [
    (LLMRole.PROMPT, LLMRole.DECODER),
    (LLMRole.DECODER, LLMRole.PROMPT),
    (LLMRole.DECODER, LLMRole.DECODER),
]


@pytest.mark.parametrize("backend", ["host", "tcp"])
@pytest.mark.parametrize("roles", ROLES)
def test_a_link_serves_both_sides_whatever_their_roles(instance, info, blocks, backend, roles):
    """api.md checklist 24."""
    one = instance(1, roles[0], transfer_backend=backend)
    two = instance(2, roles[1], transfer_backend=backend, listen=None)
    early = {1: blocks(one, 1), 2: blocks(two, 2)}
    assert two.link_clusters([info(one)]) == OK
    late = {
        side.cluster_id: blocks(side, 0, BlocksCacheKey(side.cluster_id, 1)) for side in (one, two)
    }
    for side, other in ((one, 2), (two, 1)):
        cache, memory = late[side.cluster_id]
        manager = side.cache_manager
        manager.pull_blocks(BlocksCacheKey(other), cache, [0], [3])
        assert (memory[:, 3] == other).all()
        memory[:, 4] = 50 + other
        manager.push_blocks(BlocksCacheKey(other), cache, [4], [7])
        assert (early[other].memory[:, 7] == 50 + other).all()
        side.check_link_status(other)
