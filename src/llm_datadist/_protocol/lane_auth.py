"""How a data lane proves which link it belongs to: three messages of fixed size, without I/O.

    dialer                              acceptor
      LaneHello  ----------------------->          session, index, who serves, nonce
                 <----------------------- answer   nonce, clock, proof
      proof      ----------------------->          clock, proof

Proofs are HMAC-SHA256 with the link's lane key over the sender's side and clock, the hello and the
acceptor's nonce. Both ends prove the key, because either may be the one that serves requests on the
lane. The acceptor's nonce is fresh for each connection, so that a recorded lane opens nothing. The
key is of one handshake, and so of two incarnations and of which of them dialed: a lane that
somebody passes on to another instance, or back to the one that opens it, proves nothing there.

From the key and both nonces come two more for each lane, one for each direction: those of the tags
of frames, which the native core makes and checks. Without a secret and without TLS whoever has read
the handshake can compute all of them.

A clock is CLOCK_MONOTONIC in nanoseconds, when the sender said it. Deadlines of requests are times
of the clock of the end that serves, which need not be that of the other end.

While the link is set up a place (index, who serves) of its session is taken once. Later the session
takes lanes that replace lost ones, as many as are missing; an index then only tells apart those of
one attempt.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.messages import MAX_LANES, SESSION_BYTES

__all__ = [
    "LANE_ANSWER_BYTES",
    "LANE_HELLO_BYTES",
    "LANE_PROOF_BYTES",
    "LaneHello",
    "LaneKeys",
    "OpenLane",
    "answer_lane",
    "check_answer",
    "check_proof",
    "fresh_lane_nonce",
    "lane_keys",
    "prove_lane",
]

_NONCE_BYTES: Final = 16
_HELLO: Final = struct.Struct(f"<{SESSION_BYTES}sBBH{_NONCE_BYTES}s")
_SERVERS: Final = (Side.ACCEPTOR, Side.DIALER)  # by the number on the wire

_MAC_BYTES: Final = 32
_CLOCK: Final = struct.Struct("<Q")
_MOST_CLOCK: Final = 1 << 62
_TAG_KEY_BYTES: Final = 16

LANE_PROOF_BYTES: Final = _CLOCK.size + _MAC_BYTES
LANE_HELLO_BYTES: Final = _HELLO.size
LANE_ANSWER_BYTES: Final = _NONCE_BYTES + LANE_PROOF_BYTES


@final
@dataclass(frozen=True, slots=True)
class LaneHello:
    """What a lane says first.

    Attributes:
        session: Of the Accept that this lane belongs to.
        server: Which end serves requests on it.
        index: Place among the lanes that this end serves.
        nonce: Fresh random bytes of the dialer.
    """

    session: bytes
    server: Side
    index: int
    nonce: bytes

    def pack(self) -> bytes:
        """Return the LANE_HELLO_BYTES bytes on the wire."""
        return _HELLO.pack(self.session, _SERVERS.index(self.server), 0, self.index, self.nonce)

    @staticmethod
    def unpack(data: bytes) -> LaneHello:
        """Return what `data` says; ProtocolError when it is no hello."""
        if len(data) != LANE_HELLO_BYTES:
            raise ProtocolError(f"lane hello of {len(data)} bytes, not {LANE_HELLO_BYTES}")
        session, server, zero, index, nonce = _HELLO.unpack(data)
        if server >= len(_SERVERS) or zero != 0 or index >= MAX_LANES:
            raise ProtocolError(f"malformed lane hello (server {server}, index {index})")
        return LaneHello(session, _SERVERS[server], index, nonce)


class LaneKeys(NamedTuple):
    """Keys of the tags of one lane, at one end: of what it sends, and of what it receives."""

    send: bytes
    receive: bytes


class OpenLane(NamedTuple):
    """A lane that has proved itself, as the native core takes it over.

    Attributes:
        fd: Its connected socket, which the holder of this object owns.
        keys: Of its tags.
        clock_offset_ns: The other end's CLOCK_MONOTONIC less the own one, at most.
    """

    fd: int
    keys: LaneKeys
    clock_offset_ns: int


def fresh_lane_nonce() -> bytes:
    """Return a nonce for a LaneHello."""
    return secrets.token_bytes(_NONCE_BYTES)


def answer_lane(key: bytes, hello: LaneHello, clock_ns: int) -> bytes:
    """Return the acceptor's answer: a fresh nonce, its clock and the proof of the key."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _proof(key, Side.ACCEPTOR, hello, nonce, clock_ns)


def check_answer(key: bytes, hello: LaneHello, answer: bytes) -> int:
    """Return the acceptor's clock; ProtocolError when it does not have the key."""
    nonce, proof = answer[:_NONCE_BYTES], answer[_NONCE_BYTES:]
    return _check(key, Side.ACCEPTOR, hello, nonce, proof)


def prove_lane(key: bytes, hello: LaneHello, answer: bytes, clock_ns: int) -> bytes:
    """Return the dialer's clock and proof, given the acceptor's answer."""
    return _proof(key, Side.DIALER, hello, answer[:_NONCE_BYTES], clock_ns)


def check_proof(key: bytes, hello: LaneHello, answer: bytes, proof: bytes) -> int:
    """Return the dialer's clock; ProtocolError when it does not have the key."""
    return _check(key, Side.DIALER, hello, answer[:_NONCE_BYTES], proof)


def lane_keys(key: bytes, hello: LaneHello, answer: bytes, side: Side) -> LaneKeys:
    """Return one end's keys of the lane that hello and answer have opened."""
    nonce = answer[:_NONCE_BYTES]
    of = {
        sender: _mac(key, b"tags of the " + sender.value.encode(), hello, nonce)[:_TAG_KEY_BYTES]
        for sender in Side
    }
    return LaneKeys(send=of[side], receive=of[side.other])


def _proof(key: bytes, side: Side, hello: LaneHello, nonce: bytes, clock_ns: int) -> bytes:
    clock = _CLOCK.pack(clock_ns)
    return clock + _mac(key, b"lane " + side.value.encode(), hello, nonce + clock)


def _check(key: bytes, side: Side, hello: LaneHello, nonce: bytes, proof: bytes) -> int:
    clock, given = proof[: _CLOCK.size], proof[_CLOCK.size :]
    expected = _mac(key, b"lane " + side.value.encode(), hello, nonce + clock)
    if not hmac.compare_digest(given, expected):
        raise ProtocolError("the lane's proof is wrong")
    (clock_ns,) = _CLOCK.unpack(clock)
    if clock_ns > _MOST_CLOCK:
        raise ProtocolError(f"a clock of {clock_ns} ns")
    return int(clock_ns)


def _mac(key: bytes, label: bytes, hello: LaneHello, rest: bytes) -> bytes:
    return hmac.digest(key, label + b"\0" + hello.pack() + rest, "sha256")
