"""Open and accept the lanes of a link: sockets that have proved the link's key."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from typing import TYPE_CHECKING, final

from llm_datadist._control.connection import PeerClosedError
from llm_datadist._control.deadline import Deadline
from llm_datadist._control.dial import connect_resolved
from llm_datadist._control.tls import SecureSocket, shake_hands
from llm_datadist._links.lane_terms import AuthenticatedLane, all_places
from llm_datadist._protocol.codec import Kind, ProtocolError, encode_preamble
from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.lane_auth import (
    LANE_ANSWER_BYTES,
    LANE_HELLO_BYTES,
    LANE_PROOF_BYTES,
    LaneHello,
    answer_lane,
    check_answer,
    check_proof,
    fresh_lane_nonce,
    lane_keys,
    prove_lane,
)
from llm_datadist._protocol.messages import SESSION_BYTES

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from llm_datadist._control.listener import IncomingConnection
    from llm_datadist._control.relay import CarriedLane, Relays
    from llm_datadist._links.context import LinkContext
    from llm_datadist._links.lane_terms import LanePlace, LaneRoute, LaneTerms, OpenLanes
    from llm_datadist._protocol.lane_auth import OpenLane

__all__ = [
    "LaneSession",
    "open_lanes",
    "receive_lane",
]


@final
class LaneSession:
    """The lanes of a link that is being set up, on the accepting end.

    Args:
        num_lanes: In each direction, at the start.
        relays: Encrypt their bytes; None for lanes without TLS.

    Attributes:
        session: Session number that the lanes name; new and unguessable.
        key: The link's lane key; set after the Accept, which names the session, was sent.
    """

    def __init__(self, num_lanes: int, relays: Relays | None = None) -> None:
        self.relays = relays
        self.session = secrets.token_bytes(SESSION_BYTES)
        self.key = b""
        self._missing = set(all_places(num_lanes))
        self._lanes: dict[LanePlace, AuthenticatedLane] = {}
        self._filled = asyncio.Event()

    def add(self, place: LanePlace, lane: AuthenticatedLane) -> None:
        """Take an authenticated lane.

        Raises:
            ProtocolError: There is no such place, or it is taken.
        """
        if place not in self._missing:
            raise ProtocolError(f"no place for lane {place[1]} served by the {place[0].value}")
        self._missing.remove(place)
        self._lanes[place] = lane
        if not self._missing:
            self._filled.set()

    async def wait_filled(self) -> None:
        """Wait until every lane has arrived."""
        await self._filled.wait()

    def take(self) -> OpenLanes:
        """Return all lanes; the caller owns them."""
        lanes, self._lanes = self._lanes, {}
        return _detach(lanes, Side.ACCEPTOR)

    def close(self) -> None:
        """Close the lanes that were not taken, and refuse further ones. Idempotent."""
        self._missing.clear()
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()


async def receive_lane(context: LinkContext, incoming: IncomingConnection) -> None:
    """Authenticate an incoming lane connection and hand it to its session.

    Raises:
        ProtocolError: It belongs to no link, or does not prove the key.
        PeerClosedError: Its link has ended, or needs no further lane.
        EOFError, OSError: The connection broke.
    """
    wire = SecureSocket(incoming.sock, incoming.session)
    sock: socket.socket | CarriedLane = incoming.sock
    try:
        hello = LaneHello.unpack(await wire.receive_exactly(LANE_HELLO_BYTES))
        sink = context.sessions.get(hello.session)
        if sink is None:
            if hello.session in context.ended_sessions:
                raise PeerClosedError("lane of a link that has ended")
            raise ProtocolError("lane of a link that is not being set up")
        if (sink.relays is None) is not (wire.session is None):
            have, want = ("inside", "outside")[:: 1 if wire.session else -1]
            raise ProtocolError(f"lane {have} TLS of a link whose lanes are {want} TLS")
        answer = answer_lane(sink.key, hello, time.monotonic_ns())
        await wire.send(answer)
        proof = await wire.receive_exactly(LANE_PROOF_BYTES)
        offset_ns = check_proof(sink.key, hello, answer, proof) - time.monotonic_ns()
        if sink.relays is not None:
            sock = sink.relays.carry(wire, serves=hello.server is Side.ACCEPTOR)
        keys = lane_keys(sink.key, hello, answer, Side.ACCEPTOR)
        sink.add((hello.server, hello.index), AuthenticatedLane(sock, keys, offset_ns))
    except BaseException:
        sock.close()
        raise


async def open_lanes(
    route: LaneRoute,
    terms: LaneTerms,
    places: Iterable[LanePlace],
    connect_seconds: float | None = None,
) -> OpenLanes:
    """Open lanes of a link, from the dialing end. All or none; the caller sets the time limit.

    Args:
        route: Where to connect, and from where.
        terms: Terms of the link.
        places: The lanes to open.
        connect_seconds: Limit for connecting alone.

    Raises:
        ProtocolError: The other end does not prove the key.
        EOFError, OSError: A connection broke.
        asyncio.TimeoutError: A connection was not made in time.
    """
    opening = {
        place: asyncio.ensure_future(_open_lane(route, terms, place, connect_seconds))
        for place in places
    }
    try:
        await asyncio.gather(*opening.values())
    except BaseException:
        for task in opening.values():  # without waiting, which could be canceled as well
            task.cancel()
            task.add_done_callback(_close_lane)
        raise
    return _detach({place: task.result() for place, task in opening.items()}, Side.DIALER)


async def _open_lane(
    route: LaneRoute, terms: LaneTerms, place: LanePlace, connect_seconds: float | None
) -> AuthenticatedLane:
    hello = LaneHello(terms.session, *place, fresh_lane_nonce())
    limit = Deadline(math.inf if connect_seconds is None else connect_seconds)
    sock = await limit.limit(connect_resolved(*route))
    try:
        wire = await _greet(sock, terms.relays, hello)
        answer = await wire.receive_exactly(LANE_ANSWER_BYTES)
        offset_ns = check_answer(terms.key, hello, answer) - time.monotonic_ns()
        await wire.send(prove_lane(terms.key, hello, answer, time.monotonic_ns()))
        keys = lane_keys(terms.key, hello, answer, Side.DIALER)
        if terms.relays is not None:
            carried = terms.relays.carry(wire, serves=place[0] is Side.DIALER)
            return AuthenticatedLane(carried, keys, offset_ns)
    except BaseException:
        sock.close()
        raise
    return AuthenticatedLane(sock, keys, offset_ns)


async def _greet(sock: socket.socket, relays: Relays | None, hello: LaneHello) -> SecureSocket:
    """Send the first bytes of a lane, inside TLS if that is agreed."""
    if relays is None:
        wire, greeting = SecureSocket(sock, None), encode_preamble(Kind.LANE) + hello.pack()
    else:
        await SecureSocket(sock, None).send(encode_preamble(Kind.LANE_TLS))
        session = await shake_hands(sock, relays.dialing, accepting=False)
        wire, greeting = SecureSocket(sock, session), hello.pack()
    await wire.send(greeting)
    return wire


def _close_lane(opened: asyncio.Task[AuthenticatedLane]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()


def _detach(lanes: dict[LanePlace, AuthenticatedLane], own_side: Side) -> OpenLanes:
    def served_by(side: Side) -> list[OpenLane]:
        places = sorted((place for place in lanes if place[0] is side), key=lambda place: place[1])
        return [lanes[place].detach() for place in places]

    return served_by(own_side.other), served_by(own_side)
