"""Peers that do not keep to the protocol lose their connection, and nobody else loses anything."""

from __future__ import annotations

import contextlib
import resource
import secrets
import socket
import threading
import time

import pytest

from llm_datadist import LLMStatusCode
from llm_datadist._control import listener
from llm_datadist._links import acceptor, state
from llm_datadist._protocol.codec import (
    MAX_GREETING_BYTES,
    Kind,
    decode_frame,
    encode_frame,
    encode_preamble,
)
from llm_datadist._protocol.control_tags import TAG_BYTES, ControlTags
from llm_datadist._protocol.handshake import Handshake, Side, fresh_nonce
from llm_datadist._protocol.lane_auth import (
    LANE_ANSWER_BYTES,
    LANE_PROOF_BYTES,
    LaneHello,
    check_answer,
    fresh_lane_nonce,
    prove_lane,
)
from llm_datadist._protocol.messages import (
    PROTOCOL_VERSION,
    Accept,
    Complete,
    Confirm,
    Hello,
    Ping,
    Reject,
    Welcome,
)

pytestmark = pytest.mark.expects_log("connection from .* closed")
CONTROL, LANE = encode_preamble(Kind.CONTROL), encode_preamble(Kind.LANE)


@pytest.fixture
def linked(end):
    """Two linked ends; they still are afterwards, and a third can join."""
    a, b = end(1), end(2)
    assert a.link(b)[0].is_ok
    yield b
    a.table.check(2, 2000)
    b.table.check(1, 2000)
    c = end(3)
    assert c.link(b)[0].is_ok
    assert len(a.plane.links) == 1


def hello_frame(**fields):
    given = {
        "version": PROTOCOL_VERSION,
        "cluster_id": 66,
        "incarnation": 66,
        "nonce": fresh_nonce(),
    }
    return encode_frame(Hello(**given | fields))


def is_closed(sock):
    """Wait until the peer has closed; what it says before is dropped."""
    sock.settimeout(5)
    with contextlib.suppress(ConnectionError):
        while sock.recv(4096):
            pass
    return True


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(b"LDD1\x09\0\0\0", id="unknown kind"),
        pytest.param(CONTROL + b"\0\0\0\0", id="empty frame"),
        pytest.param(CONTROL + b"\xff\xff\xff\xff", id="frame of 4 GiB"),
        pytest.param(
            CONTROL + (MAX_GREETING_BYTES + 1).to_bytes(4, "little"), id="large before proof"
        ),
        pytest.param(CONTROL + b"\x04\0\0\0\xff\xff\xff\xff", id="no msgpack"),
        pytest.param(CONTROL + encode_frame(Ping(id=1)), id="out of order"),
        pytest.param(CONTROL + encode_frame(Confirm(endpoint=b"")), id="confirm first"),
        pytest.param(CONTROL + hello_frame() + encode_frame(Complete()), id="no confirm"),
        pytest.param(LANE + bytes(36), id="lane of no session"),
        pytest.param(LANE + b"\xff" * 36, id="malformed lane"),
    ],
)
def test_malformed_connections_are_closed(linked, data):
    with socket.create_connection(linked.address) as sock:
        sock.sendall(data)
        assert is_closed(sock)


@pytest.mark.parametrize("size", [0, 3, 8, 10, 12, 40])
def test_connections_that_end_in_the_middle(linked, size):
    data = CONTROL + hello_frame()
    with socket.create_connection(linked.address) as sock:
        sock.sendall(data[:size])


def test_random_bytes(linked):
    for size in (1, 8, 9, 100, 5000):
        for head in (b"", CONTROL, LANE):
            with socket.create_connection(linked.address) as sock:
                with contextlib.suppress(OSError):  # closed already: a reset, or not connected
                    sock.sendall(head + secrets.token_bytes(size))
                    sock.shutdown(socket.SHUT_WR)
                assert is_closed(sock)


def test_slow_connections_are_closed_by_the_deadline(linked, monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 0.1)
    starts = [b"", CONTROL[:3], CONTROL, CONTROL + hello_frame()[:9], LANE, CONTROL + hello_frame()]
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(linked.address)) for _ in starts]
        for sock, start in zip(socks, starts, strict=True):
            sock.sendall(start)
        assert all(map(is_closed, socks))


