"""Connections of the engine: tried first, made once, kept while a link uses them."""

from types import SimpleNamespace

import pytest

from llm_datadist._backends.base import Unavailable
from llm_datadist._backends.nixl.agent import NixlError
from llm_datadist._backends.nixl.connections import Connection, Connections
from llm_datadist._backends.nixl.trial import TrialTimeoutError

PEER = SimpleNamespace(agent="peer", connection=b"c", landing_metadata=b"")


class Agent:
    def __init__(self):
        self.calls, self.problem = [], None

    def load(self, metadata):
        if self.problem:
            raise self.problem
        self.calls.append(metadata)

    def forget_peer(self, name):
        self.calls.append(name)


@pytest.fixture
def agent():
    return Agent()


def test_the_last_link_that_is_quiet_disconnects(agent):
    connections = Connections(agent, None)
    links = [Connection(connections, PEER) for _ in range(3)]
    assert [link.open() for link in links[:2] * 2] == [""] * 4
    assert agent.calls == [b"c", b"c"]
    quiet = []
    links[0].close(lambda: bool(quiet))
    links[2].close(lambda: True)  # it was never open
    links[1].close(lambda: True)
    assert "peer" not in agent.calls
    quiet.append(True)
    links[2].open()
    links[2].close(lambda: True)
    assert agent.calls.count("peer") == 1


def test_a_refusal_is_final(agent):
    agent.problem = NixlError("no")
    link = Connection(Connections(agent, None), PEER)
    assert link.open() == "NIXL cannot connect: no"
    agent.problem = None
    assert link.open() == link.problem == "NIXL cannot connect: no"
    assert agent.calls == []


@pytest.mark.parametrize("reply", [(0, "it has ended"), TrialTimeoutError()])
def test_what_the_trial_process_refuses_is_unavailable(agent, reply):
    def loaded(peer, pieces, until):
        assert (peer, pieces) == ("peer", [b"c"])
        if isinstance(reply, Exception):
            raise reply
        return reply

    with pytest.raises(Unavailable, match=r"cannot connect: .*(ended|busy)"):
        Connections(agent, SimpleNamespace(loaded=loaded)).check(PEER)
