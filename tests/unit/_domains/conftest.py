"""Parts of domains made alone: links that are only states, no sockets, no threads."""

import threading

import pytest

from llm_datadist._domains.domain import Domain
from llm_datadist._domains.pair import Pair
from llm_datadist._links import DomainHello

LIMIT = 100.0  # deadline of the domains; tests give the time


class FakeLink:
    """What domains read of a link."""

    def __init__(self, cluster_id):
        self.cluster_id = cluster_id
        self.address = ("127.0.0.1", 9)
        self.lost = threading.Event()
        self.reason, self.died = "", False

    @property
    def alive(self):
        return not self.lost.is_set()

    def end(self, reason, *, died=True):
        self.reason, self.died = reason, died
        self.lost.set()


class Events:
    """Records what a domain asks for."""

    def __init__(self):
        self.dialed, self.left = [], []

    def dial(self, peer_id):
        self.dialed.append(peer_id)

    def leave(self, link, message):
        self.left.append((link, message))


def make_domain(cluster_id, ranks, events, name="x", comm_id=1):
    own = ranks[cluster_id]
    pairs = [
        Pair(peer_id, rank, (("127.0.0.1", 5),), dials=rank < own)
        for peer_id, rank in ranks.items()
        if rank != own
    ]
    return Domain(comm_id, cluster_id, name, ranks, pairs, 0.0, LIMIT, events)


def hello(ranks, rank, token=7, acceptor=10, name="x"):
    return DomainHello(name=name, ranks=ranks, rank=rank, token=token, acceptor=acceptor)


@pytest.fixture
def events():
    return Events()
