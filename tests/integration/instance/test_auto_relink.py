"""Links that come back by themselves (LLMConfig.auto_relink, an extension), as callers see it."""

import time

import pytest

from llm_datadist import BlocksCacheKey, LLMException, LLMRole, LLMStatusCode

S = LLMStatusCode
OK = (S.LLM_SUCCESS, [S.LLM_SUCCESS])
EVERY = list(range(8))
pytestmark = pytest.mark.expects_log("link to cluster 9 at .* lost")


def at(address):
    return "{}:{}".format(*address)


def pulls(one, target):
    """Return the status of a pull from cluster 9; it must not take long."""
    began = time.monotonic()
    try:
        one.cache_manager.pull_blocks(BlocksCacheKey(9), target.cache, EVERY, EVERY)
    except LLMException as error:
        if "re-established" in str(error):
            assert error.status_code is S.LLM_NOT_YET_LINK
            assert time.monotonic() - began < 0.5
        return error.status_code
    return S.LLM_SUCCESS


@pytest.mark.parametrize("backend", ["host", "tcp"])
def test_transfers_work_again_when_the_peer_is_back(instance, remote, blocks, info, backend):
    """Under its id and at its address; nothing is called for it."""
    near = instance(2, listen=None, transfer_backend=backend)
    target = blocks(near, 0)
    peer = remote(9, 1.0, transfer_backend=backend)
    assert near.link_clusters([info(peer)]) == OK
    assert near.describe_link(9)["relinked"] == 0
    place = at(peer.listen_address)
    for times in (1, 2):
        assert pulls(near, target) is S.LLM_SUCCESS
        assert (target.memory == times).all()
        peer.kill()
        seen = set()
        while not near.describe_relinks():
            seen.add(pulls(near, target))
        seen.add(pulls(near, target))
        assert S.LLM_NOT_YET_LINK in seen
        peer = remote(9, times + 1.0, transfer_backend=backend, listen=place)
        deadline = time.monotonic() + 15
        while (status := pulls(near, target)) is not S.LLM_SUCCESS:
            assert status is S.LLM_NOT_YET_LINK
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert (target.memory == times + 1).all()
        assert near.describe_link(9)["relinked"] == times
        assert near.describe_relinks() == []
    assert peer.ask("check", 2) == "done"


def test_a_pending_link_stands_in_the_way_of_nothing(
    instance, remote, info, failure, eventually, refusing
):
    """Neither of a change of role, which gives it up, nor of one that fails, nor of finalize."""
    near = instance(2)
    for change in ("role", "finalize"):
        peer = remote(9)
        assert near.link_clusters([info(peer)]) == OK
        place = at(peer.listen_address)
        peer.kill()
        eventually(near.describe_relinks)
        (facts,) = near.describe_relinks()
        assert facts["cluster_id"] == 9
        assert facts["peer"] == place
        wrong = {"llm.listenIpInfo": at(refusing)}
        assert failure(near.switch_role, LLMRole.PROMPT, wrong).status_code is S.LLM_FAILED
        assert near.describe_relinks() != []
        if change == "role":
            near.switch_role(LLMRole.PROMPT, {"llm.listenIpInfo": "127.0.0.1:0"})
            assert near.describe_relinks() == []
            assert "link_clusters again" in str(failure(near.check_link_status, 9))
        else:
            near.finalize()
