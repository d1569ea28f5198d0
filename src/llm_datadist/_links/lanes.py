"""Opening and taking in the lanes of a link, up to sockets that have proved the link's key."""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import TYPE_CHECKING, Any, TypeAlias, final

from llm_datadist._control.dial import connect_resolved
from llm_datadist._control.sockets import receive_exactly
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
    prove_lane,
)
from llm_datadist._protocol.messages import SESSION_BYTES

if TYPE_CHECKING:
    from llm_datadist._control.listener import Visit
    from llm_datadist._links.context import LinkContext

__all__ = ["LaneFds", "LaneRoute", "LaneSession", "open_lanes", "receive_lane"]

#: (lanes on which we ask, lanes on which the peer asks): detached file descriptors
LaneFds: TypeAlias = tuple[list[int], list[int]]
_Place: TypeAlias = tuple[Side, int]
#: (family, socket address, source ip or None)
LaneRoute: TypeAlias = tuple[int, tuple[Any, ...], str | None]


@final
class LaneSession:
    """The lanes that a link being set up is waiting for, on the accepting end.

    Args:
        num_lanes: In each direction.

    Attributes:
        session: Number that the lanes name; fresh and unguessable.
        key: The link's lane key; known once the Accept has been sent, which names the session.
    """

    def __init__(self, num_lanes: int) -> None:
        self.session = secrets.token_bytes(SESSION_BYTES)
        self.key = b""
        self._missing = {(side, index) for side in Side for index in range(num_lanes)}
        self._lanes: dict[_Place, socket.socket] = {}
        self._filled = asyncio.Event()

    def fill(self, place: _Place, sock: socket.socket) -> None:
        """Take a proven lane.

        Raises:
            ProtocolError: Its place is taken, or there is no such place.
        """
        if place not in self._missing:
            raise ProtocolError(f"no place for lane {place[1]} served by the {place[0].value}")
        self._missing.remove(place)
        self._lanes[place] = sock
        if not self._missing:
            self._filled.set()

    async def filled(self) -> None:
        """Wait until every lane is there."""
        await self._filled.wait()

    def take(self) -> LaneFds:
        """Return all lanes; they are the caller's."""
        lanes, self._lanes = self._lanes, {}
        return _detach(lanes, Side.ACCEPTOR)

    def close(self) -> None:
        """Close the lanes that were not taken, and take no more. Idempotent."""
        self._missing.clear()
        for sock in self._lanes.values():
            sock.close()
        self._lanes.clear()


async def receive_lane(context: LinkContext, visit: Visit) -> None:
    """Serve an incoming lane connection until it has its place in a session.

    Raises:
        ProtocolError: It belongs to no link being set up, or does not prove the key.
        EOFError, OSError: It broke.
    """
    sock = visit.sock
    try:
        hello = LaneHello.unpack(await receive_exactly(sock, LANE_HELLO_BYTES))
        session = context.sessions.get(hello.session)
        if session is None:
            raise ProtocolError("lane of a link that is not being set up")
        answer = answer_lane(session.key, hello)
        await asyncio.get_running_loop().sock_sendall(sock, answer)
        check_proof(session.key, hello, answer, await receive_exactly(sock, LANE_PROOF_BYTES))
        session.fill((hello.server, hello.index), sock)
    except BaseException:
        sock.close()
        raise


async def open_lanes(route: LaneRoute, key: bytes, session: bytes, num_lanes: int) -> LaneFds:
    """Open all lanes of a link, from the dialing end. All or none; the caller sets the time limit.

    Args:
        route: Where to, and from where.
        key: The link's lane key.
        session: From the Accept.
        num_lanes: In each direction.

    Raises:
        ProtocolError: The other end does not prove the key.
        EOFError, OSError: A connection broke.
    """
    opening = {
        (side, index): asyncio.ensure_future(
            _open_lane(route, key, LaneHello(session, side, index, fresh_lane_nonce()))
        )
        for side in Side
        for index in range(num_lanes)
    }
    try:
        await asyncio.gather(*opening.values())
    except BaseException:
        for task in opening.values():
            task.cancel()
        for lane in await asyncio.gather(*opening.values(), return_exceptions=True):
            if isinstance(lane, socket.socket):
                lane.close()
        raise
    return _detach({place: task.result() for place, task in opening.items()}, Side.DIALER)


async def _open_lane(route: LaneRoute, key: bytes, hello: LaneHello) -> socket.socket:
    loop = asyncio.get_running_loop()
    sock = await connect_resolved(*route)
    try:
        await loop.sock_sendall(sock, encode_preamble(Kind.LANE) + hello.pack())
        answer = await receive_exactly(sock, LANE_ANSWER_BYTES)
        check_answer(key, hello, answer)
        await loop.sock_sendall(sock, prove_lane(key, hello, answer))
    except BaseException:
        sock.close()
        raise
    return sock


def _detach(lanes: dict[_Place, socket.socket], own_side: Side) -> LaneFds:
    def served_by(side: Side) -> list[int]:
        places = sorted((place for place in lanes if place[0] is side), key=lambda place: place[1])
        return [lanes[place].detach() for place in places]

    return served_by(own_side.other), served_by(own_side)
