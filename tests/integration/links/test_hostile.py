"""Peers that do not keep to the protocol lose their connection, and nobody else loses anything."""

from __future__ import annotations

import contextlib
import resource
import secrets
import socket

import pytest

from llm_datadist import LLMStatusCode
from llm_datadist._control import listener
from llm_datadist._links import state
from llm_datadist._protocol.codec import (
    MAX_GREETING_BYTES,
    Kind,
    encode_frame,
    encode_preamble,
)
from llm_datadist._protocol.handshake import Side, fresh_nonce
from llm_datadist._protocol.lane_auth import (
    LaneHello,
    fresh_lane_nonce,
)
from llm_datadist._protocol.messages import (
    PROTOCOL_VERSION,
    Complete,
    Confirm,
    Hello,
    Ping,
    Reject,
)
from support.intruder import Intruder, is_closed

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


def test_strangers_hold_a_share_of_the_descriptors(linked, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (32, 32))
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(linked.address)) for _ in range(9)]
        assert all(map(is_closed, socks[:5]))


@pytest.fixture
def intruder(linked):
    with Intruder(linked.address) as one:
        yield one


def test_a_lane_without_the_key_is_closed(linked, intruder):
    intruder.accepted()
    assert is_closed(intruder.open_lane(Side.ACCEPTOR, key=bytes(32)))


def test_set_ups_that_hang_hold_a_share_of_the_descriptors(linked, monkeypatch):
    """Each counts with its lanes: 96 descriptors are 9 set-ups of one connection and 4 lanes."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (96, 96))
    with contextlib.ExitStack() as stack:
        hanging = [Intruder(linked.address, cluster_id=100 + number) for number in range(10)]
        *others, late = map(stack.enter_context, hanging)
        for each in others:
            each.accepted(num_lanes=2)
        refusal = late.greet(num_lanes=2)
        assert isinstance(refusal, Reject)
        assert "is setting up 9 links" in refusal.reason


def test_lanes_of_a_set_up_that_ended_are_closed(linked, intruder):
    accept = intruder.accepted()
    lane = intruder.open_lane(Side.ACCEPTOR)
    intruder.sock.close()
    assert is_closed(lane)
    with socket.create_connection(linked.address) as sock:
        hello = LaneHello(accept.session, Side.ACCEPTOR, 0, fresh_lane_nonce())
        sock.sendall(LANE + hello.pack())
        assert is_closed(sock)


@pytest.fixture
def impatient(monkeypatch):
    """Give a set-up that stalls a moment only."""
    monkeypatch.setattr(state, "STALL_SECONDS", 0.1)


@pytest.mark.parametrize("cluster_id", [66, 67], ids=["same id", "another id"])
def test_a_stalled_set_up_makes_way_for_the_same_peer(linked, impatient, cluster_id):
    stalled = Intruder(linked.address, cluster_id=cluster_id, incarnation=66)
    with stalled, Intruder(linked.address) as second:
        stalled.accepted()
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
        with Intruder(linked.address, cluster_id=7, incarnation=incarnation) as stalled:
            stalled.accepted()
            first, second = (victim, linked) if dials else (linked, victim)
            (result,) = first.link(second, timeout_ms=5000)
            assert result.is_ok, result
            assert first.unlink(second)[0].is_ok


@pytest.mark.expects_log("lost")
def test_a_peer_that_breaks_the_protocol_on_its_link_loses_it(linked, intruder):
    intruder.link()
    assert linked.linked() == [1, 66]
    intruder.sock.sendall(intruder.frame(Complete()))
    assert is_closed(intruder.sock)
    linked.plane.wait(1)
    assert linked.linked() == [1]
