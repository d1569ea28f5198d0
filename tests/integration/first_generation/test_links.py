"""Links of the first generation (api.md 8)."""

import socket
import threading

import pytest

from llm_datadist import CacheKeyByIdAndIndex, LLMClusterInfo, LLMDataDist, LLMRole, LLMStatusCode
from support.first_generation import desc_of, link, options_of
from support.instances import failing
from support.setup import LOOPBACK, info_of
from support.setup import started as started_with_cache_manager

S = LLMStatusCode
FAILURES = pytest.mark.expects_log("link_clusters: clusters")


@pytest.fixture
def free():
    """An address that nothing listens at, and that nothing else takes."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, 0))
        yield sock.getsockname()


def free_later():
    """Return an address that was free just now."""
    with socket.create_server((LOOPBACK, 0)) as sock:
        return sock.getsockname()


@FAILURES
def test_overall_is_success_whenever_the_arguments_are_valid(instance, free):
    """Callers look at the list."""
    prompt, decoder = instance(LLMRole.PROMPT, 1), instance(LLMRole.DECODER, 2)
    wrong = info_of(prompt, cluster_id=5)
    overall, each = decoder.link_clusters([info_of(prompt), wrong, info_of(free)], 300)
    assert overall is S.LLM_SUCCESS
    assert each == [S.LLM_SUCCESS, S.LLM_LINK_FAILED, S.LLM_LINK_FAILED]


@pytest.mark.expects_log("the limit is 16")
def test_arguments_are_checked_as_ever(instance):
    decoder = instance(LLMRole.DECODER, 2)
    with failing("LLM_PARAM_INVALID", "link_clusters", "timeout"):
        decoder.link_clusters([], 0)
    no_local = LLMClusterInfo()
    no_local.append_remote_ip_info(LOOPBACK, 1)
    with failing("LLM_PARAM_INVALID", "link_clusters", "local_ip_info_list is empty"):
        decoder.link_clusters([no_local])
    exceeded = S.LLM_CLUSTER_NUM_EXCEED_LIMIT
    many = [info_of((LOOPBACK, 1))] * 17
    assert decoder.link_clusters(many) == (exceeded, [exceeded] * 17)


def test_a_peer_that_does_not_listen_yet_is_dialed_until_it_does(instance):
    address = free_later()
    decoder = instance(LLMRole.DECODER, 2)
    outcome = []
    linking = threading.Thread(
        target=lambda: outcome.append(decoder.link_clusters([info_of(address)], 20000))
    )
    linking.start()
    prompt = instance(LLMRole.PROMPT, 1, listen="{}:{}".format(*address))
    linking.join()
    assert outcome == [(S.LLM_SUCCESS, [S.LLM_SUCCESS])]
    assert [link.cluster_id for link in prompt._engine.links.links()] == [2]


@FAILURES
def test_a_peer_that_never_listens_is_dialed_until_the_timeout(instance, free, caplog):
    """Only the first of its dials is for information."""
    caplog.set_level("DEBUG", "llm_datadist")
    decoder = instance(LLMRole.DECODER, 2)
    assert decoder.link_clusters([info_of(free)], 400)[1] == [S.LLM_LINK_FAILED]
    dials = [record for record in caplog.records if "dial failed" in record.getMessage()]
    assert len(dials) > 2
    assert [record.levelname for record in dials[:3]] == ["INFO", "DEBUG", "DEBUG"]


@FAILURES
def test_a_peer_that_refuses_is_not_dialed_again(instance):
    """It would not change its mind; the cause is reported at once."""
    prompt, decoder = instance(LLMRole.PROMPT, 1), instance(LLMRole.DECODER, 2, link_secret="s")
    assert decoder.link_clusters([info_of(prompt)], 60000)[1] == [S.LLM_LINK_FAILED]


@FAILURES
def test_a_silent_peer_is_a_timeout_of_this_generation(instance):
    decoder = instance(LLMRole.DECODER, 2)
    with socket.create_server((LOOPBACK, 0)) as silent:
        statuses = decoder.link_clusters([info_of(silent.getsockname())], 200)
    assert statuses == (S.LLM_SUCCESS, [S.LLM_WAIT_PROCESS_TIMEOUT])


def test_unlink_with_the_original_object(instance):
    """With the id as it was given or not given, and again."""
    prompt, decoder = instance(LLMRole.PROMPT, 0), instance(LLMRole.DECODER, 0)
    for cluster_id in (None, 0):
        info = info_of(prompt, cluster_id=cluster_id)
        assert decoder.link_clusters([info])[1] == [S.LLM_SUCCESS]
        for _ in range(2):
            assert decoder.unlink_clusters([info]) == (S.LLM_SUCCESS, [S.LLM_SUCCESS])
            assert prompt._engine.links.links() == []


def test_the_prompt_unlinks_by_id(instance):
    prompt, decoder = instance(LLMRole.PROMPT, 1), instance(LLMRole.DECODER, 2)
    link(decoder, prompt)
    info = LLMClusterInfo()
    info.remote_cluster_id = 2
    assert prompt.unlink_clusters([info])[1] == [S.LLM_SUCCESS]
    assert decoder._engine.links.links() == []


def test_check_link_status(linked):
    prompt, decoder = linked
    assert decoder.check_link_status(1) is None
    assert prompt.check_link_status(remote_cluster_id=2) is None
    with failing("LLM_NOT_YET_LINK", "check_link_status", peer=9):
        decoder.check_link_status(9)


def test_several_listen_addresses(instance):
    """Each accepts links; all of one cluster's addresses are of one instance."""
    prompt = instance(LLMRole.PROMPT, 1, listen="127.0.0.1:0;127.0.0.2:0;[::1]:0")
    listeners = prompt._engine.links._listeners._main
    addresses = [listener.address for _, listener in listeners]
    assert [host for host, _ in addresses] == ["127.0.0.1", "127.0.0.2", "::1"]
    assert prompt.listen_address == addresses[0]
    for cluster_id, address in enumerate(addresses, 2):
        (status,) = instance(LLMRole.DECODER, cluster_id).link_clusters(
            [info_of(address, local=address[0])]
        )[1]
        assert status is S.LLM_SUCCESS
    info = info_of(addresses[0])
    for address in addresses[1:]:
        info.append_remote_ip_info(*address)
        info.append_local_ip_info(address[0], 0)
    assert instance(LLMRole.DECODER, 9).link_clusters([info])[1] == [S.LLM_SUCCESS]


