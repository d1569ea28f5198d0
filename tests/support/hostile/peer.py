"""A peer with an honest handshake and forged frames after it, in both roles and all postures.

    hostile = HostilePeer(posture)
    hostile.dial(victim.listen_address())      # or: victim.call("link", hostile.listen())
    code, data = hostile.ask(READ, [(address, 4096)])

It has what the posture gives to a member: the secret, or a certificate. `claim` says what it tells
of itself in place of the truth: see `HostilePeer.claim`. What it gets is kept in `heard`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import struct
import threading
import time
from typing import NamedTuple

import msgspec
import numpy as np

from llm_datadist._backends.host import HostMetadata, boot_id, pid_namespace
from llm_datadist._backends.node import Node
from llm_datadist._engine.link.delegate import Endpoint
from llm_datadist._protocol.codec import (
    HEADER_BYTES,
    PREAMBLE_BYTES,
    Kind,
    decode_header,
    decode_message,
    decode_preamble,
    encode_frame,
    encode_preamble,
)
from llm_datadist._protocol.control_tags import TAG_BYTES, ControlTags
from llm_datadist._protocol.handshake import Handshake, Side, fresh_nonce
from llm_datadist._protocol.lane_auth import (
    LANE_ANSWER_BYTES,
    LANE_HELLO_BYTES,
    LANE_PROOF_BYTES,
    LaneHello,
    answer_lane,
    check_proof,
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
    Ping,
    Pong,
    Ready,
    Request,
    Welcome,
)
from support.framing import CHUNK, OUTCOME, FramedSocket
from support.hostile.frames import (
    ANY_ENTRY,
    CHECKSUM,
    CONSUME,
    GONE,
    NOTHING,
    OK,
    PAGE,
    PING,
    PROTOCOL,
    READ,
    READ_LOG,
    VERSION,
    Answer,
    frame_of,
    request_of,
)
from support.hostile.stream import Stream, tls_context

POSTURES = ("nothing", "secret", "TLS", "TLS lanes")


class Posture(NamedTuple):
    """The protection of both ends of a link: a secret, certificate files, or neither."""

    name: str
    secret: str | None = None
    tls: dict | None = None
    lanes: bool = False

    @property
    def options(self):
        """Properties of LLMConfig."""
        options = {} if self.secret is None else {"link_secret": self.secret}
        return options | (self.tls or {}) | ({"tls_lanes": True} if self.lanes else {})


class HostilePeer:
    """See the module.

    Args:
        posture: What it has.
        cluster_id: What it calls itself.
        memory_bytes: Of the memory that it registers.

    Attributes:
        claim: What it says of itself in place of the truth: `cluster_id`, `incarnation` ("victim":
            the other end's), `link_ref`, and `host`: None to offer lanes only, "victim" for what
            the other end says of itself, or a dict of changes to the truth. Set before it links.
        log: The directory that it serves; version and bytes.
        heard: All payload that it was sent.
        victim: The other end's endpoint, and its incarnation.
    """

    def __init__(self, posture, cluster_id=66, memory_bytes=16 * PAGE):
        self.posture = Posture(*posture)
        self.cluster_id = cluster_id
        self.claim = {"host": None}
        self.log = (2 << 40, b"")
        self.heard = []
        self.said = []
        self.victim = None
        self.answers = {}
        self.patience_s = 5.0
        self.before_endpoint = lambda: None  # called when it is dialed, and may change `claim`
        self.node = Node(secrets.randbits(62) | 1)
        self.memory = np.full(memory_bytes, 0xEE, np.uint8)
        self.entry = self.node.open_entry([self.memory.ctypes.data], [memory_bytes], True)
        self.accepting = self.dialing = None
        if self.posture.tls is not None:
            self.accepting = tls_context(self.posture.tls, accepting=True)
            self.dialing = tls_context(self.posture.tls, accepting=False)
        self._linked = threading.Event()
        self._failure = None
        self._listener = None
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._threads, self._socks = [], []
        self._ended = False
        self._reset()

    def _reset(self):
        self.control = self.shake = None
        self.asking, self.serving = [], []
        self._session = self._lane_key = self._tags = None
        self._linked.clear()

    # ---- what it says of itself ----

    def own_host(self):
        native = self.node.native
        return HostMetadata(
            boot_id(),
            pid_namespace(),
            os.getpid(),
            native.page_address,
            native.published_fd,
            native.published_bytes,
        )

    def _endpoint(self):
        self.link_ref = self.node.open_guard()
        backends, host = {"tcp": b""}, self.claim.get("host")
        if host == "victim":
            backends["host"] = self.victim_backends()["host"]
        elif host is not None:
            told = msgspec.structs.replace(self.own_host(), **host)
            backends["host"] = msgspec.msgpack.encode(told)
        ref = tuple(self.claim.get("link_ref", self.link_ref))
        if ref == ("victim", "victim"):
            ref = self.victim_endpoint().link_ref
        return msgspec.msgpack.encode(Endpoint(ref, backends, ("crc32c",)))

    def victim_endpoint(self):
        return msgspec.msgpack.decode(self.victim[0], type=Endpoint)

    def victim_backends(self):
        return self.victim_endpoint().backends

    def victim_host(self):
        """The victim's data about its own process, as plain data."""
        told = msgspec.msgpack.decode(self.victim_backends()["host"], type=HostMetadata)
        return {"segments": (), **{n: getattr(told, n) for n in told.__struct_fields__[:-1]}}

    def _incarnation(self, others):
        told = self.claim.get("incarnation", self.node.incarnation)
        return others if told == "victim" else told

    # ---- dialing ----

    def dial(self, address, num_lanes=1):
        """Link to an instance; PermissionError when it rejects."""
        self._reset()
        self.shake = Handshake(Side.DIALER, self._secret())
        kind = Kind.CONTROL if self.dialing is None else Kind.CONTROL_TLS
        self.control = self._connect(address, kind)
        self.say(
            Hello(
                version=PROTOCOL_VERSION,
                cluster_id=self.claim.get("cluster_id", self.cluster_id),
                incarnation=self._incarnation(None) or self.victim[1],
                nonce=fresh_nonce(),
                has_secret=self.posture.secret is not None,
                num_lanes=num_lanes,
                encrypt_lanes=self.posture.lanes or msgspec.UNSET,
            )
        )
        welcome = self._expect(Welcome)
        self.say(self.shake.prove(Confirm(endpoint=self._endpoint())))
        accept = self._expect(Accept)
        self.victim = accept.endpoint, welcome.incarnation
        self._session, self._lane_key = accept.session, self.shake.lane_key()
        self._tags = ControlTags(self.shake.control_keys())
        self._show_proof(Side.DIALER)
        for server in Side:
            for index in range(accept.num_lanes):
                self._open_lane(address, server, index)
        self.say(Complete())
        self._expect(Ready)
        self._begin()

    def _connect(self, address, kind):
        sock = socket.create_connection(tuple(address), timeout=5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(encode_preamble(kind))
        if kind.uses_tls:
            sock = self.dialing.wrap_socket(sock)
        return self._keep(Stream(sock))

    def _open_lane(self, address, server, index):
        hello = LaneHello(self._session, server, index, fresh_lane_nonce())
        stream = self._connect(address, Kind.LANE_TLS if self.posture.lanes else Kind.LANE)
        stream.sendall(hello.pack())
        answer = stream.recv(LANE_ANSWER_BYTES, socket.MSG_WAITALL)
        stream.sendall(prove_lane(self._lane_key, hello, answer, time.monotonic_ns()))
        self._add(stream, hello, answer, Side.DIALER)

    def _add(self, stream, hello, answer, own_side):
        lane = FramedSocket(stream, *lane_keys(self._lane_key, hello, answer, own_side))
        if hello.server is own_side:
            self.serving.append(lane)
        else:
            self.asking.append(lane)

    def _show_proof(self, side):
        self.node.show_proof(self.link_ref, self.shake.page_proof(side))

    # ---- being dialed ----

    def listen(self):
        """Accept dials from now on, one link at a time; return the address."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._start(self._accept_all)
        return list(self._listener.getsockname()[:2])

    def wait_linked(self, seconds=10.0):
        if not self._linked.wait(seconds):
            raise TimeoutError(f"no peer has linked: {self._failure}")

    def _accept_all(self):
        while not self._ended:
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            sock.settimeout(2)
            self._start(self._welcome, sock)

    def _welcome(self, sock):
        try:
            kind = decode_preamble(sock.recv(PREAMBLE_BYTES, socket.MSG_WAITALL))
            if kind.uses_tls:
                sock = self.accepting.wrap_socket(sock, server_side=True)
            stream = self._keep(Stream(sock))
            if kind.purpose is Kind.LANE:
                self._accept_lane(stream)
            else:
                with self._one_at_a_time:
                    self._accept_link(stream)
        except Exception as error:  # whatever the victim does about it
            self._failure = error
            sock.close()

    def _accept_lane(self, stream):
        hello = LaneHello.unpack(stream.recv(LANE_HELLO_BYTES, socket.MSG_WAITALL))
        answer = answer_lane(self._lane_key, hello, time.monotonic_ns())
        stream.sendall(answer)
        check_proof(
            self._lane_key, hello, answer, stream.recv(LANE_PROOF_BYTES, socket.MSG_WAITALL)
        )
        self._add(stream, hello, answer, Side.ACCEPTOR)

    def _accept_link(self, stream):
        self._reset()
        self.control, self.shake = stream, Handshake(Side.ACCEPTOR, self._secret())
        hello = self._expect(Hello)
        welcome = Welcome(
            cluster_id=self.claim.get("cluster_id", self.cluster_id),
            incarnation=self._incarnation(hello.incarnation),
            nonce=fresh_nonce(),
        )
        self.say(self.shake.prove(welcome))
        self.victim = self._expect(Confirm).endpoint, hello.incarnation
        self.before_endpoint()
        self._session = secrets.token_bytes(16)
        accept = Accept(
            session=self._session,
            num_lanes=1,
            endpoint=self._endpoint(),
            encrypt_lanes=self.posture.lanes or msgspec.UNSET,
        )
        accept = self.shake.prove(accept)
        self.shake.sent(accept)
        self._lane_key = self.shake.lane_key()  # before lanes come
        self._show_proof(Side.ACCEPTOR)
        self.control.sendall(encode_frame(accept))
        self._tags = ControlTags(self.shake.control_keys())
        self._expect(Complete)
        self.say(Ready())
        self._begin()

    # ---- the control connection ----

    def _secret(self):
        secret = self.posture.secret
        return None if secret is None else secret.encode()

    def say(self, message):
        self.shake.sent(message)
        with self._lock:
            frame = encode_frame(message)
            self.control.sendall(frame if self._tags is None else self._tags.tagged(frame))

    def hear(self):
        header = self._exactly(HEADER_BYTES)
        body = self._exactly(decode_header(header))
        if self._tags is not None:
            self._tags.check(header + body, self._exactly(TAG_BYTES))
        message = decode_message(body)
        self.shake.received(message)
        return message

    def _exactly(self, size):
        data = self.control.recv(size, socket.MSG_WAITALL)
        if len(data) < size:
            raise ConnectionError("closed")
        return data

    def _expect(self, kind):
        message = self.hear()
        if not isinstance(message, kind):
            raise PermissionError(f"{message}")
        return message

    def _begin(self):
        self._start(self._converse, self.control)
        for lane in self.serving:
            self._start(self._serve, lane)
        self._linked.set()

    def _converse(self, control):
        """Answer pings, so that the link stays, and keep all other messages."""
        with contextlib.suppress(OSError, ValueError):
            while not self._ended:
                if not control.pending() and not select.select([control], [], [], 0.05)[0]:
                    continue
                with self._lock:
                    if control is not self.control:
                        return  # of an earlier link
                    message = self.hear()
                if isinstance(message, Ping):
                    self.say(Pong(id=message.id))
                else:
                    self.said.append(message)

    def notify(self, message):
        """Send a message of one engine to the other."""
        self.say(message)

    def request(self, body):
        self.say(Request(id=len(self.said) + 1, body=body))

    # ---- lanes on which the victim asks ----

    def _serve(self, lane):
        with contextlib.suppress(OSError, ValueError, AssertionError):
            lane.settimeout(None)
            while frame := lane.recv(8 << 20):
                if frame[5] < CHUNK:
                    lane.sendall(self._answer(frame))

    def _answer(self, frame):
        kind, sequence = frame[5], int.from_bytes(frame[12:16], "little")
        body = frame[16:]
        if kind in self.answers:  # (code, payload)
            code, data = self.answers[kind]
        elif kind == READ_LOG:
            offset, size = struct.unpack("<2Q", body[56:72])
            code, data = OK, self.log[1][offset : offset + size]
        elif kind == READ:
            count = int.from_bytes(body[72:76], "little")
            lengths = struct.unpack(f"<{count}Q", body[80 + 8 * count : 80 + 16 * count])
            code, data = OK, b"\xee" * sum(lengths)
        else:
            code, data = (OK if kind in (VERSION, PING, CONSUME) else GONE), b""
        value = self.log[0] if kind == VERSION else time.monotonic_ns()
        out = b""
        for first in range(0, len(data), 1 << 20):
            part = data[first : first + (1 << 20)]
            out += frame_of(CHUNK, part, sequence)
        outcome = struct.pack("<IiqQQ", code, 0, -1, len(data) * (kind != CHECKSUM), value)
        return out + frame_of(OUTCOME, outcome, sequence)

    # ---- lanes on which it asks ----

    def ask(self, kind, descriptors=(), *, cache=ANY_ENTRY, key=NOTHING, payload=b"", **odd):
        """Send a request on a lane, and return the answer; a closed lane is dropped.

        Args:
            kind: Of the request.
            descriptors: Tuples: address, length, and for PUSH the offset at the initiator.
            cache, key: Guards.
            payload: Of a WRITE.
            odd: Fields that are not what they should be: `count`, `deadline`, `left`, `version`,
                `reserved`, `flags`, `log`, `columns` (in place of the descriptors'), `magic`.
        """
        if not self.asking:
            raise ConnectionError("no lane is left")
        lane = self.asking[0]
        try:
            lane.settimeout(self.patience_s)
            lane.sendall(request_of(kind, descriptors, cache, key, odd))
            if payload:
                end = struct.pack("<IiqQQ", 0, 0, -1, len(payload), 0)
                lane.sendall(frame_of(CHUNK, payload) + frame_of(OUTCOME, end))
            data = b""
            while frame := lane.recv(8 << 20):
                if frame[5] == OUTCOME:
                    self.heard.append(data)
                    code, errno, index, moved, value = struct.unpack("<IiqQQ", frame[16:48])
                    if code == PROTOCOL:
                        self._drop(lane)
                    return Answer(code, data, errno, index, moved, value)
                data += frame[16:]
        except ConnectionError:
            pass
        self._drop(lane)
        return Answer(None)

    def _drop(self, lane):
        with contextlib.suppress(ValueError):  # a new link has lanes of its own
            self.asking.remove(lane)

    def read_directory(self):
        """The victim's directory, as bytes."""
        version = self.ask(VERSION).value
        size, data = version & ((1 << 40) - 1), b""
        while len(data) < size:
            part = self.ask(READ_LOG, log=(len(data), min(size - len(data), 1 << 18))).data
            if not part:
                break
            data += part
        return data

    # ---- ends ----

    def _keep(self, stream):
        self._socks.append(stream)
        return stream

    def _start(self, function, *args):
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def unlink(self):
        """Close every connection, as the death of a process does."""
        socks, self._socks = self._socks, []
        for each in socks:
            each.close()

    def close(self):
        self._ended = True
        if self._listener is not None:
            self._listener.close()
        self.unlink()
        for thread in self._threads:
            thread.join(6)
        self.unlink()
        self.node.close()
        self.node.release()
