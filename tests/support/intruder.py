"""A hand-made peer that can violate the control protocol at any point.

with Intruder(station.listen_address(), secret=b"...") as intruder:
    intruder.link()
    intruder.say(Request(id=1, body=b"nonsense"))
"""

from __future__ import annotations

import contextlib
import socket
import time

import msgspec

from llm_datadist._engine.link.delegate import Endpoint
from llm_datadist._protocol.codec import (
    HEADER_BYTES,
    Kind,
    decode_header,
    decode_message,
    encode_frame,
    encode_preamble,
)
from llm_datadist._protocol.control_tags import TAG_BYTES, ControlTags
from llm_datadist._protocol.handshake import Handshake, Side, fresh_nonce
from llm_datadist._protocol.lane_auth import (
    LANE_ANSWER_BYTES,
    LaneHello,
    check_answer,
    fresh_lane_nonce,
    lane_keys,
    prove_lane,
)
from llm_datadist._protocol.messages import (
    PROTOCOL_VERSION,
    Accept,
    Complete,
    Confirm,
    Hello,
    Ready,
    Welcome,
)
from support.framing import FramedSocket


class Intruder:
    """The dialing end of one link."""

    def __init__(self, address, secret=None, cluster_id=66, incarnation=None):
        self._address = address
        self.cluster_id = cluster_id
        self.incarnation = cluster_id if incarnation is None else incarnation
        self.sock = socket.create_connection(address, timeout=5)
        self.sock.sendall(encode_preamble(Kind.CONTROL))
        self.shake = Handshake(Side.DIALER, secret)
        self.has_secret = secret is not None
        self.accept = None
        self.tags = None
        self.lane_key = b""
        self.lanes = {Side.DIALER: [], Side.ACCEPTOR: []}  # by the end that serves

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for sock in (self.sock, *self.lanes[Side.DIALER], *self.lanes[Side.ACCEPTOR]):
            sock.close()

    def say(self, message):
        self.shake.sent(message)
        self.sock.sendall(self.frame(message))

    def frame(self, message):
        """The next message as it goes over the wire."""
        frame = encode_frame(message)
        return frame if self.tags is None else self.tags.tagged(frame)

    def hear(self):
        header = self._exactly(HEADER_BYTES)
        body = self._exactly(decode_header(header))
        if self.tags is not None:
            self.tags.check(header + body, self._exactly(TAG_BYTES))
        message = decode_message(body)
        self.shake.received(message)
        return message

    def _exactly(self, size):
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise ConnectionError("closed")
            data += part
        return data

    def greet(self, endpoint=None, num_lanes=1):
        """Continue the handshake up to the Confirm; return the answer."""
        if endpoint is None:
            endpoint = msgspec.msgpack.encode(Endpoint((1, 1), {"tcp": b""}))
        self.say(
            Hello(
                version=PROTOCOL_VERSION,
                cluster_id=self.cluster_id,
                incarnation=self.incarnation,
                nonce=fresh_nonce(),
                has_secret=self.has_secret,
                num_lanes=num_lanes,
            )
        )
        assert isinstance(self.hear(), Welcome)
        self.say(self.shake.prove(Confirm(endpoint=endpoint)))
        return self.hear()

    def accepted(self, endpoint=None, num_lanes=1):
        """Continue the handshake up to the Accept."""
        self.accept = self.greet(endpoint, num_lanes)
        assert isinstance(self.accept, Accept), self.accept
        self.lane_key = self.shake.lane_key()
        self.tags = ControlTags(self.shake.control_keys())
        return self.accept

    def open_lane(self, server, index=0, *, key=None, session=None):
        """Open one lane, with proofs by the given key; return its socket."""
        hello = LaneHello(session or self.accept.session, server, index, fresh_lane_nonce())
        sock = socket.create_connection(self._address, timeout=5)
        sock.sendall(encode_preamble(Kind.LANE) + hello.pack())
        answer = sock.recv(LANE_ANSWER_BYTES, socket.MSG_WAITALL)
        if session is None:
            check_answer(self.lane_key, hello, answer)
        sock.sendall(prove_lane(key or self.lane_key, hello, answer, time.monotonic_ns()))
        keys = lane_keys(key or self.lane_key, hello, answer, Side.DIALER)
        self.lanes[server].append(FramedSocket(sock, *keys))
        return self.lanes[server][-1]

    def complete(self, endpoint=None, num_lanes=1):
        """Continue the handshake up to the Complete; the answer is not read."""
        self.accepted(endpoint, num_lanes)
        for server in Side:
            for index in range(self.accept.num_lanes):
                self.open_lane(server, index)
        self.say(Complete())

    def link(self):
        """Complete the handshake."""
        self.complete()
        assert isinstance(self.hear(), Ready)


def is_closed(sock, seconds=5):
    """Wait until the peer has closed; drop its messages."""
    sock.settimeout(seconds)
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass
    return True
