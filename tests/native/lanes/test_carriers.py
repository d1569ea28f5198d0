"""Lanes whose bytes another connection carries: what the core does there without any relay.

There is none in these tests, as if its threads never got the interpreter.
"""

import contextlib
import os
import socket
import time

import pytest

from support.framing import FramedSocket, lane_of

CLOSED = 7  # TCP_CLOSE of <net/tcp_states.h>: after FIN alone it would be 8


def state(sock):
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


@pytest.fixture
def carried():
    """Make (the lane's socket, its far end, the carrier's far end, the carrier)."""
    made = []

    def make():
        inner, outer = socket.socketpair()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            carrier = socket.create_connection(listener.getsockname())
            peer, _ = listener.accept()
        socket.send_fds(outer, [b"\0"], [carrier.fileno()])
        for sock in (outer, peer):
            sock.settimeout(5)
        made.extend([inner, outer, peer, carrier])
        return inner, outer, peer, carrier

    yield make
    for sock in made:
        sock.close()


def test_a_write_that_is_given_up_cuts_the_carrier(link, carried, code):
    one = link(lanes=0)
    inner, outer, peer, _ = carried()
    one.lanes.add(lane_of(inner))
    began = time.monotonic()
    assert one.write(one.whole(), seconds=0.1).code == code.TIMEOUT
    assert time.monotonic() - began < 1
    assert state(peer) == CLOSED
    assert outer.recv(1)  # the request, which was not moved on
    assert one.lanes.count() == 0


def test_a_read_that_is_given_up_cuts_the_carrier(link, carried, code):
    one = link(lanes=0)
    inner, _, peer, _ = carried()
    one.lanes.add(lane_of(inner))
    assert one.read(one.whole(), seconds=0.05).code == code.TIMEOUT
    assert state(peer) == CLOSED


def test_a_peer_that_has_left_is_seen_at_the_carrier(link, carried, code):
    one = link(lanes=0)
    inner, _, peer, _ = carried()
    one.lanes.add(lane_of(inner))
    peer.close()
    assert one.ping(2) == code.NO_LANE
    assert one.lanes.count() == 0


@pytest.mark.parametrize("reset", [False, True])
def test_nothing_is_applied_for_a_peer_that_has_left(link, carried, wire, reset):
    """What a relay had passed on before the process was frozen must not count afterwards."""
    one = link(lanes=0)
    inner, outer, peer, _ = carried()
    if reset:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    before = one.remote.copy()
    payload = wire.header(wire.CHUNK, 100) + bytes(100) + wire.outcome()
    request = wire.request(
        wire.WRITE, [(one.remote_address, 100)], entry=one.entry, flags=wire.INLINE
    )
    FramedSocket(outer).sendall(request + payload)
    one.server.serve(lane_of(inner), 7)
    with contextlib.suppress(ConnectionResetError):  # with a request unread
        assert outer.recv(100) == b""
    assert (one.remote == before).all()


def test_first_bytes_are_no_carrier_without_a_descriptor(link, code):
    one = link(lanes=0)
    near, far = socket.socketpair()
    far.sendall(b"\0")
    one.server.serve(lane_of(near), 7)
    far.settimeout(5)
    far.sendall(bytes(15))  # a header of zeros: the end
    assert far.recv(100) == b""
    far.close()


def test_a_lane_that_is_never_adopted_ends_its_carrier(carried):
    inner, _, peer, carrier = carried()
    carrier.close()
    os.close(inner.detach())
    assert peer.recv(1) == b""
