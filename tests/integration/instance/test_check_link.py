"""LLMDataDist.check_link_status and describe_link (api.md 4.8)."""

import time

import pytest

from llm_datadist import BlocksCacheKey, LLMStatusCode

S = LLMStatusCode
LOST = pytest.mark.expects_log("link to cluster 9 at .* lost")


def test_a_live_link_answers_both_ends(pair):
    """api.md checklist 31."""
    near, far = pair
    assert near.check_link_status(2) is None
    assert far.check_link_status(remote_cluster_id=1) is None


@pytest.mark.parametrize("call", ["check_link_status", "describe_link"])
def test_without_a_link(pair, failure, call):
    """api.md checklist 31."""
    near, _ = pair
    for cluster_id in (0, 1, 3, 2**64 - 1):
        error = failure(getattr(near, call), cluster_id)
        assert error.status_code is S.LLM_NOT_YET_LINK
        assert error.operation == call
        assert error.cluster_id == cluster_id


@pytest.mark.slow
def test_a_frozen_peer_does_not_answer_and_keeps_its_link(instance, info, remote, failure):
    """api.md checklist 31."""
    near_end, peer = instance(1, sync_kv_timeout=300), remote(9)
    assert near_end.link_clusters([info(peer)])[0] is S.LLM_SUCCESS
    peer.peer.freeze()
    started = time.monotonic()
    error = failure(near_end.check_link_status, 9)
    assert error.status_code is S.LLM_TIMEOUT
    assert 0.25 < time.monotonic() - started < 1
    assert "300 ms" in str(error)
    peer.peer.thaw()
    near_end.check_link_status(9)
    assert peer.ask("check", 1) == "done"


@pytest.mark.slow
@LOST
def test_a_peer_that_dies_meanwhile(instance, info, remote, background):
    """api.md checklist 31."""
    near_end, peer = instance(1, sync_kv_timeout=20_000), remote(9)
    assert near_end.link_clusters([info(peer)])[0] is S.LLM_SUCCESS
    peer.peer.freeze()
    checking = background(lambda: near_end.check_link_status(9))
    checking.join(0.1)
    peer.kill()
    assert checking.result(2).status_code is S.LLM_LINK_FAILED


@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_a_link_tells_about_itself(instance, info, blocks, backend):
    near = instance(1, transfer_backend=backend)
    far = instance(2, transfer_backend=backend)
    assert far.link_clusters([info(near)])[0] is S.LLM_SUCCESS
    facts = {1: far.describe_link(1), 2: near.describe_link(cluster_id=2)}
    for cluster_id, side in ((1, near), (2, far)):
        told = facts[cluster_id]
        assert told["cluster_id"] == cluster_id
        assert told["peer"] == "{}:{}".format(*side.listen_address)
        assert told["state"] == "LINKED"
        assert told["backend"] == {"host": backend, "device": backend}
        assert backend in told["why"]
        assert told["lanes"] >= 1
        assert int(told["incarnation"], 16)
        assert set(told["counters"].values()) == {0}
    assert facts[1]["incarnation"] != facts[2]["incarnation"]
    assert (facts[1]["opened_by"], facts[2]["opened_by"]) == ("this end", "the peer")


def test_a_link_counts_what_it_moves(pair, blocks, failure):
    near, far = pair
    blocks(near, 1)
    cache, _ = blocks(far, 2)
    manager, key = far.cache_manager, BlocksCacheKey(1)
    manager.pull_blocks(key, cache, [0, 1], [0, 1])
    manager.pull_blocks(key, cache, [2], [2])
    manager.push_blocks(key, cache, [3], [3])
    failure(manager.pull_blocks, BlocksCacheKey(1, 5), cache, [0], [0])
    counters = far.describe_link(1)["counters"]
    assert counters["pulls"] == 2
    assert counters["pulled_bytes"] == 3 * 2 * 1024
    assert counters["pushes"] == 1
    assert counters["pushed_bytes"] == 2 * 1024


def test_what_is_told_changes_nothing(pair):
    near, _ = pair
    told = near.describe_link(2)
    told["counters"]["pulls"] = 99
    told.clear()
    assert near.describe_link(2)["counters"]["pulls"] == 0
