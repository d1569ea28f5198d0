"""Bytes over lanes: reads, writes, pushes, and what they refuse."""

from __future__ import annotations

import concurrent.futures
import errno

import numpy as np
import pytest

BLOCKS = [(0, 4096, 100), (300, 0, 1), (5000, 8192, 4096)]


def test_reads_deliver_the_ranges_and_touch_nothing_else(link, pair, code):
    one = link(pair=pair)
    outcome = one.read(BLOCKS)
    assert outcome == (code.OK, 0, -1, 4197)
    assert (one.local == one.expected(BLOCKS)).all()


@pytest.mark.parametrize("block", [1 << 20, 1 << 16, 1 << 12, 4099])
@pytest.mark.parametrize("lanes", [1, 3])
def test_large_reads_are_striped_over_the_lanes(link, code, block, lanes):
    one = link(size=(8 << 20) + 4099, lanes=lanes)
    ranges = one.whole(block)
    outcome = one.read(ranges)
    assert outcome == (code.OK, 0, -1, sum(length for *_, length in ranges))
    assert (one.local == one.expected(ranges)).all()


@pytest.mark.parametrize("size", [1, 40_000, 1 << 16, (1 << 16) + 1, 9_000_001])
def test_writes_are_applied_when_they_return(link, pair, code, size):
    one = link(size=size + 10, pair=pair)
    before = one.remote.copy()
    one.local[:] = np.random.default_rng(3).integers(0, 255, one.local.size, dtype=np.uint8)
    assert one.write([(5, 3, size)]) == (code.OK, 0, -1, size)
    assert (one.remote[3 : size + 3] == one.local[5 : size + 5]).all()
    assert (one.remote[:3] == before[:3]).all()
    assert (one.remote[size + 3 :] == before[size + 3 :]).all()


@pytest.mark.parametrize("size", [100, 9_000_001])
def test_pushes_are_carried_out_by_the_target(link, code, size):
    one = link(size=size)
    one.local[:] = 3
    assert one.push([(0, 0, size)])[0] == code.SYSTEM  # no way to read us yet
    one.attach_host()
    assert one.push([(0, 0, size)]) == (code.OK, 0, -1, size)
    assert (one.remote == 3).all()
    assert one.server.statistics()["pushed_bytes"] == size


@pytest.mark.parametrize("operation", ["read", "write", "push"])
def test_112_000_descriptors_in_one_call(link, code, operation):
    count, stride = 112_000, 48
    one = link(size=count * stride)
    one.attach_host()
    ranges = [(i * stride, ((i * 7919) % count) * stride, stride - 1) for i in range(count)]
    one.local[:] = 0
    before = one.remote.copy()
    outcome = getattr(one, operation)(ranges)
    assert outcome == (code.OK, 0, -1, count * (stride - 1))
    if operation == "read":
        assert (one.local == one.expected(ranges)).all()
    else:
        mask = (np.arange(one.local.size) % stride) < stride - 1
        assert (one.remote[mask] == 0).all()
        assert (one.remote[~mask] == before[~mask]).all()


def test_empty_descriptors_are_skipped_and_do_not_count_against_any_cap(link, code):
    one = link()
    ranges = [(0, 0, 0)] * 100_000 + [(0, 5, 10)] + [(0, 0, 0)] * 3 + [(20, 5, 1 << 30)]
    outcome = one.read(ranges)
    assert (outcome.code, outcome.index) == (code.DENIED, 100_004)
    assert one.read(ranges[:-1])[:3] == (code.OK, 0, -1)
    assert (one.local[:10] == one.remote[5:15]).all()


def test_no_descriptors_at_all_still_asks_whether_the_cache_is_there(link, code):
    one = link()
    assert one.read([])[0] == code.OK
    assert one.write([(0, 0, 0)])[0] == code.OK
    one.target.close_entry(*one.entry)
    assert one.read([])[0] == code.GONE
    assert one.write([(0, 0, 0)])[0] == code.GONE


