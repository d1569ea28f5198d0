"""Link set-ups between instances in one event loop: real handshakes, no sockets, no threads."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.deadline import Deadline
from llm_datadist._links import acceptor, dialer
from llm_datadist._links.acceptor import receive_link
from llm_datadist._links.dial_connection import DialConnection
from llm_datadist._links.dial_request import DialRequest
from llm_datadist._links.handshake_stream import HandshakeStream
from llm_datadist._links.lane_repair import LaneRepair
from llm_datadist._links.lifecycle import LinkLifecycle
from llm_datadist._protocol.handshake import Side

_END = object()


class MemoryConnection:
    """One end of a control connection. What is sent while `frozen` is lost."""

    is_encrypted = False
    is_delivered = True

    def __init__(self):
        self.inbox = asyncio.Queue()
        self.other = None
        self.is_closing = self.frozen = False

    @staticmethod
    def pair():
        one, other = MemoryConnection(), MemoryConnection()
        one.other, other.other = other, one
        return one, other

    def trust(self):
        pass

    def authenticate(self, keys):
        pass

    async def drain(self):
        pass

    def send(self, message):
        if self.is_closing:
            raise PeerClosedError("the connection is closed")
        if not self.frozen:
            self.other.inbox.put_nowait(message)

    async def receive(self):
        message = await self.inbox.get()
        if message is _END:
            self.inbox.put_nowait(_END)
            raise PeerClosedError("the peer closed the connection")
        if isinstance(message, Exception):
            raise message
        return message

    async def wait_closed_by_peer(self):
        while await self.inbox.get() is not _END:
            pass

    def close(self):
        self.is_closing = True
        for end in (self, self.other):
            end.inbox.put_nowait(_END)

    abort = close

    def finish(self, seconds):
        self.close()


class Lane:
    """An authenticated lane that carries nothing."""

    def __init__(self):
        self.is_closed = False

    def detach(self):
        return self

    def close(self):
        self.is_closed = True


class Incoming:
    """An incoming connection."""

    session = None

    def __init__(self, sock, peer):
        self.sock = sock
        self.peer = peer
        self.is_authenticated = False
        self.lines = []

    def set_authenticated(self):
        self.is_authenticated = True

    def log(self, level, text, *args):
        self.lines.append(text % args)


class End:
    """One instance: its links, and what dials them."""

    def __init__(self, net, context):
        self.net = net
        self.context = context
        self.lifecycle = LinkLifecycle(context, LaneRepair(context))
        self.links = context.index.links
        self.address = context.listen_address = (f"10.0.0.{len(net.ends) + 1}", 5000)

    async def dial(self, other, seconds=5.0, **named):
        """Dial another end, or an address."""
        address = getattr(other, "address", other)
        request = DialRequest(address=address, deadline=Deadline(seconds), **named)
        return await dialer.dial(self.context, self.lifecycle, request)

    async def receive(self, connection, peer=("10.9.9.9", 9)):
        """Serve an incoming connection."""
        await receive_link(self.context, self.lifecycle, Incoming(connection, peer))

    def dialed_by(self, secret=None):
        """Return the stream of a dialer that the test plays, and the task that serves it."""
        far, near = MemoryConnection.pair()
        serving = asyncio.ensure_future(self.receive(near))
        return HandshakeStream(far, Side.DIALER, secret), serving


class MemoryNet:
    """Ends that reach each other by their addresses.

    Attributes:
        scripts: Coroutine functions that play an acceptor, by address; given its stream.
        lane_failure: Raised instead of opening lanes, once.
    """

    def __init__(self, monkeypatch):
        self.ends = []
        self.scripts = {}
        self.connections = []
        self.lane_failure = None
        self._serving = []
        monkeypatch.setattr(dialer, "open_connection", self._open_connection)
        monkeypatch.setattr(dialer, "open_lanes", self._open_lanes)
        opening = SimpleNamespace(open=self._open_accepted)
        monkeypatch.setattr(acceptor, "ControlConnection", opening)

    def add(self, context):
        self.ends.append(End(self, context))
        return self.ends[-1]

    def run(self, work):
        """Run a test's coroutine function; take all links down afterwards."""

        async def body():
            try:
                await asyncio.wait_for(work(), 10)
            finally:
                for end in self.ends:
                    end.lifecycle.end_all("the test is over")
                await self.settled()

        asyncio.run(body())

    async def settled(self):
        """Wait until every acceptor has returned."""
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _open_connection(self, context, request, on_step):
        near, far = MemoryConnection.pair()
        self.connections.append((near, far))
        source = ("10.8.8.8", len(self.connections))
        script = self.scripts.get(request.address)
        if script is not None:
            serving = script(HandshakeStream(far, Side.ACCEPTOR, None))
        else:
            end = next(end for end in self.ends if end.address == request.address)
            serving = end.receive(far, source)
        self._serving.append(asyncio.ensure_future(serving))
        return DialConnection(near, (2, request.address, request.source_ip), source)

    @staticmethod
    async def _open_accepted(connection, silence_ms, session):
        return connection

    async def _open_lanes(self, route, terms, places):
        failure, self.lane_failure = self.lane_failure, None
        if failure is not None:
            raise failure
        session = next(
            end.context.sessions[terms.session]
            for end in self.ends
            if terms.session in end.context.sessions
        )
        assert session.key == terms.key
        lanes = {place: Lane() for place in places}
        for place in places:
            session.add(place, Lane())
        return tuple(
            [lane for (side, _), lane in lanes.items() if side is server]
            for server in (Side.ACCEPTOR, Side.DIALER)
        )
