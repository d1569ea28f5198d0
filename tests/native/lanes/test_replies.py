"""Replies that no target can have met: protocol errors, which cost the lane and mark nothing.

The target here has the keys of its lane, so that all its frames are its own.
"""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest

from llm_datadist import _native
from support.framing import FramedSocket, lane_of

NOTHING = (0, 0)
SIZE, PIECES = 600, 3
DEADLINE_S = 5
LATEST = 1 << 62
GATHERED = np.zeros(SIZE, np.uint8)
ADDRESS = GATHERED.ctypes.data


class Target:
    """Answers one request on a lane with what a test chooses."""

    def __init__(self, answer):
        near, far = socket.socketpair()
        self.node = _native.Node(5, 64, 1 << 12)
        self.reader = _native.HostPeer.own(self.node)
        self.lanes = _native.Lanes(self.node, 8)
        self.lanes.add(lane_of(near))
        self.sock = FramedSocket(far)
        self.requests = []
        self._thread = threading.Thread(target=self._serve, args=(answer,))
        self._thread.start()

    def _serve(self, answer):
        head = self.sock.recv(16, socket.MSG_WAITALL)
        body = self.sock.recv(int.from_bytes(head[8:12], "little"), socket.MSG_WAITALL)
        self.requests.append(head + body)
        self.sock.sendall(answer)

    def close(self):
        self.lanes.close()
        self._thread.join(10)
        self.sock.close()
        self.reader.close()
        self.node.close()


def run(target, operation, local, stride=4096):
    """Carry out an operation of three pieces of 200 bytes, `stride` apart at the target."""
    deadline = time.monotonic_ns() + DEADLINE_S * 10**9
    lanes, each = target.lanes, SIZE // PIECES
    length = np.full(PIECES, each, np.uint64)
    own = np.uint64(local.ctypes.data) + np.arange(PIECES, dtype=np.uint64) * np.uint64(each)
    remote = np.uint64(1 << 40) + np.arange(PIECES, dtype=np.uint64) * np.uint64(stride)
    ranges = (remote, length, (3, 1), NOTHING, 0, deadline)
    gathered = np.concatenate((own, np.full(PIECES, ADDRESS, np.uint64), length))
    moving = (np.concatenate((own, remote, length)), NOTHING, (3, 1))
    return {
        "read": lambda: lanes.read(*moving, NOTHING, 0, deadline),
        "write": lambda: lanes.write(*moving, 0, deadline),
        "push": lambda: lanes.push(*moving, 0, deadline),
        "checksum": lambda: lanes.ask_checksum(*ranges).wait()[0],
        "probe": lambda: lanes.probe(*ranges),
        "gather": lambda: lanes.gather(
            target.reader, gathered, NOTHING, NOTHING, NOTHING, NOTHING, 0, deadline
        ),
        "consume": lambda: lanes.consume(3, 1, deadline),
        "version": lambda: lanes.version(deadline)[0],
        "log": lambda: lanes.read_log(0, SIZE, deadline)[0],
        "ping": lambda: lanes.ping(deadline),
    }[operation]()


MOVED = {"read": SIZE, "write": SIZE, "push": SIZE, "log": SIZE}
CHUNKS = {"read": SIZE, "log": SIZE, "checksum": 4 * PIECES, "gather": 8}
OK, GONE, LOCAL_GONE, TIMEOUT, PEER_DEAD, REMOTE_FAULT, LOCAL_FAULT = range(7)
DENIED, STALE, CLOSED, PROTOCOL, SYSTEM, CANCELLED, NO_LANE = range(7, 14)
OF_TRANSFERS = {GONE, TIMEOUT, REMOTE_FAULT, DENIED, STALE, SYSTEM}
MAY_FAIL_WITH = {
    "read": OF_TRANSFERS,
    "write": OF_TRANSFERS,
    "push": OF_TRANSFERS | {LOCAL_GONE, LOCAL_FAULT, PEER_DEAD, CANCELLED},
    "checksum": OF_TRANSFERS | {CANCELLED},
    "probe": OF_TRANSFERS | {CANCELLED},
    "gather": OF_TRANSFERS,
    "consume": {GONE, TIMEOUT},
    "version": set(),
    "log": set(),
    "ping": set(),
}
NAMES_DESCRIPTOR = {REMOTE_FAULT, LOCAL_FAULT, DENIED, SYSTEM}