@pytest.mark.parametrize("operation", ["read", "write", "push"])
def test_ranges_outside_the_entry_are_denied_by_index_and_the_lane_stays(link, code, operation):
    one = link(lanes=1)
    one.attach_host()
    for bad in [(1 << 20, 1), ((1 << 20) - 1, 2), (0, (1 << 20) + 1), (1 << 40, 5), (0, 1 << 43)]:
        outcome = getattr(one, operation)([(0, 0, 8), (8, *bad)])
        assert (outcome.code, outcome.index) == (code.DENIED, 1), bad
    outside = [(0, -1 % 2**64, 1)]
    assert getattr(one, operation)(outside)[0] == code.DENIED
    assert one.ping() == code.OK
    assert one.lanes.count() == 1
    assert one.server.statistics()["protocol_errors"] == 0


def test_ranges_that_wrap_are_refused_before_anything_is_sent(link):
    one = link()
    with pytest.raises(ValueError, match="wraps"):
        one.read([(0, 2**63, 2**63)])
    with pytest.raises(ValueError, match="TiB"):
        one.write([(0, 0, 2**45)])


@pytest.mark.parametrize("operation", ["read", "write", "push"])
def test_conditions_are_checked_by_the_target(link, code, operation):
    one = link()
    one.attach_host()
    run = getattr(one, operation)
    hidden = one.open_entry(one.remote, accessible=False)
    assert run(BLOCKS, entry=hidden)[0] == code.DENIED
    assert run(BLOCKS, entry=(one.entry[0], one.entry[1] + 2))[0] == code.GONE
    assert run(BLOCKS, entry=(500, 1))[0] == code.GONE
    assert run(BLOCKS, entry=(0, 1))[0] == code.GONE
    assert run(BLOCKS, entry=(2**64 - 1, 1))[0] == code.GONE
    one.target.append(b"record")
    assert run(BLOCKS, version=one.target.version())[0] == code.OK
    assert run(BLOCKS, version=one.target.version() + 1)[0] == code.STALE
    assert run(BLOCKS, local_ref=(44, 1))[0] == code.LOCAL_GONE
    value = one.target.reopen_entry(*one.entry)
    assert run(BLOCKS)[0] == code.GONE
    assert run(BLOCKS, entry=(one.entry[0], value))[0] == code.OK
    one.target.close_entry(one.entry[0], value)
    assert run(BLOCKS, entry=(one.entry[0], value))[0] == code.GONE


@pytest.mark.parametrize("operation", ["read", "write", "push"])
def test_memory_of_an_accelerator_is_out_of_reach_without_its_driver(link, code, operation):
    one = link()
    one.attach_host()
    entry = one.open_entry(one.remote, device=0)
    before = one.remote.copy(), one.local.copy()
    outcome = getattr(one, operation)(BLOCKS, entry=entry)
    assert outcome[:2] == (code.SYSTEM, errno.ENODEV)
    assert (one.remote == before[0]).all()
    assert (one.local == before[1]).all()
    assert one.read([], entry=entry)[0] == code.OK


def test_a_read_needs_its_key_alive(link, code):
    one = link()
    key = one.target.open_key()
    assert one.read(BLOCKS, key=key)[0] == code.OK
    one.target.close_key(*key)
    assert one.read(BLOCKS, key=key)[0] == code.GONE
    assert one.read(BLOCKS, key=(key[0], key[1] + 1))[0] == code.GONE  # what a dead guard shows


@pytest.mark.parametrize("operation", ["read", "write", "push"])
def test_raw_addresses_reach_accessible_entries_only(link, code, any_entry, operation):
    one = link()
    one.attach_host()
    other, hidden = np.zeros(4096, np.uint8), np.zeros(4096, np.uint8)
    one.open_entry(other)
    one.open_entry(hidden, accessible=False)
    run = getattr(one, operation)
    remote = [array.ctypes.data - one.remote_address for array in (other, hidden)]
    mixed = [(i * 64, remote[0] + i * 64 if i % 2 else i * 64, 64) for i in range(60)]
    mixed = [(local, far % 2**64, length) for local, far, length in mixed]
    one.local[:] = 9
    assert run(mixed, entry=any_entry) == (code.OK, 0, -1, 60 * 64)
    if operation == "read":
        assert (one.local[64:128] == 0).all()
        assert (one.local[:64] == one.remote[:64]).all()
    else:
        assert (other[64:128] == 9).all()
        assert (one.remote[128:192] == 9).all()
        assert (other[:64] == 0).all()
    outcome = run([*mixed, (0, remote[1] % 2**64, 1)], entry=any_entry)
    assert (outcome.code, outcome.index) == (code.DENIED, 60)
    assert (hidden == 0).all()


