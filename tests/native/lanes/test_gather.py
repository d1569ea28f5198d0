"""GATHER: a target gathers short ranges in its own memory, from where the initiator reads them."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.native.lanes.conftest import Outcome, soon

from llm_datadist import _native
from support.instances import PAGE, Pages

NOTHING = (0, 0)
SIZE = 4 << 20
PIECE, STEP = 256, 2048
MOST_BYTES = 256 * 1024


class Gathering:
    """A link whose ends read each other's memory, as two instances on one host do."""

    def __init__(self, one):
        self.one = one
        one.attach_host()
        self.link_ref = one.target.open_guard()
        proof = os.urandom(16)
        one.target.show_proof(self.link_ref, proof)
        self.host = _native.HostPeer(
            one.node, os.getpid(), one.target.incarnation, one.target.page_address,
            one.target.published_fd, one.target.published_bytes, self.link_ref[0], proof,
        )  # fmt: skip

    def __call__(self, ranges, *, local_ref=None, entry=None, key=NOTHING, version=0, seconds=20.0):
        one = self.one
        return Outcome(
            *one.lanes.gather(
                self.host,
                one.descriptors(ranges),
                local_ref or one.local_entry,
                self.link_ref,
                entry or one.entry,
                key,
                version,
                soon(seconds),
            )
        )

    def close(self):
        self.host.close()


