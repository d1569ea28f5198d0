"""Data planes of links that are made and ended, without a peer."""

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from llm_datadist import LLMException
from llm_datadist._backends.node import Node
from llm_datadist._backends.tcp import TcpBackend
from llm_datadist._engine.link.delegate import DataPlanes, Endpoint
from llm_datadist._engine.link.messages import Marked
from llm_datadist._errors import LLMStatusCode
from llm_datadist._options.settings import Config
from llm_datadist._plan import Plan

LINK_ID = 5
MARKS = [Marked((3, 31), ((0x1000, 64),))]
PEER = SimpleNamespace(cluster_id=2, incarnation=7, page_proof=bytes(16))


class End:
    """One end of a link: a node, and the data planes of its links."""

    def __init__(self, *backends):
        self.node = Node(1)
        self.planes = DataPlanes(Config(), self.node, list(backends), {})
        self.ended = []
        links = SimpleNamespace(repair_lanes=lambda link_id: None)
        self.planes.attach(links, lambda: MARKS, self.ended.append)

    def is_open(self, guard):
        return self.node.guard(guard[0]) == guard[1]

    def offer(self):
        return msgspec.msgpack.decode(self.planes.endpoint(LINK_ID), type=Endpoint)

    def connect(self, endpoint):
        return self.planes.connect(PEER, LINK_ID, endpoint, [], [])


@pytest.fixture
def make_end():
    made = []

    def make(*backends):
        made.append(End(*backends))
        return made[-1]

    yield make
    for end in made:
        end.node.close()
        end.node.release()


def test_an_endpoint_has_the_marks_and_a_guard_of_the_link(make_end):
    end = make_end(TcpBackend())
    offer = end.offer()
    assert end.is_open(offer.link_ref)
    assert list(offer.marks) == MARKS
    assert list(offer.backends) == ["tcp"]


def test_a_new_link_knows_the_marks_of_its_peer(make_end):
    end = make_end(TcpBackend())
    data = end.connect(end.planes.endpoint(LINK_ID))
    plan = Plan(*np.array([[0x1000], [0x1000], [1]], np.uint64), 1)
    assert data.marks.touched((3, 31), plan) == [(0x1000, 64)]
    assert data.marks.touched((3, 33), plan) == []
    end.planes.disconnect(data)


def test_a_link_that_ends_closes_its_guard(make_end):
    end = make_end(TcpBackend())
    guard = end.offer().link_ref
    endpoint = end.planes.endpoint(LINK_ID + 1)
    data = end.connect(endpoint)
    assert data.own_link_ref == guard
    assert end.is_open(guard)
    end.planes.disconnect(data)
    assert not end.is_open(guard)
    assert end.ended == [LINK_ID]


@pytest.mark.parametrize("endpoint", ["of no backend", "malformed"])
def test_a_link_that_cannot_be_made_leaves_no_guard(make_end, endpoint):
    end = make_end(TcpBackend())
    guard = end.offer().link_ref
    data = make_end().planes.endpoint(LINK_ID) if endpoint == "of no backend" else b"\xff"
    with pytest.raises(LLMException, match="no data path to the peer") as raised:
        end.connect(data)
    assert raised.value.status_code is LLMStatusCode.LLM_LINK_FAILED
    assert not end.is_open(guard)


def test_the_guard_of_a_link_that_never_comes_is_closed_later(make_end, monkeypatch):
    end = make_end(TcpBackend())
    guard = end.offer().link_ref
    monkeypatch.setattr("llm_datadist._engine.link.delegate._OFFER_S", -1.0)
    end.planes.endpoint(LINK_ID + 1)
    assert not end.is_open(guard)
