"""CHECKSUM: what a target says of its memory, and what it refuses to say."""

from __future__ import annotations

import mmap
import socket
import struct
import threading
import time

import numpy as np
import pytest

from llm_datadist import _native
from support.framing import FramedSocket, lane_of

NOTHING = (0, 0)
RANGES = [(0, 4096, 100), (300, 0, 1), (5000, 8192, 4096), (0, 77, 0)]
CHECK_VALUE = 0xE3069283  # of b"123456789", as published


def soon(seconds=20.0):
    return time.monotonic_ns() + int(seconds * 1e9)


def checksum(one, ranges, *, entry=None, key=NOTHING, version=0, seconds=20.0):
    """(code, index), sums."""
    _, remote, length = one.arrays(ranges)
    outcome, sums = one.lanes.ask_checksum(
        remote, length, entry or one.entry, key, version, soon(seconds)
    ).wait()
    return (outcome[0], outcome[2]), np.frombuffer(sums, np.uint32)


def expected(one, ranges):
    return [_native.crc32c(one.remote[remote : remote + n].tobytes()) for _, remote, n in ranges]


def test_the_published_check_value():
    assert _native.crc32c(b"123456789") == CHECK_VALUE
    assert _native.crc32c(b"") == 0


def test_sums_are_of_the_ranges_in_order(link, pair, code):
    one = link(pair=pair)
    outcome, sums = checksum(one, RANGES)
    assert outcome == (code.OK, -1)
    assert sums.tolist() == expected(one, RANGES)


@pytest.mark.parametrize("block", [1 << 20, 1 << 16, 4099])
def test_large_ones_are_done_by_other_threads(link, code, block):
    one = link(size=(8 << 20) + 4099)
    ranges = one.whole(block)
    outcome, sums = checksum(one, ranges)
    assert outcome == (code.OK, -1)
    assert sums.tolist() == expected(one, ranges)


def test_112_000_ranges_in_one_call(link, code):
    count, stride = 112_000, 48
    one = link(size=count * stride)
    ranges = [(0, ((i * 7919) % count) * stride, stride - 1) for i in range(count)]
    outcome, sums = checksum(one, ranges)
    assert outcome == (code.OK, -1)
    assert sums.tolist() == expected(one, ranges)


def test_no_ranges_at_all(link, code):
    one = link()
    outcome, sums = checksum(one, [])
    assert (outcome, len(sums)) == ((code.OK, -1), 0)


def test_own_memory_has_the_same_sums(link, code):
    one = link()
    remote, length = np.ascontiguousarray(one.arrays(RANGES)[1:])
    outcome, sums = _native.checksum(remote, length, one.target, one.entry, soon())
    assert outcome[0] == code.OK
    assert np.frombuffer(sums, np.uint32).tolist() == expected(one, RANGES)
    assert _native.checksum(remote, length, one.target, NOTHING, soon())[0][0] == code.OK
    assert _native.checksum(remote, length, one.target, one.entry, 0)[0][0] == code.TIMEOUT
    assert _native.checksum(remote, length, one.target, (44, 1), soon())[0][0] == code.LOCAL_GONE
    with pytest.raises(ValueError, match="length"):
        _native.checksum(remote, length[:1], one.target, one.entry, soon())


def test_nothing_is_said_of_other_memory(link, code, any_entry):
    """A checksum tells about bytes, so what may not be read may not be summed."""
    one = link(lanes=1)
    for bad in [(1 << 20, 1), ((1 << 20) - 1, 2), (0, (1 << 20) + 1), (1 << 40, 5)]:
        assert checksum(one, [(0, 0, 8), (8, *bad)])[0] == (code.DENIED, 1), bad
    hidden = one.open_entry(one.local, accessible=False)
    remote = (one.local.ctypes.data - one.remote_address) % 2**64
    assert checksum(one, [(0, remote, 8)], entry=hidden)[0][0] == code.DENIED
    assert checksum(one, [(0, remote, 8)], entry=any_entry)[0] == (code.DENIED, 0)
    assert checksum(one, RANGES, entry=any_entry)[0] == (code.OK, -1)
    assert one.ping() == code.OK
    assert one.lanes.count() == 1