def chunk(wire, size, fill=b"\1"):
    data = ADDRESS.to_bytes(8, "little") if size == CHUNKS["gather"] else fill * size
    return wire.header(wire.CHUNK, size) + data if size else b""


@pytest.fixture
def answered(wire):
    """Return the outcome of an operation that is answered so, and what is left of the lane."""
    made = []

    def ask(operation, answer):
        local = np.zeros(SIZE, np.uint8)
        made.append(Target(answer))
        outcome = run(made[-1], operation, local)
        return outcome, made[-1].lanes.count(), local

    yield ask
    for each in made:
        each.close()


def good(wire, operation, **changes):
    """The answer to an operation that went well, with changes of its outcome."""
    fields = {"moved": MOVED.get(operation, 0), "value": time.monotonic_ns()} | changes
    return chunk(wire, CHUNKS.get(operation, 0)) + wire.outcome(**fields)


@pytest.mark.parametrize("operation", MAY_FAIL_WITH)
def test_the_codes_that_may_answer_a_request(answered, wire, operation):
    outcome, lanes, _ = answered(operation, good(wire, operation))
    assert (outcome[0], lanes) == (OK, 1)
    for code in range(1, NO_LANE + 1):
        answer = wire.outcome(code, value=time.monotonic_ns())
        outcome, lanes, local = answered(operation, answer)
        expected = (code, 1) if code in MAY_FAIL_WITH[operation] else (PROTOCOL, 0)
        assert (outcome[0], lanes) == expected, code
        assert outcome[2] == -1
        assert (local == 0).all()


@pytest.mark.parametrize("operation", ["read", "write", "push", "checksum", "probe"])
def test_a_descriptor_at_fault_is_one_of_the_requests(answered, wire, operation):
    for code in sorted(MAY_FAIL_WITH[operation]):
        for index in (0, PIECES - 1, PIECES, -2, 1 << 40, -(1 << 63)):
            answer = wire.outcome(code, index=index, value=time.monotonic_ns())
            outcome, lanes, _ = answered(operation, answer)
            fits = 0 <= index < PIECES and code in NAMES_DESCRIPTOR
            expected = (code, index, 1) if fits else (PROTOCOL, -1, 0)
            assert (outcome[0], outcome[2], lanes) == expected, (code, index)


@pytest.mark.parametrize("operation", MAY_FAIL_WITH)
def test_bytes_moved_are_those_that_were_asked_for(answered, wire, operation):
    right = MOVED.get(operation, 0)
    for moved in {0, right - 1, right + 1, 2**64 - 1} - {right, -1}:
        outcome, lanes, _ = answered(operation, good(wire, operation, moved=moved))
        assert (outcome[0], lanes) == (PROTOCOL, 0), moved
        if MAY_FAIL_WITH[operation] and moved > right:
            answer = wire.outcome(GONE, moved=moved, value=time.monotonic_ns())
            outcome, lanes, _ = answered(operation, answer)
            assert (outcome[0], lanes) == (PROTOCOL, 0), moved


@pytest.mark.parametrize("operation", MAY_FAIL_WITH)
def test_an_outcome_that_contradicts_itself(answered, wire, operation):
    changes = [{"index": 0}, {"errno": 5}, {"errno": -5}, {"sequence": 2}, {"sequence": 0}]
    if operation != "version":  # whose value is the version
        changes.append({"value": LATEST + 1})
    for change in changes:
        sequence = change.get("sequence", 1)
        answer = chunk(wire, CHUNKS.get(operation, 0)) if sequence == 1 else b""
        fields = {"moved": MOVED.get(operation, 0), "value": time.monotonic_ns()} | change
        outcome, lanes, _ = answered(operation, answer + wire.outcome(**fields))
        assert (outcome[0], lanes) == (PROTOCOL, 0), change


