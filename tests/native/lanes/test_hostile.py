"""Whatever an initiator sends, at most its own lane ends."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_datadist import _native
from support.framing import NO_KEY, FramedSocket, lane_of

PREFIX = 112  # bytes of a request before its descriptors


def answer(lane):
    """What comes back until the lane is closed."""
    got = b""
    try:
        while part := lane.recv(1 << 16):
            got += part
    except ConnectionResetError:
        pass
    return got


def malformed(wire):
    """Frames that no initiator may send, by name."""
    read = wire.request(wire.READ, [(0, 0)])
    return {
        "garbage": b"GET / HTTP/1.1\r\n\r\n",
        "magic": wire.header(wire.PING, 80, magic=0x12345678) + bytes(80),
        "version": wire.header(wire.PING, 80, version=1) + bytes(80),
        "kind": wire.header(99, 80) + bytes(80),
        "reply": wire.outcome(),
        "chunk": wire.header(wire.CHUNK, 100) + bytes(100),
        "go": wire.header(wire.GO),
        "flags": wire.header(wire.PING, 80, flags=0x8000) + bytes(80),
        "short body": wire.header(wire.READ, 79) + bytes(79),
        "long body": wire.header(wire.PING, 96) + bytes(96),
        "huge body": wire.header(wire.READ, 2**32 - 1) + bytes(80),
        "count": wire.request(wire.READ, [(0, 0)], count=2),
        "many": wire.request(wire.READ, [(0, 0)], count=2**32 - 1),
        "ping with descriptors": wire.request(wire.PING, [], count=1),
        "reserved": read[:92] + b"\1" + read[93:],
        "deadline": read[:16] + b"\xff" * 8 + read[24:],
        "log size": read[:80] + b"\xff" * 8 + read[88:],
    }


def test_a_push_beyond_every_cap_leaves_no_native_thread_by_an_exception(
    link, raw_lane, wire, code
):
    """More than 16 TiB in all, of entries that are as large: the process would end."""
    one = link(lanes=1)
    one.attach_host()
    base, size = np.array([1 << 20], np.uint64), np.array([1 << 45], np.uint64)
    target = one.target.open_entry(base, size, True)
    own = one.node.open_entry(base, size, True)
    frame = wire.request(wire.PUSH, [(1 << 20, 1 << 44, 0), (1 << 20, 1, 0)], entry=target)
    frame = frame[:56] + struct.pack("<QQ", *own) + frame[72:]
    lane = raw_lane(one)
    lane.sendall(frame)
    assert wire.parse_outcome(lane.recv(48)).code == code.SYSTEM
    assert one.ping() == code.OK


def test_malformed_frames_get_an_answer_and_close_that_lane_only(
    link, raw_lane, wire, code, eventually
):
    one = link(lanes=1)
    frames = malformed(wire)
    for name, frame in frames.items():
        lane = raw_lane(one)
        lane.sendall(frame)
        got = answer(lane)
        if got:  # a reset may overtake the answer
            assert wire.parse_outcome(got).code == code.PROTOCOL, name
    assert one.server.statistics()["protocol_errors"] == len(frames)
    for sound in (wire.header(wire.PING, 80) + bytes(80), wire.request(wire.READ, [(0, 0)])):
        lane = raw_lane(one)  # what the malformed ones change
        lane.sendall(sound)
        assert wire.parse_outcome(lane.recv(48)).code not in (None, code.PROTOCOL)
        lane.close()
    eventually(lambda: one.server.link_lanes(7) == 1)  # a lane is closed before it is forgotten
    assert one.ping() == code.OK


def in_pieces(sock, data, count):
    """Send bytes of which each `recv` of the peer returns one piece, however many wait.

    The kernel does not read on beyond a piece that comes with a descriptor.
    """
    step = -(-len(data) // count)
    for at in range(0, len(data), step):
        socket.send_fds(sock, [data[at : at + step]], [sock.fileno()])


@pytest.mark.parametrize("count", range(8, 24))
def test_a_request_that_arrives_in_many_pieces_is_answered(link, wire, code, count):
    """A lane has its turns, after which others are served; these may end before the work."""
    one = link(lanes=1)
    near, far = socket.socketpair()
    lane, served = FramedSocket(near), lane_of(far)
    request = wire.request(wire.PROBE, [(one.remote_address, 8)] * 100, entry=one.entry)
    data = lane.sent.seal(request)
    near.sendall(data[:PREFIX])
    in_pieces(near, data[PREFIX:], count)
    near.settimeout(5)
    one.server.serve(served, 7)  # everything has arrived
    assert wire.parse_outcome(lane.recv(48, socket.MSG_WAITALL)).code == code.OK
    lane.close()


@pytest.mark.parametrize(
    ("address", "length"),
    [(2**63, 2**63), (2**64 - 1, 1), (2**64 - 1, 2**64 - 1), (0, 2**63), (0, 2**64 - 1), (1, 0)],
)
@pytest.mark.parametrize("kind", ["READ", "WRITE", "PUSH"])
def test_overflowing_ranges_are_denied(link, raw_lane, wire, code, kind, address, length):
    one = link(lanes=1)
    one.attach_host()
    lane = raw_lane(one)
    good = (one.remote_address, 4096)
    for entry in (one.entry, (0xFFFFFFFF, 0)):
        ranges = [good, (address, length), good]
        if kind == "PUSH":
            ranges = [(*each, 0) for each in ranges]
        lane.sendall(wire.request(getattr(wire, kind), ranges, entry=entry))
        outcome = wire.parse_outcome(lane.recv(48, socket.MSG_WAITALL))
        assert (outcome.code, outcome.index) == (code.DENIED, 1)
    assert one.server.link_lanes(7) == 2


def test_lengths_that_add_up_beyond_64_bits_are_denied(link, raw_lane, wire, code):
    one = link()
    lane = raw_lane(one)
    lane.sendall(wire.request(wire.READ, [(0, 2**62)] * 9, entry=one.entry))
    assert wire.parse_outcome(lane.recv(48, socket.MSG_WAITALL)).code == code.DENIED


def test_payloads_that_do_not_keep_their_word(link, raw_lane, wire, code):
    one = link()
    before = one.remote.copy()
    target = [(one.remote_address, 1000)]
    opening = wire.request(wire.WRITE, target, entry=one.entry, flags=wire.INLINE)
    same = before[:1000].tobytes()
    for rest in (
        wire.header(wire.CHUNK, 1001),  # more than asked for
        wire.header(wire.CHUNK, 500) + same[:500] + wire.header(wire.CHUNK, 501),
        wire.header(wire.CHUNK, 500) + same[:500] + wire.outcome(),  # ok, but bytes are missing
        wire.header(wire.CHUNK, 1000) + same + wire.header(wire.CHUNK, 1),
        wire.header(wire.CHUNK, 1000, sequence=2) + same,
        wire.header(wire.GO),
        wire.request(wire.PING),
        wire.outcome(code=77),
    ):
        lane = raw_lane(one)
        lane.sendall(opening + rest)
        got = answer(lane)
        assert not got or wire.parse_outcome(got[-48:]).code == code.PROTOCOL, rest
    too_large = [(one.remote_address, 65537)]
    lane = raw_lane(one)
    lane.sendall(wire.request(wire.WRITE, too_large, entry=one.entry, flags=wire.INLINE))
    answer(lane)
    assert (one.remote == before).all()
    assert one.ping() == code.OK


def test_a_refused_write_whose_payload_comes_anyway_is_drained(link, raw_lane, wire, code):
    one = link()
    lane = raw_lane(one)
    for kind, expected in ((wire.WRITE, code.GONE), (wire.PING, code.OK)):
        if kind == wire.WRITE:
            frame = wire.request(kind, [(one.remote_address, 9)], entry=(9, 9), flags=wire.INLINE)
            frame += wire.header(wire.CHUNK, 9) + bytes(9) + wire.outcome()
        else:
            frame = wire.request(kind)
        lane.sendall(frame)
        assert wire.parse_outcome(lane.recv(48, socket.MSG_WAITALL)).code == expected


def test_an_unfinished_request_costs_nobody_anything(link, raw_lane, wire, code):
    one = link()
    for cut in (1, 15, 16, 40, 95, 100):
        lane = raw_lane(one)
        lane.sendall(wire.request(wire.READ, [(one.remote_address, 10)])[:cut])
    assert one.ping() == code.OK
    assert one.read([(0, 0, 1000)]).code == code.OK


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.integers(1, 7),
    count=st.integers(0, 3),
    flags=st.integers(0, 3),
    changes=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=6),
    tail=st.binary(max_size=200),
)
def test_mutated_frames_close_at_most_their_lane(
    link_to_attack, raw_lane, wire, code, kind, count, flags, changes, tail
):
    one = link_to_attack
    width = 3 if kind == wire.PUSH else 2
    ranges = [(one.remote_address, 64, 0)[:width]] * (count if kind <= wire.PUSH else 0)
    frame = bytearray(wire.request(kind, ranges, entry=one.entry, flags=flags) + tail)
    for at, byte in changes:
        frame[at % len(frame)] = byte
    with raw_lane(one) as lane:
        with contextlib.suppress(OSError):  # it may be closed before we are done
            lane.sendall(frame)
            lane.shutdown(socket.SHUT_WR)
        answer(lane)
    assert one.ping() == code.OK
    assert one.read([(0, 100, 100)]).code == code.OK


@pytest.fixture
def link_to_attack(link):
    return link(lanes=1)


def test_nothing_but_connected_stream_sockets_is_taken(link):
    one = link()
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="must be a socket"):
        _native.LaneSocket(os.dup(reader), NO_KEY, NO_KEY)
    datagrams, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with pytest.raises(OSError, match="stream socket"):
        lane_of(datagrams)
    with pytest.raises(ValueError, match="receive_key must be 16 bytes long, got 15"):
        _native.LaneSocket(other.fileno(), NO_KEY, bytes(15))
    other.close()
    os.close(reader)
    os.close(writer)
    near, far = socket.socketpair()
    lane = lane_of(far)
    one.server.serve(lane, 7)
    for adopt in (lambda lane: one.server.serve(lane, 7), one.lanes.add):
        with pytest.raises(ValueError, match="taken over"):
            adopt(lane)
    near.close()
    assert one.lanes.count() == 2


def test_no_descriptor_is_left(link, code, eventually):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    link().ping()  # the io threads and their descriptors stay
    before = descriptors()
    for _ in range(5):
        one = link()
        assert one.ping() == code.OK
        one.lanes.close()
        one.server.close()
        near, far = socket.socketpair()
        with pytest.raises(OSError, match="closed"):
            one.lanes.add(lane_of(near))
        with pytest.raises(OSError, match="closed"):
            one.server.serve(lane_of(far), 7)
        one.close()
    eventually(lambda: descriptors() <= before)  # an io thread lets go of a closed lane in its time


def test_a_forked_child_holds_no_lane_open(link, code, eventually):
    one = link()
    assert one.ping() == code.OK
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            closed = one.lanes.ping(2**62)[0] in (code.CANCELLED, code.CLOSED)
            one.lanes.close()
            one.server.close()
            near, far = socket.socketpair()
            server = _native.LaneServer(_native.Node(5, 16, 64))
            lanes = _native.Lanes(_native.Node(6, 16, 64), 1)
            server.serve(lane_of(far), 1)
            lanes.add(lane_of(near))
            served = lanes.ping(time.monotonic_ns() + 5 * 10**9)[0] == code.OK
            os._exit(0 if closed and served else 1)
        finally:
            os._exit(2)
    os.close(reader)
    one.lanes.close()
    # The child's copies did not keep the connections.
    eventually(lambda: one.server.link_lanes(7) == 0)
    os.close(writer)
    assert os.waitpid(child, 0)[1] == 0
