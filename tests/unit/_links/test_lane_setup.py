"""Lanes of a link: opened at one end, authenticated and put in their places at the other."""

import asyncio

import pytest

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._links import lane_setup
from llm_datadist._links.lane_setup import LaneSession, open_lanes, receive_lane
from llm_datadist._links.lane_terms import LaneTerms, all_places
from llm_datadist._protocol.codec import PREAMBLE_BYTES, Kind, ProtocolError, decode_preamble
from llm_datadist._protocol.handshake import Side
from support.memory_links import Lane

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ROUTE = (2, ("10.0.0.2", 5), None)


class Wire:
    """One end of a connection in memory, with the interfaces of a socket and of SecureSocket."""

    session = None

    def __init__(self):
        self.stream = asyncio.StreamReader()
        self.other = None
        self.is_closed = False

    @classmethod
    def pair(cls):
        one, other = cls(), cls()
        one.other, other.other = other, one
        return one, other

    async def send(self, data):
        self.other.stream.feed_data(data)

    async def receive_exactly(self, count):
        return await self.stream.readexactly(count)

    def detach(self):
        return self

    def close(self):
        self.is_closed = True
        self.other.stream.feed_eof()


class Acceptor:
    """Serves the lanes that the dialing end connects."""

    def __init__(self, context, monkeypatch):
        self.context = context
        self.wires, self.serving = [], []
        self.refuses_after = None
        monkeypatch.setattr(lane_setup, "SecureSocket", lambda sock, session: sock)
        monkeypatch.setattr(lane_setup, "connect_resolved", self.connect)

    async def connect(self, family, address, source_ip):
        assert (family, address, source_ip) == ROUTE
        if self.refuses_after is not None and len(self.wires) >= self.refuses_after:
            raise ConnectionRefusedError("refused")
        near, far = Wire.pair()
        self.wires.append((near, far))
        self.serving.append(asyncio.ensure_future(self.serve(far)))
        return near

    async def serve(self, wire):
        assert decode_preamble(await wire.receive_exactly(PREAMBLE_BYTES)) is Kind.LANE
        wire.sock = wire
        await receive_lane(self.context, wire)

    def expect(self):
        """Expect the lanes of a new session."""
        session = LaneSession(2)
        session.key = KEY
        self.context.sessions[session.session] = session
        return session

    async def open(self, session, key=KEY, places=None):
        """Open lanes of a session; return them and what became of each at the accepting end."""
        terms = LaneTerms(2, session, key, ROUTE)
        try:
            return await open_lanes(ROUTE, terms, places or all_places(2))
        finally:
            self.ended = await asyncio.gather(*self.serving, return_exceptions=True)


@pytest.fixture
def acceptor(context, monkeypatch):
    return Acceptor(context, monkeypatch)


@pytest.fixture
def session(context):
    made = LaneSession(2)
    made.key = KEY
    context.sessions[made.session] = made
    return made


def test_lanes_arrive_in_their_places_with_paired_keys(acceptor):
    async def work():
        session = acceptor.expect()
        near = await acceptor.open(session.session)
        await asyncio.wait_for(session.wait_filled(), 1)
        far = session.take()
        for near_lanes, far_lanes in ((near[0], far[1]), (near[1], far[0])):
            assert len(near_lanes) == len(far_lanes) == 2
            for one, other in zip(near_lanes, far_lanes, strict=True):
                assert one.fd.other is other.fd
                assert (one.keys.send, one.keys.receive) == (other.keys.receive, other.keys.send)
                assert abs(one.clock_offset_ns) < 1e9
        session.close()
        assert not any(wire.is_closed for pair in acceptor.wires for wire in pair)

    asyncio.run(work())


def test_the_dialing_end_sends_requests_on_lanes_that_the_other_serves(acceptor):
    async def work():
        session = acceptor.expect()
        clients, servers = await acceptor.open(session.session, places=[(Side.ACCEPTOR, 1)])
        assert (len(clients), len(servers)) == (1, 0)
        clients, servers = session.take()
        assert (len(clients), len(servers)) == (0, 1)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("which", "error", "words"),
    [
        ("unknown", ProtocolError, "not being set up"),
        ("ended", PeerClosedError, "has ended"),
        ("other key", EOFError, ""),
    ],
)
def test_a_lane_that_belongs_to_no_link_is_closed(acceptor, which, error, words):
    async def work():
        session = LaneSession(2)
        session.key = KEY
        if which == "ended":
            acceptor.context.ended_sessions.append(session.session)
        elif which == "other key":
            acceptor.context.sessions[session.session] = session
        key = OTHER_KEY if which == "other key" else KEY
        with pytest.raises((ProtocolError, EOFError)):
            await acceptor.open(session.session, key, [(Side.ACCEPTOR, 0)])
        assert isinstance(acceptor.ended[0], error)
        assert words in str(acceptor.ended[0])
        assert all(wire.is_closed for wire in acceptor.wires[0])

    asyncio.run(work())


def test_all_lanes_or_none(acceptor):
    acceptor.refuses_after = 3

    async def work():
        session = acceptor.expect()
        with pytest.raises(ConnectionRefusedError):
            await acceptor.open(session.session)
        await asyncio.sleep(0)
        assert [near.is_closed for near, _ in acceptor.wires] == [True] * 3

    asyncio.run(work())


def test_a_place_is_taken_once():
    session = LaneSession(1)
    session.add((Side.DIALER, 0), Lane())
    for place in ((Side.DIALER, 0), (Side.ACCEPTOR, 1)):
        with pytest.raises(ProtocolError, match=f"no place for lane {place[1]}"):
            session.add(place, Lane())


def test_a_session_that_is_closed_closes_what_was_not_taken():
    session, kept = LaneSession(1), Lane()
    session.add((Side.DIALER, 0), kept)
    session.close()
    session.close()
    assert kept.is_closed
    with pytest.raises(ProtocolError):
        session.add((Side.ACCEPTOR, 0), Lane())


def test_session_numbers_cannot_be_guessed():
    assert len({LaneSession(1).session for _ in range(100)}) == 100