def test_of_too_many_unproven_connections_the_oldest_goes(linked, monkeypatch):
    monkeypatch.setattr(listener, "MAX_UNAUTHENTICATED", 4)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(linked.address)) for _ in range(9)]
        assert all(map(is_closed, socks[:5]))


def test_strangers_hold_a_share_of_the_descriptors(linked, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (32, 32))
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(linked.address)) for _ in range(9)]
        assert all(map(is_closed, socks[:5]))


class Intruder:
    """Speaks the dialer's part by hand."""

    def __init__(self, address):
        self.address = address
        self.sock = socket.create_connection(address)
        self.sock.settimeout(5)
        self.sock.sendall(CONTROL)
        self.shake = Handshake(Side.DIALER, None)
        self.data = b""
        self.tags = None

    def say(self, message):
        self.shake.sent(message)
        frame = encode_frame(message)
        self.sock.sendall(frame if self.tags is None else self.tags.tagged(frame))

    def hear(self):
        while True:
            with contextlib.suppress(Exception):
                message, rest = decode_frame(self.data)
                self.data = rest if self.tags is None else rest[TAG_BYTES:]
                self.shake.received(message)
                return message
            part = self.sock.recv(4096)
            assert part
            self.data += part

    def accepted(self, incarnation=66, cluster_id=66, num_lanes=1):
        """Go as far as Accept."""
        who = {"cluster_id": cluster_id, "incarnation": incarnation}
        self.say(Hello(version=PROTOCOL_VERSION, nonce=fresh_nonce(), num_lanes=num_lanes, **who))
        assert isinstance(self.hear(), Welcome)
        self.say(Confirm(endpoint=b""))
        answer = self.hear()
        assert isinstance(answer, Accept)
        self.tags = ControlTags(self.shake.control_keys())
        return answer

    def lane(self, key, hello, *, prove=True):
        """Open one lane; return its socket."""
        sock = socket.create_connection(self.address)
        sock.settimeout(5)
        sock.sendall(LANE + hello.pack())
        answer = sock.recv(LANE_ANSWER_BYTES, socket.MSG_WAITALL)
        check_answer(self.shake.lane_key(), hello, answer)
        sock.sendall(
            prove_lane(key, hello, answer, time.monotonic_ns())
            if prove
            else bytes(LANE_PROOF_BYTES)
        )
        return sock


@pytest.fixture
def intruder(linked):
    one = Intruder(linked.address)
    yield one
    one.sock.close()


def test_a_lane_without_the_key_is_closed(linked, intruder):
    accept = intruder.accepted()
    hello = LaneHello(accept.session, Side.ACCEPTOR, 0, fresh_lane_nonce())
    with intruder.lane(bytes(32), hello) as sock:
        assert is_closed(sock)


def test_a_place_among_the_lanes_is_taken_once(linked, intruder):
    accept = intruder.accepted()
    hello = LaneHello(accept.session, Side.ACCEPTOR, 0, fresh_lane_nonce())
    beyond = LaneHello(accept.session, Side.ACCEPTOR, accept.num_lanes, fresh_lane_nonce())
    key = intruder.shake.lane_key()
    with (
        intruder.lane(key, hello),
        intruder.lane(key, hello) as second,
        intruder.lane(key, beyond) as third,
    ):
        assert is_closed(second)
        assert is_closed(third)


def test_set_ups_that_hang_are_capped(linked, monkeypatch):
    """Without a secret anybody gets as far as the Accept; few may stay there."""
    monkeypatch.setattr(acceptor, "MAX_ARRIVING", 3)
    hanging = [Intruder(linked.address) for _ in range(3)]
    for number, each in enumerate(hanging):
        each.accepted(incarnation=100 + number, cluster_id=100 + number)
    late = Intruder(linked.address)
    late.say(Hello(version=PROTOCOL_VERSION, cluster_id=99, incarnation=99, nonce=fresh_nonce()))
    assert isinstance(late.hear(), Welcome)
    late.say(Confirm(endpoint=b""))
    refusal = late.hear()
    assert isinstance(refusal, Reject)
    assert refusal.status == LLMStatusCode.LLM_PROCESSING_LINK
    assert is_closed(late.sock)
    for each in (*hanging, late):  # and then there is room again, as the fixture sees
        each.sock.close()


