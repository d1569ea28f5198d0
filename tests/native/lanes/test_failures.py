"""Bad memory, vanishing caches, frozen and dead targets: typed ends, in time, quiet afterwards."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
SIZE = 8 << 20
KINDS = ["read", "write", "push"]


def lasting(link):
    """Work that takes far longer than a test waits before it interferes, even out of a cache."""
    return np.tile(np.array(link.whole(1 << 18), np.uint64), (1500, 1))


def begin(link, operation, **options):
    """Run `lasting` aside; when this returns, some of it has landed, and far from all."""
    at = 0 if operation == "read" else link.whole(1 << 18)[0][1]

    def first_bytes():
        if operation == "read":
            return link.local[:64].tobytes()
        return memory_of(link, at, 64).tobytes()

    before, deadline = first_bytes(), time.monotonic() + 10
    result = run_aside(lambda: getattr(link, operation)(lasting(link), **options))
    while first_bytes() == before:
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    return result


def run_aside(function):
    """Starts `function` on a thread; the returned callable waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()

    def result():
        thread.join(20)
        assert not thread.is_alive()
        return results[0]

    return result


def memory_of(link, offset=0, size=None):
    """The target's memory, or a part of it, in whichever process it is."""
    process = getattr(link, "process", None)
    path = Path("/proc/self/mem" if process is None else f"/proc/{process.pid}/mem")
    with path.open("rb", buffering=0) as memory:
        memory.seek(link.remote_address + offset)
        return np.frombuffer(memory.read(size or link.local.size), np.uint8)


def page_ranges(pages, other, count):
    """One descriptor per page; `pages` is the memory under test, `other` an ordinary array."""
    page = pages.page
    return [(i * page, pages.address + i * page - other, page) for i in range(count)]


def own_entry(link, pages):
    """Return an entry of the initiator over the memory under test."""
    return link.node.open_entry(
        np.array([pages.address], np.uint64), np.array([pages.size], np.uint64), True
    )


@pytest.mark.parametrize("operation", KINDS)
def test_unmapped_memory_of_the_target_is_a_remote_fault_at_its_descriptor(
    link, pages, code, operation
):
    one = link(lanes=1)
    one.attach_host()
    bad = pages(40)
    entry = one.open_entry(bad.bytes)
    ranges = [
        (local, remote % 2**64, length)
        for local, remote, length in page_ranges(bad, one.remote_address, 40)
    ]
    bad.unmap(23)
    outcome = getattr(one, operation)(ranges, entry=entry)
    assert (outcome.code, outcome.index) == (code.REMOTE_FAULT, 23)
    del ranges[23]
    assert getattr(one, operation)(ranges, entry=entry)[:3] == (code.OK, 0, -1)
    assert one.lanes.count() == 1


