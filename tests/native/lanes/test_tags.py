"""Somebody on the path of a lane: what is changed, repeated, left out, or made ends the lane.

`Path` passes on what the two ends of a lane say, frame by frame, and lets a test do something to
them. The payload of chunks has no tag, which one test here is about.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import numpy as np
import pytest

from llm_datadist import _native
from support.framing import CHUNK, FramedSocket

HEAD_BYTES = 32
SMALL, LARGE = 1000, 200_000  # bytes of a transfer; the payload of a large write waits for a GO
THERE, BACK = b"to the target...", b"to the initiator"
OPERATIONS = [
    "read",
    "small write",
    "large write",
    "consume",
    "version",
    "log",
    "ping",
    "checksum",
    "probe",
]
DESTRUCTIVE = ["small write", "large write", "consume"]


def lane_of(sock, send_key, receive_key):
    return _native.LaneSocket(sock.detach(), send_key, receive_key)


def as_it_was(data):
    return data


class Path:
    """Between the ends of a lane: what stands in `attacks` says what to pass on for a frame.

    A frame is its head and body, but for the payload of a chunk, which comes after it by itself.
    """

    def __init__(self, near, far):
        self.attacks = {"request": as_it_was, "reply": as_it_was, "payload": as_it_was}
        self.seen = {"request": [], "reply": []}
        self._socks = (near, far)
        self._threads = [
            threading.Thread(target=self._pass, args=ends)
            for ends in ((near, far, "request"), (far, near, "reply"))
        ]
        for thread in self._threads:
            thread.start()

    def _pass(self, source, sink, way):
        with contextlib.suppress(OSError):
            while head := source.recv(HEAD_BYTES, socket.MSG_WAITALL):
                size = int.from_bytes(head[8:12], "little")
                body = source.recv(size, socket.MSG_WAITALL) if size else b""
                frame, payload = (head, body) if head[5] == CHUNK else (head + body, b"")
                self.seen[way].append(frame)
                sink.sendall(self.attacks[way](frame) + self.attacks["payload"](payload))
        self._shut()

    def _shut(self):
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._shut()
        for thread in self._threads:
            thread.join(10)
        for sock in self._socks:
            sock.close()


class Attacked:
    """A link whose one lane has somebody on its path."""

    def __init__(self, link):
        near, path_near = socket.socketpair()
        path_far, far = socket.socketpair()
        self.path = Path(path_near, path_far)
        link.server.serve(lane_of(far, BACK, THERE), 7)
        link.lanes.add(lane_of(near, THERE, BACK))
        self.link = link
        self.key = link.target.open_key()
        self.before = link.remote.copy()
        link.local[:] = 7

    def run(self, operation, seconds=5.0):
        """Carry an operation out; return its code."""
        link, lanes, deadline = self.link, self.link.lanes, time.monotonic_ns() + int(seconds * 1e9)
        size = LARGE if operation == "large write" else SMALL
        ranges = [(0, 0, size)]
        _, remote, length = link.arrays(ranges)
        asked = (remote, length, link.entry, (0, 0), 0, deadline)
        return {
            "read": lambda: link.read(ranges, seconds=seconds).code,
            "small write": lambda: link.write(ranges, seconds=seconds).code,
            "large write": lambda: link.write(ranges, seconds=seconds).code,
            "consume": lambda: lanes.consume(*self.key, deadline)[0],
            "version": lambda: lanes.version(deadline)[0][0],
            "log": lambda: lanes.read_log(0, 100, deadline)[0][0],
            "ping": lambda: lanes.ping(deadline)[0],
            "checksum": lambda: lanes.ask_checksum(*asked).wait()[0][0],
            "probe": lambda: lanes.probe(*asked)[0],
        }[operation]()

    def untouched(self):
        """Whether no request of this life of the link has changed anything at the target."""
        consumed = self.link.target.guard(self.key[0]) != self.key[1]
        return not consumed and (self.link.remote == self.before).all()


@pytest.fixture
def attacked(link):
    made = []

    def make():
        made.append(Attacked(link(lanes=0)))
        return made[-1]

    yield make
    for each in made:
        each.path.close()


def once(number, change):
    """Apply `change` to the frame of that number, and to no other."""
    numbers = iter(range(1_000))
    return lambda frame: change(frame) if next(numbers) == number else frame


def sizes_of(attacked, operation):
    """Bytes of the frames that go each way in an operation without an attack."""
    one = attacked()
    assert one.run(operation) == 0
    one.link.lanes.close()
    return {way: [len(frame) for frame in frames] for way, frames in one.path.seen.items()}


def check_ends(one, operation, code, *, untouched):
    """What is attacked fails as on a lane that is dead or odd, and has cost the lane."""
    got = one.run(operation, 0.3)
    assert got in (code.PROTOCOL, code.PEER_DEAD, code.TIMEOUT)
    assert one.link.lanes.count() == 0
    if untouched:
        assert one.untouched()


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_byte_that_is_changed_ends_the_lane(attacked, code, operation):
    """In each frame: in each field of its head, in its tag, and in its body."""
    for way, sizes in sizes_of(attacked, operation).items():
        for number, size in enumerate(sizes):
            for at in {0, 4, 5, 6, 8, 12, 16, 31, size - 1, (size + HEAD_BYTES) // 2}:
                if at >= size:
                    continue
                one = attacked()
                flip = bytes(at) + b"\1" + bytes(size - at - 1)

                def changed(frame, flip=flip):
                    return bytes(a ^ b for a, b in zip(frame, flip, strict=True))

                one.path.attacks[way] = once(number, changed)
                first = way == "request" and number == 0
                check_ends(one, operation, code, untouched=first)
                one.link.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["request", "reply"])
@pytest.mark.parametrize("operation", DESTRUCTIVE)
def test_frames_that_are_left_out_or_cut_end_the_lane(attacked, code, operation, way):
    for number in range(len(sizes_of(attacked, operation)[way])):
        for change in (lambda _: b"", lambda frame: frame[:-3]):
            one = attacked()
            one.path.attacks[way] = once(number, change)
            first = way == "request" and number == 0
            check_ends(one, operation, code, untouched=first)
            one.link.close()


def test_a_request_that_is_repeated_does_nothing(attacked, code, eventually):
    """The target has answered the first one; what comes again is not what it waits for."""
    one = attacked()
    one.path.attacks["request"] = lambda frame: frame + frame
    assert one.run("ping") in (code.OK, code.PEER_DEAD)
    eventually(lambda: one.link.server.link_lanes(7) == 0)
    counts = one.link.server.statistics()
    assert (counts["requests"], counts["protocol_errors"]) == (1, 1)


def test_a_request_of_an_earlier_time_does_nothing(attacked, code, eventually):
    """A write that is played again after another write would bring the old bytes back."""
    one = attacked()
    for value in (1, 2):
        one.link.local[:] = value
        assert one.run("small write") == code.OK
    old = b"".join(one.path.seen["request"][:1])
    one.path.attacks["request"] = lambda _: old
    assert one.run("ping") == code.PEER_DEAD
    eventually(lambda: one.link.server.link_lanes(7) == 0)
    assert (one.link.remote[:SMALL] == 2).all()


def test_a_reply_of_an_earlier_time_answers_nothing(attacked, code):
    one = attacked()
    assert one.run("ping") == code.OK
    first = one.path.seen["reply"][0]
    one.path.attacks["reply"] = lambda _: first
    assert one.run("consume") == code.PROTOCOL
    assert one.link.lanes.count() == 0


@pytest.mark.parametrize("key", [bytes(16), BACK])
def test_a_request_of_somebody_without_the_key_reads_nothing(link, wire, key):
    """It is right in all but its tag, and no answer tells in what it was wrong."""
    one = link(lanes=0)
    near, far = socket.socketpair()
    one.server.serve(lane_of(far, BACK, THERE), 7)
    request = wire.request(wire.READ, [(one.remote_address, 100)], entry=one.entry)
    near.settimeout(5)
    FramedSocket(near, send_key=key).sendall(request)
    with contextlib.suppress(ConnectionResetError):
        assert near.recv(1000) == b""
    assert one.server.statistics()["requests"] == 0
    near.close()


def test_what_an_end_has_sent_is_not_what_it_gets(link, code):
    """A lane that leads back to the own instance has the keys of one end at both."""
    one = link(lanes=0)
    near, far = socket.socketpair()
    one.server.serve(lane_of(far, THERE, BACK), 7)
    one.lanes.add(lane_of(near, THERE, BACK))
    assert one.ping() == code.PEER_DEAD
    assert one.server.statistics()["requests"] == 0


@pytest.mark.parametrize("operation", ["log", "checksum"])
def test_an_answer_that_is_changed_ends_the_lane(attacked, code, operation):
    """A directory that somebody else has written would lead to other addresses."""
    one = attacked()
    assert one.run(operation) == code.OK
    one.path.attacks["payload"] = lambda payload: (
        payload[:-1] + bytes(each ^ 1 for each in payload[-1:])
    )
    assert one.run(operation) == code.PROTOCOL
    assert one.link.lanes.count() == 0


def test_payload_is_neither_secret_nor_covered(attacked, code):
    """As docs/security.md says: on a plain lane KV caches can be read and changed unseen."""
    one = attacked()
    one.link.remote[:SMALL] = np.arange(SMALL, dtype=np.uint8)
    heard = []

    def change(payload):
        heard.append(payload)
        return bytes(len(payload))

    one.path.attacks["payload"] = change
    assert one.run("read") == code.OK
    assert one.link.remote[:SMALL].tobytes() in heard
    assert (one.link.local[:SMALL] == 0).all()
