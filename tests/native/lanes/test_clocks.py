"""Deadlines of requests are times of the target's clock, which need not be the initiator's."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from support.framing import FramedSocket, lane_of

HOUR_NS = 3600 * 10**9
TARGETS_CLOCK = 1


def write_request(wire, one, deadline_ns, flags):
    """A write of nine bytes, with ten seconds left, that carries a deadline."""
    target = [(one.remote_address, 9)]
    frame = wire.request(wire.WRITE, target, entry=one.entry, flags=wire.INLINE | flags)
    frame = frame[:16] + struct.pack("<Q", deadline_ns) + frame[24:]
    return frame + wire.header(wire.CHUNK, 9) + b"\7" * 9 + wire.outcome()


@pytest.mark.parametrize(
    ("late_ns", "flags", "lands"),
    [(-HOUR_NS, TARGETS_CLOCK, True), (1, TARGETS_CLOCK, False), (HOUR_NS, 0, True)],
)
def test_a_deadline_that_the_targets_clock_has_passed(
    link, raw_lane, wire, code, late_ns, flags, lands
):
    """Whatever the time left says: the request may have been under way for long."""
    one = link(lanes=0)
    one.remote[:] = 0
    lane = raw_lane(one)
    lane.sendall(write_request(wire, one, max(time.monotonic_ns() - late_ns, 0), flags))
    outcome = wire.parse_outcome(lane.recv(48, socket.MSG_WAITALL))
    assert outcome.code == (code.OK if lands else code.TIMEOUT)
    assert (one.remote[:9] == (7 if lands else 0)).all()


def test_a_key_is_not_consumed_after_the_deadline(link, raw_lane, wire, code):
    one = link(lanes=0)
    key = struct.pack("<2Q", *one.target.open_key())
    lane = raw_lane(one)
    expected = [(1, code.TIMEOUT), (1 << 62, code.OK), (1 << 62, code.GONE)]
    for sequence, (deadline_ns, result) in enumerate(expected, 1):
        frame = wire.request(wire.CONSUME, flags=TARGETS_CLOCK, sequence=sequence)
        frame = frame[:16] + struct.pack("<Q", deadline_ns) + frame[24:56] + key + frame[72:]
        lane.sendall(frame)
        assert wire.parse_outcome(lane.recv(48, socket.MSG_WAITALL)).code == result


@pytest.mark.parametrize("offset_ns", [0, HOUR_NS, -HOUR_NS, 1 << 62, -(1 << 62)])
def test_a_request_says_its_deadline_as_the_target_sees_it(link, code, offset_ns):
    one = link(lanes=0)
    near, far = socket.socketpair()
    one.lanes.add(lane_of(near, clock_offset_ns=offset_ns))
    before = time.monotonic_ns()
    assert one.ping(0.05) == code.TIMEOUT
    request = FramedSocket(far).recv(96, socket.MSG_WAITALL)
    assert int.from_bytes(request[6:8], "little") == TARGETS_CLOCK
    deadline_ns, left_ns = struct.unpack_from("<2Q", request, 16)
    at_least = min(max(before + 50_000_000 + offset_ns, 0), 1 << 62)
    assert at_least <= deadline_ns <= min(at_least + 10**9, 1 << 62)
    assert 0 < left_ns <= 50_000_000
    far.close()


def test_every_outcome_tells_the_targets_clock(link, raw_lane, wire):
    one = link(lanes=0)
    lane = raw_lane(one)
    for sequence, kind in enumerate((wire.PING, wire.CONSUME, wire.READ_LOG), 1):
        before = time.monotonic_ns()
        lane.sendall(wire.request(kind, sequence=sequence))
        frame = lane.recv(48, socket.MSG_WAITALL)
        (value,) = struct.unpack("<Q", frame[40:])
        assert before <= value <= time.monotonic_ns()
    one.target.append(b"record")
    lane.sendall(wire.request(wire.VERSION))
    assert lane.recv(48, socket.MSG_WAITALL)[40:] == struct.pack("<Q", one.target.version())


def test_an_answer_puts_a_wrong_offset_right_for_all_lanes(link, code):
    """An offset that is too low makes requests time out at the target, which answers in time."""
    one = link(lanes=0)
    for _ in range(2):
        near, far = socket.socketpair()
        one.server.serve(lane_of(far), 7)
        one.lanes.add(lane_of(near, clock_offset_ns=-HOUR_NS))
    assert one.read([(0, 0, 100)]).code == code.TIMEOUT
    assert one.lanes.count() == 2
    for _ in range(4):
        assert one.read([(0, 0, 100)]).code == code.OK


def test_a_lane_that_was_opened_late_does_not_spoil_what_is_known(link, code):
    one = link(lanes=1)
    near, far = socket.socketpair()
    one.server.serve(lane_of(far), 7)
    one.lanes.add(lane_of(near, clock_offset_ns=-HOUR_NS))
    for _ in range(4):
        assert one.read([(0, 0, 100)]).code == code.OK