def test_set_ups_that_hang_hold_a_share_of_the_descriptors(linked, monkeypatch):
    """Each counts with its lanes: 96 descriptors are 9 set-ups of one connection and 4 lanes."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (96, 96))
    hanging = [Intruder(linked.address) for _ in range(9)]
    for number, each in enumerate(hanging):
        each.accepted(incarnation=100 + number, cluster_id=100 + number, num_lanes=2)
    late = Intruder(linked.address)
    with late.sock:
        late.say(
            Hello(
                version=PROTOCOL_VERSION,
                cluster_id=99,
                incarnation=99,
                nonce=fresh_nonce(),
                num_lanes=2,
            )
        )
        assert isinstance(late.hear(), Welcome)
        late.say(Confirm(endpoint=b""))
        refusal = late.hear()
        assert isinstance(refusal, Reject)
        assert "is setting up 9 links" in refusal.reason
    for each in hanging:
        each.sock.close()


def test_lanes_of_a_set_up_that_ended_are_closed(linked, intruder):
    accept = intruder.accepted()
    key = intruder.shake.lane_key()
    first = LaneHello(accept.session, Side.ACCEPTOR, 0, fresh_lane_nonce())
    with intruder.lane(key, first) as lane:
        intruder.sock.close()
        assert is_closed(lane)
    with socket.create_connection(linked.address) as sock:
        sock.sendall(LANE + first.pack())
        assert is_closed(sock)


@pytest.fixture
def impatient(monkeypatch):
    """Give a set-up that stalls a moment only."""
    monkeypatch.setattr(state, "STALL_SECONDS", 0.1)


@pytest.mark.parametrize("cluster_id", [66, 67], ids=["same id", "another id"])
def test_a_stalled_set_up_makes_way_for_the_same_peer(linked, impatient, cluster_id):
    stalled, second = Intruder(linked.address), Intruder(linked.address)
    with stalled.sock, second.sock:
        stalled.accepted(cluster_id=cluster_id)
        second.accepted()
        refusal = stalled.hear()
        assert isinstance(refusal, Reject)
        assert refusal.status == LLMStatusCode.LLM_PROCESSING_LINK
        assert is_closed(stalled.sock)


@pytest.mark.parametrize("names", ["id", "incarnation"])
def test_a_stalled_set_up_keeps_nobody_out(linked, end, impatient, names):
    """It names another id or incarnation, and opens no lanes; both directions work."""
    for dials in (True, False):
        victim = end(7)
        incarnation = victim.incarnation if names == "incarnation" else 66
        stalled = Intruder(linked.address)
        with stalled.sock:
            stalled.accepted(cluster_id=7, incarnation=incarnation)
            first, second = (victim, linked) if dials else (linked, victim)
            (result,) = first.link(second, timeout_ms=5000)
            assert result.is_ok, result
            assert first.unlink(second)[0].is_ok


def test_a_stalled_set_up_goes_when_there_are_too_many(linked, impatient, monkeypatch):
    monkeypatch.setattr(acceptor, "MAX_ARRIVING", 1)
    stalled = Intruder(linked.address)
    with stalled.sock:
        stalled.accepted()
        threading.Event().wait(0.15)  # until it is stalled
        late = Intruder(linked.address)
        with late.sock:
            late.accepted(cluster_id=68, incarnation=68)
            assert isinstance(stalled.hear(), Reject)


@pytest.mark.expects_log("lost")
def test_a_peer_that_breaks_the_protocol_on_its_link_loses_it(linked, intruder):
    accept = intruder.accepted()
    key = intruder.shake.lane_key()
    with contextlib.ExitStack() as stack:
        for side in Side:
            for index in range(accept.num_lanes):
                hello = LaneHello(accept.session, side, index, fresh_lane_nonce())
                stack.enter_context(intruder.lane(key, hello))
        intruder.say(Complete())
        intruder.hear()
        assert linked.linked() == [1, 66]
        intruder.sock.sendall(intruder.tags.tagged(encode_frame(Complete())))
        assert is_closed(intruder.sock)
    linked.plane.wait(1)
    assert linked.linked() == [1]