@pytest.mark.parametrize("operation", MAY_FAIL_WITH)
def test_chunks_that_were_not_asked_for(answered, wire, operation):
    size = CHUNKS.get(operation, 0)
    done = good(wire, operation)[-48:]
    for answer in (
        chunk(wire, size + 1) + done,
        chunk(wire, size) + chunk(wire, 1) + done,
        chunk(wire, size) + wire.header(wire.GO),
        chunk(wire, max(size - 1, 0)) + (done if size else wire.header(wire.GO)),
    ):
        outcome, lanes, _ = answered(operation, answer)
        assert (outcome[0], lanes) == (PROTOCOL, 0), answer


def test_a_failed_checksum_has_no_answer_and_a_failed_read_may(answered, wire):
    late = wire.outcome(GONE, value=time.monotonic_ns())
    outcome, lanes, _ = answered("checksum", chunk(wire, 4 * PIECES) + late)
    assert (outcome[0], lanes) == (PROTOCOL, 0)
    outcome, lanes, _ = answered("read", chunk(wire, SIZE) + late)
    assert (outcome[0], lanes) == (GONE, 1)


@pytest.mark.parametrize("address", [0, 8, 1 << 40, 2**63, 2**64 - 100, 2**64 - 1])
def test_an_address_where_no_buffer_is(answered, wire, address):
    done = wire.outcome(value=time.monotonic_ns())
    answer = wire.header(wire.CHUNK, 8) + address.to_bytes(8, "little") + done
    outcome, _, local = answered("gather", answer)
    assert outcome[0] in {PROTOCOL, SYSTEM, REMOTE_FAULT}
    assert not local.any()


@pytest.mark.parametrize("answer", ["go twice", "ok for go", "local fault for go"])
def test_a_write_that_waits_for_its_go(wire, answer):
    size = 200_000
    said = {
        "go twice": wire.header(wire.GO) * 2,
        "ok for go": wire.outcome(moved=size, value=time.monotonic_ns()),
        "local fault for go": wire.outcome(LOCAL_FAULT, value=time.monotonic_ns()),
    }[answer]
    target = Target(said)
    try:
        own = np.zeros(size, np.uint8)
        descriptors = np.array((own.ctypes.data, 1 << 40, size), np.uint64)
        deadline = time.monotonic_ns() + DEADLINE_S * 10**9
        outcome = target.lanes.write(descriptors, NOTHING, (3, 1), 0, deadline)
        assert (outcome[0], target.lanes.count()) == (PROTOCOL, 0)
    finally:
        target.close()


@pytest.mark.parametrize("code", [GONE, TIMEOUT, REMOTE_FAULT, CLOSED, CANCELLED])
def test_an_initiator_ends_its_payload_with_a_failure_of_its_own(link, raw_lane, wire, code):
    """Another code would come back as the target's own."""
    one = link()
    lane = raw_lane(one)
    opening = wire.request(wire.WRITE, [(one.remote_address, 9)], entry=one.entry, flags=2)
    lane.sendall(opening + wire.outcome(code))
    assert wire.parse_outcome(lane.recv(48, socket.MSG_WAITALL)).code == PROTOCOL
    assert one.server.statistics()["protocol_errors"] == 1


@pytest.mark.parametrize("operation", ["read", "write"])
def test_short_ranges_that_follow_one_another_travel_as_one(wire, operation):
    sizes = []
    for stride in (4096, SIZE // PIECES):
        target = Target(good(wire, operation))
        run(target, operation, np.zeros(SIZE, np.uint8), stride)
        target.close()
        sizes += map(len, target.requests)
    assert sizes[0] - sizes[1] == (PIECES - 1) * 16  # an address and a length each