@pytest.fixture
def gathering(link):
    made = []

    def make(size=SIZE, lanes=2, **other):
        made.append(Gathering(link(size=size, lanes=lanes, **other)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def strided(size=SIZE, piece=PIECE, step=STEP):
    return [(at // step * piece, at, piece) for at in range(0, size - piece, step)]


def scattered(size=SIZE, piece=PIECE, step=STEP):
    """Pieces that lie apart on both sides."""
    count = size // step
    places = np.random.default_rng(3).permutation(count)
    return [(int(place) * step, at * step, piece) for at, place in enumerate(places)]


@pytest.mark.parametrize("ranges", [strided, scattered])
def test_each_byte_comes_from_its_place(gathering, code, pair, ranges):
    gather = gathering(pair=pair)
    wanted = ranges()
    assert gather(wanted) == (code.OK, 0, -1, len(wanted) * PIECE)
    assert (gather.one.local == gather.one.expected(wanted)).all()


def test_pieces_of_any_length(gathering, code):
    gather = gathering()
    lengths = np.random.default_rng(5).integers(0, 3000, 900).tolist()
    wanted = [(at * 4096, (899 - at) * 4096, length) for at, length in enumerate(lengths)]
    assert gather(wanted) == (code.OK, 0, -1, sum(lengths))
    assert (gather.one.local == gather.one.expected(wanted)).all()


def test_more_pieces_than_one_request_has(gathering, code):
    gather = gathering()
    wanted = strided(piece=5, step=41)
    assert gather(wanted).code == code.OK
    assert (gather.one.local == gather.one.expected(wanted)).all()


def test_long_ranges_and_none_are_left_to_others(gathering, code):
    gather = gathering()
    for ranges in ([(0, 0, (128 << 10) + 1)], []):
        assert gather(ranges)[:2] == (code.SYSTEM, errno.EOPNOTSUPP)
    assert not gather.one.local.any()


def test_a_target_that_cannot_be_read_back_does_not_gather(link, gathering, code):
    gather = gathering()
    other = link(size=SIZE)  # its target has no reader of the initiator
    result = other.lanes.gather(
        gather.host, other.descriptors(strided()), NOTHING, gather.link_ref, other.entry, NOTHING,
        0, soon(),
    )  # fmt: skip
    assert result[:2] == (code.SYSTEM, errno.EOPNOTSUPP)


def test_memory_of_an_accelerator_is_not_gathered(gathering, code):
    """The threads that gather cannot touch it; lanes carry it in other ways."""
    gather = gathering()
    entry = gather.one.open_entry(gather.one.remote, device=0)
    assert gather(strided(), entry=entry)[:2] == (code.SYSTEM, errno.EOPNOTSUPP)
    assert not gather.one.local.any()


def test_the_rights_are_those_of_a_read(gathering, code, any_entry):
    gather = gathering()
    one = gather.one
    assert gather([(0, 0, 8), (8, SIZE, 8)]).code == code.DENIED
    hidden = one.open_entry(np.zeros(64, np.uint8), accessible=False)
    assert gather([(0, 0, 8)], entry=hidden).code == code.DENIED
    assert gather([(0, 0, 8)], entry=any_entry).code == code.OK
    assert gather([(0, 0, 8)], version=3).code == code.STALE
    assert gather([(0, 0, 8)], local_ref=(44, 1)).code == code.LOCAL_GONE
    assert gather([(0, 0, 8)], seconds=0).code == code.TIMEOUT
    key = one.target.open_guard()
    assert gather([(0, 0, 8)], key=key).code == code.OK
    one.target.close_guard(*key)
    assert gather([(0, 0, 8)], key=key).code == code.GONE
    one.target.close_entry(*one.entry)
    assert gather([(0, 0, 8)]).code == code.GONE


def test_a_guard_that_ends_after_the_gathering_counts(gathering, code):
    """The initiator checks the guards after its own read, too."""
    gather = gathering()
    gather.one.target.close_guard(*gather.link_ref)
    assert gather(strided()).code == code.GONE


def test_memory_at_fault_does_not_end_the_lane(gathering, code):
    gather = gathering()
    one = gather.one
    pages = Pages(1, 2)
    try:
        pages.data[:] = 1  # brings them in
        entry = one.open_entry(pages.data)
        base = (pages.address - one.remote_address) % 2**64
        pages.protect(0, 1)
        ranges = [(0, base, 64), (64, base + PAGE, 64)]
        assert gather(ranges, entry=entry)[:3] == (code.REMOTE_FAULT, errno.EFAULT, 1)
        assert gather(ranges[:1], entry=entry).code == code.OK
        assert gather(strided()).code == code.OK
        assert one.lanes.count() == 2
    finally:
        pages.close()


def test_a_request_of_more_than_a_buffer_is_malformed(link, raw_lane, wire, code):
    one = link()
    one.attach_host()
    lane = raw_lane(one)
    half = MOST_BYTES // 2
    ranges = [(one.remote_address, half), (one.remote_address, half + 1)]
    lane.sendall(wire.request(wire.GATHER, ranges, entry=one.entry))
    assert wire.parse_outcome(lane.recv(48, socket.MSG_WAITALL)).code == code.PROTOCOL


def test_the_answer_says_where_the_bytes_are(link, raw_lane, wire, code):
    one = link()
    one.attach_host()
    lane = raw_lane(one)
    ranges = [(one.remote_address + at, 16) for at in (5000, 100, 70000)]
    lane.sendall(wire.request(wire.GATHER, ranges, entry=one.entry))
    chunk = lane.recv(16 + 8, socket.MSG_WAITALL)
    assert chunk[5] == wire.CHUNK
    (address,) = struct.unpack("<Q", chunk[16:])
    assert wire.parse_outcome(lane.recv(48, socket.MSG_WAITALL)) == (code.OK, 0, -1, 0)
    expected = b"".join(one.remote[at : at + 16].tobytes() for at in (5000, 100, 70000))
    with Path("/proc/self/mem").open("rb") as memory:
        memory.seek(address)
        assert memory.read(48) == expected


def test_several_callers_at_once(gathering, code):
    gather = gathering(lanes=3)
    wanted = scattered()
    found = []
    threads = [threading.Thread(target=lambda: found.append(gather(wanted))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.code for each in found] == [code.OK] * 4
    assert (gather.one.local == gather.one.expected(wanted)).all()
