"""Slots for a peer's writes: one grant per link, which ends with it."""

import pytest

from llm_datadist._backends.nixl import grants as module
from llm_datadist._backends.nixl.agent import NixlError
from llm_datadist._backends.nixl.grants import Grants
from llm_datadist._backends.node import Node


class Agent:
    """Registers, until it refuses to describe."""

    def __init__(self):
        self.registered, self.refuses = [], False

    def register(self, rows, kind):
        self.registered.append(int(rows[0, 0]))

    def deregister(self, rows, kind):
        self.registered.remove(int(rows[0, 0]))

    def region_metadata(self, rows, kind):
        if self.refuses:
            raise NixlError("no")
        return b"metadata"


@pytest.fixture
def agent():
    return Agent()


@pytest.fixture
def grants(agent):
    node = Node(11)
    made = Grants(node, agent)
    yield made
    made.close()
    node.close()
    node.release()


def test_a_grant_lives_as_long_as_its_link(grants, agent):
    address, metadata = grants.offer(1)
    assert metadata == b"metadata"
    assert grants.use(1) is not None
    assert grants.use(1) is None
    assert agent.registered == [address]
    grants.revoke(1)
    grants.revoke(1)
    assert agent.registered == []


def test_an_offer_replaces_the_one_before(grants, agent):
    grants.offer(1)
    address, _ = grants.offer(1)
    assert agent.registered == [address]


def test_links_that_are_never_made_keep_few(grants, agent, monkeypatch):
    monkeypatch.setattr(module, "_MAX_OFFERS", 2)
    kept = [grants.offer(link_id)[0] for link_id in range(4)]
    assert agent.registered == kept[2:]
    assert [grants.use(link_id) is not None for link_id in range(4)] == [False, False, True, True]


def test_what_the_engine_refuses_is_not_offered(grants, agent):
    agent.refuses = True
    with pytest.raises(NixlError):
        grants.offer(1)
    assert agent.registered == []
    assert grants.use(1) is None
