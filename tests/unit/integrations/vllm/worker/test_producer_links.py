"""Links of a consumer's worker: made once, checked once, not tried again at once when silent."""

import ctypes
from types import SimpleNamespace

import pytest

from llm_datadist import LLMException, LLMStatusCode
from llm_datadist.integrations.vllm.kv_transfer_params import RankAddress
from llm_datadist.integrations.vllm.worker import producer_links
from llm_datadist.integrations.vllm.worker.compatibility import Expected, write_facts
from llm_datadist.integrations.vllm.worker.producer_links import (
    Incompatible,
    ProducerLinks,
    Unreachable,
)

S = LLMStatusCode
RANK = RankAddress("192.0.2.7", 7000, 7)
FACTS = {"model": "m", "block size": "16"}


class Worker:
    """A worker's instance; `statuses` are those of its next dials, `page` what producers show."""

    facts = FACTS
    options = SimpleNamespace(link_timeout_ms=60_000)

    def __init__(self):
        self.instance = self.cache_manager = self
        self.dialed, self.unlinked = [], []
        self.statuses = []
        self.page = write_facts(FACTS)

    def link_clusters(self, infos, timeout_ms):
        (info,) = infos
        self.dialed.append((info.remote_cluster_id, info.remote_ip_info_list))
        status = self.statuses.pop(0) if self.statuses else S.LLM_SUCCESS
        return status, [status]

    def unlink_clusters(self, infos, force):
        self.unlinked += [(info.remote_cluster_id, force) for info in infos]

    def register_blocks_cache(self, desc, addrs, remote_accessible):
        assert remote_accessible is False
        return SimpleNamespace(cache_id=1, address=addrs[0])

    def unregister_cache(self, cache_id):
        pass

    def pull_blocks(self, key, cache, src_blocks, dst_blocks):
        if isinstance(self.page, Exception):
            raise self.page
        ctypes.memmove(cache.address, self.page, len(self.page))


@pytest.fixture
def worker():
    return Worker()


@pytest.fixture
def links(worker):
    return ProducerLinks(worker)


def test_a_producer_is_dialed_once_until_its_link_is_dropped(worker, links):
    links.link(RANK)
    links.link(RANK)
    assert worker.dialed == [(7, [("192.0.2.7", 7000)])]
    links.drop(RANK)
    links.link(RANK)
    assert len(worker.dialed) == 2


def test_a_producer_that_does_not_fit_is_unlinked_and_never_dialed_again(worker, links):
    worker.page = write_facts(FACTS | {"block size": "32"})
    for _ in range(2):
        with pytest.raises(Incompatible, match="block size: producer '32', consumer '16'"):
            links.link(RANK)
    assert len(worker.dialed) == 1
    assert worker.unlinked == [(7, True)]


def test_what_an_offer_says_falsely_of_a_producer_does_not_keep_others_from_it(worker, links):
    expected = Expected(FACTS | {"block size": "64"}, "expected")
    for _ in range(2):
        with pytest.raises(Incompatible, match="block size: producer '16', expected '64'"):
            links.link(RANK, expected)
    assert worker.unlinked == [(7, True)]
    links.link(RANK)
    with pytest.raises(Incompatible):
        links.link(RANK, expected)
    links.link(RANK)
    assert len(worker.dialed) == 2
    assert len(worker.unlinked) == 1, "the link is in use"


@pytest.mark.parametrize("page", [b"{" + b" " * 100, LLMException("gone")])
def test_a_producer_whose_facts_cannot_be_read_is_no_producer(worker, links, page):
    worker.page = page
    with pytest.raises(Unreachable, match="no facts of the producer"):
        links.link(RANK)
    worker.page = write_facts(FACTS)
    links.link(RANK)
    assert len(worker.dialed) == 2


def test_a_producer_that_did_not_answer_is_not_tried_again_at_once(worker, links):
    worker.statuses = [S.LLM_TIMEOUT]
    for _ in range(2):
        with pytest.raises(Unreachable):
            links.link(RANK)
    assert len(worker.dialed) == 1
    links._silent[7] = (0.0, "long ago")
    links.link(RANK)
    links.mark_silent(RANK, "a pull timed out")
    with pytest.raises(Unreachable, match="a pull timed out"):
        links.link(RANK)
    links.link(RankAddress("192.0.2.8", 7000, 8))
    assert [cluster_id for cluster_id, _ in worker.dialed] == [7, 7, 8]


def test_producers_of_long_ago_are_forgotten_and_asked_again(worker, links, monkeypatch):
    monkeypatch.setattr(producer_links, "_MOST_KEPT", 3)
    for cluster_id in range(1, 20):
        links.link(RankAddress("192.0.2.7", 7000, cluster_id))
        links.mark_silent(RankAddress("192.0.2.7", 7000, 100 + cluster_id), "a pull timed out")
    for kept in (links._facts, links._linked, links._silent):
        assert 0 < len(kept) <= 3
    assert not links._dial_locks
    worker.page = write_facts(FACTS | {"block size": "32"})
    with pytest.raises(Incompatible, match="block size: producer '32'"):
        links.link(RankAddress("192.0.2.7", 7000, 1))


def test_a_producer_whose_facts_are_forgotten_is_not_taken_as_checked(worker, links):
    links.link(RANK)
    links._facts.clear()
    worker.page = write_facts(FACTS | {"block size": "32"})
    with pytest.raises(Incompatible, match="block size: producer '32'"):
        links.link(RANK)
