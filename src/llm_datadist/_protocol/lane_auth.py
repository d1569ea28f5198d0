"""Handshake of a lane: three messages of fixed size that prove its link, without I/O.

    dialer                              acceptor
      LaneHello  ----------------------->          session, index, serving end, nonce
                 <----------------------- answer   nonce, clock, proof
      proof      ----------------------->          clock, proof

Proofs are HMAC-SHA256 with the link's lane key over the sender's side and clock, the hello and the
acceptor's nonce. Both ends prove the key, because either may be the one that serves requests on the
lane. The acceptor's nonce is new for each connection, so that a recorded handshake is useless.
The key belongs to one handshake, and so to two incarnations and the direction of the dial: a lane
that is relayed to another instance, or back to the one that opens it, fails there.

Two further keys per lane, one per direction, are derived from the lane key and both nonces. The
native core uses them for the tags of frames. Without a secret and without TLS, anyone who has read
the handshake can compute all keys.

A clock is CLOCK_MONOTONIC in nanoseconds at the time of sending. Deadlines of requests are times of
the serving end's clock, which may differ from that of the other end.

During the set-up of a link each place (index, serving end) of its session is taken once. Later the
session accepts as many lanes as are missing; an index then only distinguishes the lanes of one
attempt.
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
_SERVERS: Final = (Side.ACCEPTOR, Side.DIALER)  # by number on the wire

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
    """First message of a lane.

    Attributes:
        session: Session number of the Accept.
        server: The end that serves requests on the lane.
        index: Number of the lane among those that this end serves.
        nonce: New random bytes of the dialer.
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
        """Return the hello in `data`; ProtocolError when it is malformed."""
        if len(data) != LANE_HELLO_BYTES:
            raise ProtocolError(f"lane hello of {len(data)} bytes, not {LANE_HELLO_BYTES}")
        session, server, zero, index, nonce = _HELLO.unpack(data)
        if server >= len(_SERVERS) or zero != 0 or index >= MAX_LANES:
            raise ProtocolError(f"malformed lane hello (server {server}, index {index})")
        return LaneHello(session, _SERVERS[server], index, nonce)


class LaneKeys(NamedTuple):
    """Keys of the tags of a lane at one end: for sending and for receiving."""

    send: bytes
    receive: bytes


class OpenLane(NamedTuple):
    """An authenticated lane, in the form that the native core takes.

    Attributes:
        fd: Connected socket, owned by the holder of this object.
        keys: Keys of its tags.
        clock_offset_ns: Upper bound of the other end's CLOCK_MONOTONIC minus the local one.
    """

    fd: int
    keys: LaneKeys
    clock_offset_ns: int


def fresh_lane_nonce() -> bytes:
    """Return a nonce for a LaneHello."""
    return secrets.token_bytes(_NONCE_BYTES)


def answer_lane(key: bytes, hello: LaneHello, clock_ns: int) -> bytes:
    """Return the acceptor's answer: a new nonce, its clock and the proof of the key."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _proof(key, Side.ACCEPTOR, hello, nonce, clock_ns)


def check_answer(key: bytes, hello: LaneHello, answer: bytes) -> int:
    """Return the acceptor's clock; ProtocolError when it does not have the key."""
    nonce, proof = answer[:_NONCE_BYTES], answer[_NONCE_BYTES:]
    return _check(key, Side.ACCEPTOR, hello, nonce, proof)


def prove_lane(key: bytes, hello: LaneHello, answer: bytes, clock_ns: int) -> bytes:
    """Return the dialer's clock and proof for an acceptor's answer."""
    return _proof(key, Side.DIALER, hello, answer[:_NONCE_BYTES], clock_ns)


def check_proof(key: bytes, hello: LaneHello, answer: bytes, proof: bytes) -> int:
    """Return the dialer's clock; ProtocolError when it does not have the key."""
    return _check(key, Side.DIALER, hello, answer[:_NONCE_BYTES], proof)


def lane_keys(key: bytes, hello: LaneHello, answer: bytes, side: Side) -> LaneKeys:
    """Return one end's tag keys of the lane with this hello and answer."""
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
