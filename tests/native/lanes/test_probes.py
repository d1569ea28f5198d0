"""PROBE: whether a target can read its own pages, asked before an engine reads them unguarded."""

from __future__ import annotations

import ctypes
import mmap
import socket
import threading
import time

import numpy as np
import pytest

from llm_datadist import _native
from support.framing import FramedSocket, lane_of

NOTHING = (0, 0)
RANGES = [(0, 4095, 2), (0, 0, 1), (0, 8192, 65536), (0, 77, 0)]


def soon(seconds=20.0):
    return time.monotonic_ns() + int(seconds * 1e9)


def probe(one, ranges, *, entry=None, key=NOTHING, version=0, seconds=20.0):
    """(code, index); no byte counts as moved."""
    _, remote, length = one.arrays(ranges)
    outcome = one.lanes.probe(remote, length, entry or one.entry, key, version, soon(seconds))
    assert outcome[3] == 0
    return outcome[0], outcome[2]


def test_memory_that_can_be_read(link, pair, code):
    one = link(pair=pair)
    before = one.remote.copy()
    assert probe(one, RANGES) == (code.OK, -1)
    assert probe(one, []) == (code.OK, -1)
    assert (one.remote == before).all()


def test_112_000_ranges_in_one_call(link, code):
    count = 112_000
    one = link(size=count * 48)
    ranges = [(0, ((i * 7919) % count) * 48, 48) for i in range(count)]
    assert probe(one, ranges) == (code.OK, -1)


@pytest.mark.parametrize("size", [1 << 16, 24 << 20])
@pytest.mark.parametrize("each", [4096, 1 << 16])
def test_a_page_that_cannot_be_read_is_found(link, code, size, each):
    """The last page counts, on the io thread and on others; the target and the lane live on."""
    one = link(lanes=1)
    pages = mmap.mmap(-1, size)
    memory = np.frombuffer(pages, np.uint8)
    memory[:] = 1
    far = (memory.ctypes.data - one.remote_address) % 2**64
    entry = one.open_entry(memory)
    ranges = [(0, (far + i * each) % 2**64, each) for i in range(size // each)]
    assert probe(one, ranges, entry=entry) == (code.OK, -1)
    _protect(memory, size - 4096, 0)
    assert probe(one, ranges, entry=entry) == (code.REMOTE_FAULT, size // each - 1)
    assert probe(one, ranges[:-1], entry=entry) == (code.OK, -1)
    _protect(memory, size - 4096, mmap.PROT_READ)
    assert probe(one, ranges, entry=entry) == (code.OK, -1)
    assert one.ping() == code.OK
    del memory
    pages.close()


def _protect(memory, offset, protection):
    libc = ctypes.CDLL(None, use_errno=True)
    at = ctypes.c_void_p(memory.ctypes.data + offset)
    assert libc.mprotect(at, ctypes.c_size_t(4096), protection) == 0


def test_nothing_is_said_of_other_memory(link, code, any_entry):
    one = link(lanes=1)
    for bad in [(1 << 20, 1), ((1 << 20) - 1, 2), (0, (1 << 20) + 1), (1 << 40, 5)]:
        assert probe(one, [(0, 0, 8), (8, *bad)]) == (code.DENIED, 1), bad
    hidden = one.open_entry(one.local, accessible=False)
    remote = (one.local.ctypes.data - one.remote_address) % 2**64
    assert probe(one, [(0, remote, 8)], entry=hidden)[0] == code.DENIED
    assert probe(one, [(0, remote, 8)], entry=any_entry) == (code.DENIED, 0)
    assert one.ping() == code.OK


def test_conditions_are_those_of_a_read(link, code):
    one = link()
    key = one.target.open_key()
    one.target.append(b"record")
    assert probe(one, RANGES, key=key, version=one.target.version())[0] == code.OK
    assert probe(one, RANGES, version=one.target.version() + 1)[0] == code.STALE
    one.target.close_key(*key)
    assert probe(one, RANGES, key=key)[0] == code.GONE
    assert probe(one, RANGES, entry=(500, 1))[0] == code.GONE
    assert probe(one, RANGES, seconds=-1)[0] == code.TIMEOUT
    one.target.close_entry(*one.entry)
    assert probe(one, RANGES)[0] == code.GONE


@pytest.mark.parametrize("bad", ["chunk", "go", "garbage"])
def test_a_target_that_does_not_answer_right_costs_its_lane(link, wire, code, bad):
    one = link()
    answer = {
        "chunk": wire.header(wire.CHUNK, 8) + bytes(8) + wire.outcome(),
        "go": wire.header(wire.GO),
        "garbage": bytes(64),
    }[bad]
    near, far = map(FramedSocket, socket.socketpair())
    lanes = _native.Lanes(one.node, 8)
    lanes.add(lane_of(near))

    def serve():
        far.recv(96 + 16, socket.MSG_WAITALL)
        far.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        remote, length = np.array([4096], np.uint64), np.array([8], np.uint64)
        outcome = lanes.probe(remote, length, one.entry, NOTHING, 0, soon(5))
        assert outcome[0] == code.PROTOCOL
        assert lanes.count() == 0
    finally:
        lanes.close()
        thread.join()
        far.close()
