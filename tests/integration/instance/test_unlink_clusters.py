"""LLMDataDist.unlink_clusters (api.md 4.5)."""

import time

import pytest

from llm_datadist import BlocksCacheKey, LLMStatusCode

S = LLMStatusCode
OK = (S.LLM_SUCCESS, [S.LLM_SUCCESS])
CANNOT_TELL = pytest.mark.expects_log("unlink_clusters: ", "link to cluster 9 at .* lost")


def gone(failure, one, cluster_id):
    return failure(one.describe_link, cluster_id).status_code is S.LLM_NOT_YET_LINK


@pytest.mark.parametrize("by", ["id", "address"])
@pytest.mark.parametrize("who", ["dialer", "acceptor"])
def test_both_ends_go(pair, info, blocks, failure, by, who):
    """api.md checklist 23."""
    near, far = pair
    cache, memory = blocks(far, 2)
    blocks(near, 1)
    one, other = (far, near) if who == "dialer" else (near, far)
    given = info(cluster_id=other.cluster_id) if by == "id" else info(other)
    assert one.unlink_clusters([given]) == OK
    assert gone(failure, near, 2)
    assert gone(failure, far, 1)
    error = failure(far.cache_manager.pull_blocks, BlocksCacheKey(1), cache, [0], [0])
    assert error.status_code is S.LLM_NOT_YET_LINK
    assert error.cluster_id == 1
    assert (memory == 2).all()
    assert far.link_clusters([info(near)]) == OK
    far.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
    assert (memory[:, 0] == 1).all()


@pytest.mark.parametrize("force", [True, False])
def test_not_linked_is_a_success(pair, instance, info, refusing, force):
    """api.md checklist 23."""
    near, far = pair
    unknown = [info(cluster_id=77), info(refusing), info(instance(3))]
    assert near.unlink_clusters(unknown, 1000, force) == (S.LLM_SUCCESS, [S.LLM_SUCCESS] * 3)
    far.check_link_status(1)
    assert near.unlink_clusters([]) == (S.LLM_SUCCESS, [])


def test_the_id_alone_decides(pair, info):
    """api.md checklist 23."""
    near, far = pair
    assert far.unlink_clusters([info(near, cluster_id=3)]) == OK
    far.check_link_status(1)


def test_neither_id_nor_address_is_refused_before_anything(pair, info, failure):
    """api.md checklist 23."""
    near, far = pair
    error = failure(far.unlink_clusters, [info(cluster_id=1), info()])
    assert error.status_code is S.LLM_PARAM_INVALID
    assert "clusters[1]" in str(error)
    near.check_link_status(2)


def test_forced_ends_this_side_at_once_and_the_other_soon(pair, info, failure, eventually):
    """api.md checklist 23."""
    near, far = pair
    assert near.unlink_clusters([info(cluster_id=2)], force=True) == OK
    assert gone(failure, near, 2)
    eventually(lambda: not far._engine.links.links(), 1)
    assert near.unlink_clusters([info(cluster_id=2)], force=True) == OK


@pytest.mark.slow
@CANNOT_TELL
@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("state", ["frozen", "dead", "known to be dead"])
def test_a_peer_that_cannot_be_told(
    instance, info, blocks, remote, failure, eventually, state, force
):
    """api.md checklist 23. This end goes, whatever the peer does."""
    here = instance(1)
    memory = blocks(here, 1).memory
    peer = remote(9)
    assert here.link_clusters([info(peer)]) == OK
    if state == "frozen":
        peer.peer.freeze()
    else:
        peer.kill()
    if state.startswith("known"):
        eventually(lambda: not here._engine.links.links(), 1)
    expected = S.LLM_SUCCESS if force else S.LLM_NOTIFY_PROMPT_UNLINK_FAILED
    started = time.monotonic()
    assert here.unlink_clusters([info(cluster_id=9)], 400, force=force) == (expected, [expected])
    assert time.monotonic() - started < 1.5
    assert gone(failure, here, 9)
    assert here.unlink_clusters([info(cluster_id=9)]) == OK
    if state == "frozen":
        peer.peer.thaw()
        time.sleep(0.05)
        assert (memory == 1).all()


@CANNOT_TELL
def test_the_first_failure_is_the_overall_status(instance, info, remote):
    """api.md checklist 23."""
    here, two, three = instance(1), instance(2), instance(3)
    peer = remote(9)
    assert here.link_clusters([info(two), info(peer), info(three)])[0] is S.LLM_SUCCESS
    peer.peer.freeze()
    status = S.LLM_NOTIFY_PROMPT_UNLINK_FAILED
    clusters = [info(cluster_id=2), info(cluster_id=9), info(three)]
    assert here.unlink_clusters(clusters, 300) == (status, [S.LLM_SUCCESS, status, S.LLM_SUCCESS])
    peer.peer.thaw()


def test_unlinks_that_cross(pair, info, background):
    """api.md checklist 23."""
    near, far = pair
    for _ in range(5):
        there = background(lambda: far.unlink_clusters([info(cluster_id=1)]))
        assert near.unlink_clusters([info(cluster_id=2)]) == OK
        assert there.result() == OK
        assert far.link_clusters([info(near)]) == OK


@pytest.mark.expects_log("clusters in one call, the limit is 16")
def test_at_most_16_clusters(pair, info):
    """api.md checklist 16."""
    near, far = pair
    status = S.LLM_CLUSTER_NUM_EXCEED_LIMIT
    assert near.unlink_clusters([info(cluster_id=2)] * 17) == (status, [status] * 17)
    far.check_link_status(1)


@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_no_transfer_touches_memory_when_it_returns(
    instance, info, blocks, failure, background, backend
):
    """api.md checklist 23."""
    near = instance(1, transfer_backend=backend)
    far = instance(2, transfer_backend=backend)
    kept = blocks(near, 1).memory
    cache, _ = blocks(far, 2)
    assert far.link_clusters([info(near)]) == OK

    def push_on():
        while True:
            far.cache_manager.push_blocks(BlocksCacheKey(1), cache, [0, 1], [6, 7])

    pushing = background(push_on)
    while (kept[:, 6] == 1).any():
        time.sleep(0.001)
    assert near.unlink_clusters([info(cluster_id=2)]) == OK
    kept[:] = 5
    error = pushing.result()
    assert error.status_code in {S.LLM_NOT_YET_LINK, S.LLM_LINK_FAILED}
    assert (kept == 5).all()
