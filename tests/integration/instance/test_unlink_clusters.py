"""LLMDataDist.unlink_clusters (api.md 4.5).

The table below it is tested in tests/integration/links.
"""

import time

import pytest

from llm_datadist import BlocksCacheKey, LLMStatusCode

S = LLMStatusCode
OK = (S.LLM_SUCCESS, [S.LLM_SUCCESS])


def gone(failure, one, cluster_id):
    return failure(one.describe_link, cluster_id).status_code is S.LLM_NOT_YET_LINK


def test_both_ends_go(pair, info, blocks, failure):
    """api.md checklist 23."""
    near, far = pair
    cache, memory = blocks(far, 2)
    blocks(near, 1)
    assert far.unlink_clusters([info(near)]) == OK
    assert gone(failure, near, 2)
    assert gone(failure, far, 1)
    error = failure(far.cache_manager.pull_blocks, BlocksCacheKey(1), cache, [0], [0])
    assert error.status_code is S.LLM_NOT_YET_LINK
    assert error.cluster_id == 1
    assert (memory == 2).all()
    assert far.link_clusters([info(near)]) == OK
    far.cache_manager.pull_blocks(BlocksCacheKey(1), cache, [0], [0])
    assert (memory[:, 0] == 1).all()


def test_neither_id_nor_address_is_refused_before_anything(pair, info, failure):
    """api.md checklist 23."""
    near, far = pair
    error = failure(far.unlink_clusters, [info(cluster_id=1), info()])
    assert error.status_code is S.LLM_PARAM_INVALID
    assert "clusters[1]" in str(error)
    near.check_link_status(2)


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