def test_raw_addresses_reach_what_is_registered_now(link, code, any_entry):
    one = link()
    array = np.full(4096, 7, np.uint8)
    far = (array.ctypes.data - one.remote_address) % 2**64
    inside, beyond = [(0, far, 4096)], [(0, far + 4000, 97)]

    def read(ranges):
        return one.read(ranges, entry=any_entry).code

    first, second = one.open_entry(array), one.open_entry(array)
    assert read(inside) == code.OK
    assert read(beyond) == code.DENIED
    assert one.target.close_entry(*first)
    assert read(inside) == code.OK, "another entry has it, too"
    value = one.target.reopen_entry(*second)
    assert read(inside) == code.OK, "it was remapped"
    assert one.target.close_entry(second[0], value)
    assert read(inside) == code.DENIED


def test_the_rest_of_a_link_version_log_consume_ping(link, code):
    one = link()
    deadline = 2**62
    one.target.append(b"abc" * 2000)
    outcome, version = one.lanes.version(deadline)
    assert (outcome[0], version) == (code.OK, one.target.version())
    outcome, log = one.lanes.read_log(3, 5997, deadline)
    assert (outcome[0], log) == (code.OK, b"abc" * 1999)
    outcome, log = one.lanes.read_log(0, 1 << 40, deadline)
    assert (outcome[0], len(log)) == (code.OK, 1 << 16)  # the log's capacity
    outcome, log = one.lanes.read_log(2**63, 10, deadline)
    assert (outcome[0], log) == (code.OK, b"")
    key = one.target.open_key()
    assert one.lanes.consume(*key, deadline)[0] == code.OK
    assert one.lanes.consume(*key, deadline)[0] == code.GONE
    assert one.lanes.consume(*one.entry, deadline)[0] == code.GONE  # no key
    assert one.target.consumed() == [key]
    assert one.ping() == code.OK


def test_many_threads_share_a_link(link, code):
    one = link(size=1 << 22, lanes=2)
    block = 1 << 19

    def work(i):
        part = [(i * block, i * block, block)]
        for _ in range(20):
            assert one.read(part)[0] == code.OK
            assert one.write(part)[0] == code.OK
            assert one.ping() == code.OK
        return True

    before = one.remote.copy()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert (one.local == before).all()
    assert (one.remote == before).all()
    assert one.lanes.count() == 2


@pytest.mark.parametrize("operation", ["read", "write"])
def test_striped_transfers_of_many_threads_share_the_lanes(link, code, operation):
    """More threads than lanes, and each transfer would like to have all of them."""
    share, block, threads = 8 << 20, 1 << 16, 5
    one = link(size=threads * share, lanes=3)
    blocks = share // block

    def work(i):
        order = np.random.default_rng(i).permutation(blocks)
        ranges = [
            (i * share + k * block, i * share + int(order[k]) * block, block) for k in range(blocks)
        ]
        for _ in range(5):
            assert getattr(one, operation)(ranges) == (code.OK, 0, -1, share)
        return ranges

    one.local[:] = np.random.default_rng(4).integers(0, 255, one.local.size, dtype=np.uint8)
    source, target = (one.remote, one.local) if operation == "read" else (one.local, one.remote)
    before = source.copy()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for local, remote, length in (
            each for part in pool.map(work, range(threads)) for each in part
        ):
            at, of = (local, remote) if operation == "read" else (remote, local)
            assert (target[at : at + length] == source[of : of + length]).all()
    assert (source == before).all()
    assert one.lanes.count() == 3
