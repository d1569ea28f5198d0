"""Parts of a link table made alone: no sockets, no threads, a data plane that only records."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures

import numpy as np
import pytest

from llm_datadist._links.context import LinkContext
from llm_datadist._links.delegate import Hooks
from llm_datadist._links.lane_terms import LaneTerms
from llm_datadist._links.link import Link, LinkState, Peer
from llm_datadist._options.settings import Config
from support.memory_links import MemoryNet
from support.planes import EmptyPlane

ROUTE = (2, ("127.0.0.1", 5), None)


class Workers:
    """Runs each call at once on the caller's thread."""

    def submit(self, call, *arguments):
        future = concurrent.futures.Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    async def outcome(self, future):
        return future.result()

    async def run(self, call, *arguments):
        return await self.outcome(self.submit(call, *arguments))


class Control:
    """Spawns tasks on the running loop."""

    name = "test"

    def __init__(self):
        self.workers = self.resolvers = Workers()

    def spawn(self, work):
        return asyncio.ensure_future(work)


class Watch:
    """A LinkWatch with what the delegate says of all its links."""

    def __init__(self, delegate, links):
        self.delegate, self.links = delegate, links

    def look(self, *, prune):
        self.delegate.pruned += prune
        lost = max(self.delegate.missing) > 0
        places = list(range(len(self.links))) if lost else []
        counts = [self.delegate.count + self.delegate.answered[link] for link in self.links]
        return np.array(counts, np.uint64), places

    def ping(self, places, deadline_ns):
        return self.delegate.ping_all([self.links[place] for place in places], deadline_ns)


class Delegate(EmptyPlane):
    """A data plane that records its calls; `missing` is (client lanes, server lanes)."""

    def __init__(self):
        self.missing, self.count, self.pruned, self.answers = (0, 0), 0, 0, True
        self.answered = collections.Counter()
        self.added, self.connected, self.disconnected, self.pinged = [], [], [], []
        self.refusal = None

    def connect(self, peer, link_id, endpoint, client_lanes, server_lanes):
        if self.refusal is not None:
            raise self.refusal
        self.connected.append((peer, endpoint, client_lanes, server_lanes))
        return f"data {link_id}"

    def missing_lanes(self, data):
        return self.missing

    def add_lanes(self, data, client_lanes, server_lanes):
        self.added.append((client_lanes, server_lanes))
        clients, servers = self.missing
        self.missing = (clients - len(client_lanes), servers - len(server_lanes))

    def watch(self, links):
        return Watch(self, links)

    def ping_all(self, links, deadline_ns):
        self.pinged.append(list(links))
        self.answered.update(links if self.answers else ())
        return [self.answers] * len(links)

    def disconnect(self, data):
        self.disconnected.append(data)


class Connection:
    """A control connection; `arriving` has what its peer sends, and how it ends."""

    is_encrypted = is_congested = False

    def __init__(self):
        self.sent, self.is_open = [], True
        self.arriving = asyncio.Queue()

    def trust(self):
        pass

    def send(self, message):
        self.sent.append(message)

    async def receive(self):
        message = await self.arriving.get()
        if isinstance(message, Exception):
            raise message
        return message

    def abort(self):
        self.is_open = False

    def finish(self, seconds):
        self.is_open = False


class Conversation:
    """The message exchange of a link; `answer` is awaited for each question."""

    def __init__(self):
        self.connection = Connection()
        self.num_received = self.keepalives = 0
        self.ended = asyncio.Event()
        self.answer = lambda: asyncio.sleep(0, b"")

    async def ping(self):
        await self.answer()

    async def ask(self, body):
        return await self.answer()

    def send_keepalive(self):
        self.keepalives += 1


@pytest.fixture
def connection():
    return Connection()


@pytest.fixture
def make_context():
    def make(cluster_id=1, incarnation=100, **options):
        config = Config(**options)
        return LinkContext(cluster_id, config, incarnation, Delegate(), Hooks(), Control())

    return make


@pytest.fixture
def context(make_context):
    return make_context()


@pytest.fixture
def net(monkeypatch):
    return MemoryNet(monkeypatch)


@pytest.fixture
def end(net, make_context):
    """Add an instance to the net."""

    def end(cluster_id, incarnation=None, **options):
        return net.add(make_context(cluster_id, incarnation or 100 + len(net.ends), **options))

    return end


def make_link(cluster_id=2, *, dialed=True, **named):
    """Return a link that is up, of the dialing or the accepting end."""
    address = ("127.0.0.1", 1000 + cluster_id)
    peer = Peer(cluster_id, 200 + cluster_id, address, dialed, is_self=False)
    terms = LaneTerms(2, cluster_id.to_bytes(16, "little"), b"key", ROUTE if dialed else None)
    link = Link(peer, cluster_id, 1, f"data {cluster_id}", Conversation(), terms, [], **named)
    link.enter(LinkState.LINKED)
    return link


@pytest.fixture(name="make_link")
def make_link_fixture():
    return make_link