@pytest.mark.parametrize("operation", KINDS)
@pytest.mark.parametrize("side", ["local", "remote"])
def test_a_fault_is_at_its_short_descriptor(link, pages, code, operation, side):
    """Also where short ranges that follow one another travel as one."""
    one = link(lanes=1)
    one.attach_host()
    bad = pages(8)
    bad.bytes[:] = 1  # absent pages are left to their owner
    length, count = 256, 8 * bad.page // 256
    offset = bad.address - (one.local.ctypes.data if side == "local" else one.remote_address)
    ranges = []
    for i in range(count):
        at, other = (offset + i * length) % 2**64, ((i * 7919) % count) * length
        ranges.append((at, other, length) if side == "local" else (other, at, length))
    named = (
        {"local_ref": own_entry(one, bad)}
        if side == "local"
        else {"entry": one.open_entry(bad.bytes)}
    )
    assert getattr(one, operation)(ranges, **named)[:3] == (code.OK, 0, -1)
    bad.unmap(5)
    outcome = getattr(one, operation)(ranges, **named)
    fault = code.LOCAL_FAULT if side == "local" else code.REMOTE_FAULT
    assert (outcome.code, outcome.index) == (fault, 5 * bad.page // length)
    assert one.lanes.count() == 1


@pytest.mark.parametrize("operation", KINDS)
def test_a_failure_is_at_its_descriptor_of_the_whole_transfer(link, code, operation):
    """However many requests the transfer is divided into."""
    one = link(lanes=1)
    one.attach_host()
    count = 70_000
    ranges = [(i, i, 1) for i in range(count)] + [(0, one.remote.size, 1)]
    outcome = getattr(one, operation)(ranges)
    assert (outcome.code, outcome.index) == (code.DENIED, count)


@pytest.mark.parametrize("operation", KINDS)
@pytest.mark.parametrize("count", [3, 40])
def test_unmapped_own_memory_is_a_local_fault_at_its_descriptor(
    link, pages, code, operation, count
):
    one = link(lanes=1)
    one.attach_host()
    bad = pages(count)
    bad.bytes[:] = 1  # absent pages are left to their owner
    base = one.local.ctypes.data
    ranges = [
        ((bad.at(i) - base) % 2**64, i * bad.page, bad.page if i != 1 else 100)
        for i in range(count)
    ]
    own = own_entry(one, bad)
    bad.unmap(count - 1)
    outcome = getattr(one, operation)(ranges, local_ref=own)
    assert (outcome.code, outcome.index) == (code.LOCAL_FAULT, count - 1)
    assert getattr(one, operation)(ranges[:-1], local_ref=own)[:3] == (code.OK, 0, -1)
    assert one.lanes.count() == 1


@pytest.mark.parametrize("operation", KINDS)
def test_an_entry_of_the_target_closed_mid_stream_ends_it_and_nothing_more_lands(
    link, code, operation
):
    one = link(size=SIZE)
    one.attach_host()
    result = begin(one, operation)
    one.target.close_entry(*one.entry)
    after = one.remote.copy() if operation != "read" else None
    assert result().code == code.GONE
    if after is not None:
        assert (one.remote == after).all()
    assert one.ping() == code.OK
    assert one.lanes.count() == 2


def test_a_key_consumed_mid_stream_ends_its_read(link, code):
    one = link(size=SIZE)
    key = one.target.open_key()
    result = begin(one, "read", key=key)
    one.target.close_key(*key)
    assert result().code == code.GONE
    assert one.ping() == code.OK
    assert one.lanes.count() == 2


def test_a_key_consumed_during_its_only_request_ends_the_read(link, raw_lane, wire, code):
    """The request was checked before; what was sent since then does not count."""
    size = 64 << 20  # far more than two sockets hold
    one = link(size=size)
    key = one.target.open_key()
    frame = wire.request(wire.READ, [(one.remote_address, size)], entry=one.entry)
    lane = raw_lane(one)
    lane.sendall(frame[:56] + struct.pack("<QQ", *key) + frame[72:])
    lane.settimeout(None)  # so that MSG_WAITALL does wait
    lane.sock.recv(1, socket.MSG_PEEK)
    one.target.close_key(*key)
    while (part := lane.recv(1 << 30))[5] == wire.CHUNK:
        pass
    assert wire.parse_outcome(part).code == code.GONE


@pytest.mark.parametrize("operation", KINDS)
def test_an_own_entry_closed_mid_stream_ends_it_and_nothing_more_lands(link, code, operation):
    one = link(size=SIZE)
    one.attach_host()
    own = one.node.open_entry(
        np.array([one.local.ctypes.data], np.uint64), np.array([SIZE], np.uint64), True
    )
    result = begin(one, operation, local_ref=own)
    one.node.close_entry(*own)
    after = one.local.copy() if operation == "read" else None
    assert result().code == code.LOCAL_GONE
    if after is not None:
        assert (one.local == after).all()
    assert one.ping() == code.OK
    assert one.lanes.count() == 2


@pytest.mark.parametrize("operation", KINDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_target_that_dies_or_freezes_mid_transfer(remote_link, code, operation, number):
    one = remote_link(size=SIZE)
    one.attach_host()
    one.local[:] = 7
    began = time.monotonic()
    result = begin(one, operation, seconds=0.4)
    one.process.send_signal(number)
    expected = code.PEER_DEAD if number == signal.SIGKILL else code.TIMEOUT
    assert result().code == expected
    assert time.monotonic() - began < 1.0
    if number == signal.SIGSTOP:
        before = memory_of(one)
        own = one.local.copy()
        one.process.send_signal(signal.SIGCONT)
        assert one.ask("count", 5) >= 0
        time.sleep(0.05)
        assert (memory_of(one) == before).all()
        assert (one.local == own).all()


@pytest.mark.parametrize("operation", ["write", "push"])
@pytest.mark.parametrize("size", [4096, 8 << 20])
def test_a_frozen_target_applies_nothing_when_it_wakes(remote_link, code, operation, size):
    one = remote_link(size=8 << 20)
    one.attach_host()
    one.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert getattr(one, operation)([(0, 0, size)], seconds=0.1).code == code.TIMEOUT
    assert time.monotonic() - began < 0.5
    assert one.lanes.count() < 2  # a lane in the middle of an operation is of no use
    one.signal(signal.SIGCONT)
    assert one.ask("count", 5) == 8 << 20
    time.sleep(0.05)
    assert one.ask("count", 5) == 8 << 20


def test_cancelled_towards_a_frozen_target_applies_nothing_when_it_wakes(remote_link, code):
    one = remote_link(size=8 << 20)
    one.signal(signal.SIGSTOP)
    result = run_aside(lambda: one.write([(0, 0, 4096)]))
    time.sleep(0.05)
    began = time.monotonic()
    one.lanes.close()
    assert time.monotonic() - began < 0.5
    assert result().code == code.CANCELLED
    one.signal(signal.SIGCONT)
    assert one.ask("count", 5) == 8 << 20


def test_a_killed_idle_target_is_noticed_by_the_next_operation(remote_link, code):
    one = remote_link()
    assert one.ping() == code.OK
    one.process.kill()
    one.process.wait()
    assert one.read([(0, 0, 10)]).code == code.NO_LANE
    assert one.lanes.count() == 0


def test_idle_lanes_that_the_target_closed_are_pruned(link, code, eventually):
    one = link(lanes=3)
    assert one.lanes.prune() == 3
    one.server.drop_link(7)
    eventually(lambda: one.lanes.prune() == 0)
    assert one.lanes.count() == 0
    assert one.ping() == code.NO_LANE


def test_the_death_of_an_initiator_frees_its_lanes_at_the_target(link, eventually):
    one = link(lanes=3)
    one.lanes.close()
    eventually(lambda: one.server.link_lanes(7) == 0)


def test_a_push_ends_with_its_initiator(link, raw_lane, wire, eventually):
    """The target reads; only the closed connection tells it that nobody waits any more."""
    one = link(size=SIZE, lanes=0)
    one.attach_host()
    one.local[:] = 7
    work = [(one.remote_address, SIZE, 0)] * 10_000
    frame = wire.request(wire.PUSH, work, entry=one.entry)
    lane = raw_lane(one)
    lane.sendall(frame[:56] + struct.pack("<2Q", *one.local_entry) + frame[72:])
    eventually(lambda: one.remote[0] == 7)
    assert one.server.link_lanes(7) == 1
    lane.close()
    eventually(lambda: one.server.link_lanes(7) == 0, 3.0)


@pytest.mark.parametrize("operation", KINDS)
def test_drop_link_ends_its_operations_and_touches_memory_no_more(link, code, operation):
    one = link(size=SIZE)
    one.attach_host()
    result = begin(one, operation)
    one.server.drop_link(7)
    after = one.remote.copy()
    assert result().code == code.PEER_DEAD
    assert (one.remote == after).all()
    assert one.server.link_lanes(7) == 0
    one.server.drop_link(7)
    one.server.drop_link(8)


@pytest.mark.parametrize("operation", KINDS)
def test_close_ends_running_and_waiting_operations(link, code, operation):
    one = link(size=SIZE, lanes=1)
    one.attach_host()
    results = [begin(one, operation)]
    results += [run_aside(lambda: getattr(one, operation)(lasting(one))) for _ in range(2)]
    one.lanes.close()
    after = one.remote.copy()
    assert {result().code for result in results} == {code.CANCELLED}
    assert (one.remote == after).all()
    assert one.ping() == code.CANCELLED


def test_nothing_lands_once_close_has_returned(link, code):
    for _ in range(10):
        one = link(size=1 << 18, lanes=1)
        one.remote[:] = 7
        one.local[:] = 0
        result = run_aside(lambda one=one: one.read([(0, 0, 1 << 18)] * 6000))
        while not one.local[0]:
            time.sleep(0.0005)
        one.lanes.close()
        one.local[:] = 0
        assert result().code == code.CANCELLED
        assert not one.local.any()


def test_operations_of_a_closed_instance_say_so(link, code):
    one = link()
    one.node.close()
    assert one.ping() == code.CLOSED
    assert one.read([(0, 0, 1)]).code == code.CLOSED


def test_a_target_whose_instance_is_closed_serves_nothing(link, code):
    one = link()
    one.target.close()
    assert one.read([(0, 0, 1)]).code in {code.PEER_DEAD, code.NO_LANE}


def test_waiting_for_a_free_lane_ends_by_the_deadline(remote_link, code):
    one = remote_link(lanes=1)
    one.signal(signal.SIGSTOP)
    first = run_aside(lambda: one.ping(0.5))
    time.sleep(0.05)
    began = time.monotonic()
    assert one.ping(0.1) == code.TIMEOUT
    assert time.monotonic() - began < 0.3
    assert first() == code.TIMEOUT