def test_an_address_of_several_that_is_in_use(instance):
    taken = "{}:{}".format(*instance(LLMRole.PROMPT, 1).listen_address)
    with failing("LLM_FAILED", "init", taken):
        LLMDataDist(LLMRole.PROMPT, 2).init(
            options_of(LLMRole.PROMPT, listen=f"{LOOPBACK}:0;{taken}")
        )


@FAILURES
@pytest.mark.parametrize("dialing", ["first generation", "cache manager"])
def test_a_peer_of_the_other_generation_is_refused(instance, dialing, caplog):
    """With a sentence, at once."""
    first, other = instance(LLMRole.MIX, 1), started_with_cache_manager(2)
    with other:
        dialer, acceptor = (first, other) if dialing == "first generation" else (other, first)
        statuses = dialer.link_clusters([info_of(acceptor)], 60000)[1]
    assert statuses == [S.LLM_LINK_FAILED]
    who = "the dialer" if dialer is first else "the acceptor"
    assert f"{who} is in first-generation mode (kv_cache_manager)" in caplog.text
    assert "llm.EnableCacheManager" in caplog.text


def test_caches_allocated_after_the_link(linked, managers):
    prompt, decoder = managers
    source, target = prompt.allocate_cache(desc_of()), decoder.allocate_cache(desc_of())
    decoder.pull_cache(CacheKeyByIdAndIndex(1, source.cache_id), target)
