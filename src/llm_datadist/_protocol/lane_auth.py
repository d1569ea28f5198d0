"""How a data lane proves which link it belongs to: three messages of fixed size, without I/O.

    dialer                              acceptor
      LaneHello  ----------------------->          session, index, who serves, nonce
                 <----------------------- answer   nonce, proof
      proof      ----------------------->

Proofs are HMAC-SHA256 with the link's lane key over the sender's side, the hello and the acceptor's
nonce. Both ends prove the key, because either may be the one that serves requests on the lane. The
acceptor's nonce is fresh for each connection, so that a recorded lane opens nothing. While the link
is set up a place (index, who serves) of its session is taken once. Later the session takes lanes
that replace lost ones, as many as are missing; an index then only tells apart those of one attempt.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass
from typing import Final, final

from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._protocol.handshake import Side
from llm_datadist._protocol.messages import MAX_LANES, SESSION_BYTES

__all__ = [
    "LANE_ANSWER_BYTES",
    "LANE_HELLO_BYTES",
    "LANE_PROOF_BYTES",
    "LaneHello",
    "answer_lane",
    "check_answer",
    "check_proof",
    "fresh_lane_nonce",
    "prove_lane",
]

_NONCE_BYTES: Final = 16
_HELLO: Final = struct.Struct(f"<{SESSION_BYTES}sBBH{_NONCE_BYTES}s")
_SERVERS: Final = (Side.ACCEPTOR, Side.DIALER)  # by the number on the wire

LANE_PROOF_BYTES: Final = 32
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


def fresh_lane_nonce() -> bytes:
    """Return a nonce for a LaneHello."""
    return secrets.token_bytes(_NONCE_BYTES)


def answer_lane(key: bytes, hello: LaneHello) -> bytes:
    """Return the acceptor's answer: a fresh nonce and the proof of the key."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + _proof(key, Side.ACCEPTOR, hello, nonce)


def check_answer(key: bytes, hello: LaneHello, answer: bytes) -> None:
    """Check the acceptor's answer; ProtocolError when it does not have the key."""
    nonce, proof = answer[:_NONCE_BYTES], answer[_NONCE_BYTES:]
    _check(proof, _proof(key, Side.ACCEPTOR, hello, nonce))


def prove_lane(key: bytes, hello: LaneHello, answer: bytes) -> bytes:
    """Return the dialer's proof, given the acceptor's answer."""
    return _proof(key, Side.DIALER, hello, answer[:_NONCE_BYTES])


def check_proof(key: bytes, hello: LaneHello, answer: bytes, proof: bytes) -> None:
    """Check the dialer's proof; ProtocolError when it does not have the key."""
    _check(proof, prove_lane(key, hello, answer))


def _proof(key: bytes, side: Side, hello: LaneHello, nonce: bytes) -> bytes:
    return hmac.digest(key, b"lane " + side.value.encode() + b"\0" + hello.pack() + nonce, "sha256")


def _check(given: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(given, expected):
        raise ProtocolError("the lane's proof is wrong")
