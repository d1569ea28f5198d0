"""Peers are asked to drop ranges; those that do not answer lose their links."""

from types import SimpleNamespace

import msgspec
import pytest

from llm_datadist import LLMException, LLMStatusCode
from llm_datadist._engine.instance import Lifetime
from llm_datadist._engine.link.messages import Remapped
from llm_datadist._engine.memory.drop_ranges import drop_ranges
from llm_datadist._errors import fail

DEADLINE_NS = 123


class Links:
    """A link table whose peers answer, but for those in `silent`."""

    def __init__(self, *cluster_ids, silent=()):
        self.all = [SimpleNamespace(cluster_id=cluster_id) for cluster_id in cluster_ids]
        self.silent = silent
        self.asked = []
        self.dropped = []

    def links(self):
        return [link for link in self.all if link.cluster_id not in self.dropped]

    def request_all(self, links, body, deadline_ns, on_failure):
        assert deadline_ns == DEADLINE_NS
        message = msgspec.msgpack.decode(body, type=Remapped)
        self.asked.append(([link.cluster_id for link in links], message.ranges))
        for link in links:
            if link.cluster_id in self.silent:
                on_failure(link, fail(LLMStatusCode.LLM_TIMEOUT, "request", "slow", "wait"))

    def drop(self, link, reason):
        assert "no answer to remap" in reason
        self.dropped.append(link.cluster_id)


def drop(links, ranges, life=None, **more):
    return drop_ranges(links, life or Lifetime(), "remap", ranges, DEADLINE_NS, **more)


def test_many_ranges_are_several_messages():
    """No message is larger than the receiver takes."""
    links, ranges = Links(1, 2), tuple((number * 8, 8) for number in range(2500))
    assert drop(links, ranges) == []
    assert [(peers, len(part)) for peers, part in links.asked] == [
        ([1, 2], 1024),
        ([1, 2], 1024),
        ([1, 2], 452),
    ]
    assert tuple(each for _, part in links.asked for each in part) == ranges


@pytest.mark.expects_log("cluster 2 loses its link")
def test_a_silent_peer_loses_its_link_and_is_not_asked_again():
    links = Links(1, 2, silent={2})
    assert [link.cluster_id for link in drop(links, ((0, 8),) * 1025)] == [2]
    assert links.dropped == [2]
    assert [peers for peers, _ in links.asked] == [[1, 2], [1]]


def test_only_the_links_concerned_are_asked():
    links = Links(1, 2)
    drop(links, ((0, 8),), concerns=lambda link: link.cluster_id == 2)
    drop(links, ((0, 8),), concerns=lambda _: False)
    drop(links, ())
    assert [peers for peers, _ in links.asked] == [[2]]


def test_no_link_is_dropped_by_an_instance_that_is_closing():
    links = Links(1, silent={1})
    with pytest.raises(LLMException) as raised:
        drop(links, ((0, 8),), Lifetime(closing=True))
    assert raised.value.status_code is LLMStatusCode.LLM_ENGINE_FINALIZED
    assert links.dropped == []