def test_conditions_are_those_of_a_read(link, code):
    one = link()
    key = one.target.open_key()
    one.target.append(b"record")
    assert checksum(one, RANGES, key=key, version=one.target.version())[0][0] == code.OK
    assert checksum(one, RANGES, version=one.target.version() + 1)[0][0] == code.STALE
    one.target.close_key(*key)
    assert checksum(one, RANGES, key=key)[0][0] == code.GONE
    assert checksum(one, RANGES, entry=(500, 1))[0][0] == code.GONE
    assert checksum(one, RANGES, seconds=-1)[0][0] == code.TIMEOUT
    one.target.close_entry(*one.entry)
    assert checksum(one, RANGES)[0][0] == code.GONE


@pytest.mark.parametrize("size", [1 << 16, 8 << 20])
def test_memory_that_cannot_be_read_is_named(link, code, size):
    """On the io thread and on others; the target and the lane live on."""
    one = link(lanes=1)
    pages = mmap.mmap(-1, size)
    memory = np.frombuffer(pages, np.uint8)
    remote = (memory.ctypes.data - one.remote_address) % 2**64
    entry = one.open_entry(memory)
    ranges = [(0, remote + i * 4096, 4096) for i in range(size // 4096)]
    ranges = [(local, far % 2**64, length) for local, far, length in ranges]
    assert checksum(one, ranges, entry=entry)[0] == (code.OK, -1)
    del memory
    pages.close()
    assert checksum(one, ranges, entry=entry)[0] == (code.REMOTE_FAULT, 0)
    assert one.ping() == code.OK


class FakeTarget:
    """Takes one request on a lane, and answers it with bytes that a test chooses."""

    def __init__(self, one, answer):
        near, far = socket.socketpair()
        self.sock = FramedSocket(far)
        self.lanes = _native.Lanes(one.node, 8)
        self.lanes.add(lane_of(near))
        self.thread = threading.Thread(target=self._serve, args=(answer,))
        self.thread.start()

    def _serve(self, answer):
        self.sock.recv(96 + 2 * 16, socket.MSG_WAITALL)
        self.sock.sendall(answer)

    def close(self):
        self.lanes.close()
        self.thread.join()
        self.sock.close()


def answers(wire):
    """What a target may not answer to a question for two checksums, by name."""
    good = wire.header(wire.CHUNK, 8) + struct.pack("<II", 1, 2)
    return {
        "no chunk": wire.outcome(),
        "one only": wire.header(wire.CHUNK, 4) + bytes(4) + wire.outcome(),
        "three": wire.header(wire.CHUNK, 12) + bytes(12) + wire.outcome(),
        "twice": good + good + wire.outcome(),
        "go": wire.header(wire.GO),
        "garbage": bytes(64),
    }


def test_a_target_that_does_not_answer_right_costs_its_lane(link, wire, code):
    one = link()
    pair = np.array([4096, 8192], np.uint64), np.array([8, 8], np.uint64)
    good = wire.header(wire.CHUNK, 8) + struct.pack("<II", 1, 2) + wire.outcome()
    for name, answer in {"good": good, **answers(wire)}.items():
        target = FakeTarget(one, answer)
        try:
            question = target.lanes.ask_checksum(*pair, one.entry, NOTHING, 0, soon(5))
            outcome, sums = question.wait()
            if name == "good":
                assert outcome[0] == code.OK
                assert np.frombuffer(sums, np.uint32).tolist() == [1, 2]
            else:
                assert outcome[0] == code.PROTOCOL, name
                assert target.lanes.count() == 0, name
        finally:
            target.close()


def test_a_question_is_answered_once(link, code):
    one = link()
    _, remote, length = one.arrays(RANGES)
    question = one.lanes.ask_checksum(remote, length, one.entry, NOTHING, 0, soon())
    assert question.wait()[0][0] == code.OK
    with pytest.raises(RuntimeError, match="returned already"):
        question.wait()


def test_a_question_that_is_dropped_costs_its_lane_at_most(link, code):
    one = link(lanes=2)
    _, remote, length = one.arrays(RANGES)
    question = one.lanes.ask_checksum(remote, length, one.entry, NOTHING, 0, soon())
    assert one.ping() == code.OK  # on the other lane
    del question
    assert one.lanes.count() in (1, 2)
    assert one.ping() == code.OK


def test_what_goes_on_meanwhile_is_not_held_up(link, code):
    """The target computes while its initiator does something else."""
    one = link(size=8 << 20, lanes=2)
    _, remote, length = one.arrays(one.whole())
    question = one.lanes.ask_checksum(remote, length, one.entry, NOTHING, 0, soon())
    assert one.read(one.whole())[0] == code.OK
    outcome, sums = question.wait()
    assert outcome[0] == code.OK
    assert np.frombuffer(sums, np.uint32).tolist() == expected(one, one.whole())
