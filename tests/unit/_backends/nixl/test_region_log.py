"""The log of regions: what an owner writes is what a peer finds."""

import ctypes
import random

import msgspec
import numpy as np
import pytest

from llm_datadist._backends.nixl import region_log, region_records, remote_regions
from llm_datadist._backends.nixl.region_log import RegionLog
from llm_datadist._backends.nixl.region_records import (
    FRAME,
    HEADER_BYTES,
    RegionAdded,
    framed,
    joined,
    log_key,
    mac_of,
    parse_header,
    words_bytes,
)
from llm_datadist._backends.nixl.remote_regions import RemoteRegions
from llm_datadist.testing.in_memory_node import InMemoryNode

KEY = bytes(32)


class Node(InMemoryNode):
    def open_entry(self, addresses, sizes, accessible, device=None):
        return super().open_entry(np.array(addresses), np.array(sizes), accessible, device)


def u64(*values):
    return np.array(values, np.uint64)


def region(number, *starts, size=100, kind="DRAM", blob=b"x"):
    sizes = np.full(len(starts), size, np.uint64)
    return RegionAdded(number, kind, 10, 0, words_bytes(u64(*starts)), words_bytes(sizes), blob)


@pytest.fixture
def log():
    made = RegionLog(Node(), KEY)
    yield made
    made.close()


def test_a_closed_log_is_unmapped_and_ignores_records():
    made = RegionLog(Node(), KEY)
    made.add(region(1, 4096))
    made.close()
    assert made._memory.closed
    made.remove(1)
    made.add(region(2, 4096))
    made.close()


def take(known, era, data):
    news = known.read(era, data)
    known.take(news)
    return news.added


def look(log, known):
    """Read what is new, as a peer does; return what was added."""
    era, tail = parse_header(ctypes.string_at(log.address, HEADER_BYTES))
    begin = known.tail if era == known.era else 0
    return take(known, era, ctypes.string_at(log.address + HEADER_BYTES + begin, tail - begin))


def test_only_what_is_new_is_read(log):
    known = RemoteRegions(KEY)
    log.add(region(1, 1000, 2000))
    assert [each.region_id for each in look(log, known)] == [1]
    log.add(region(2, 5000))
    assert [each.region_id for each in look(log, known)] == [2]
    assert look(log, known) == []
    assert known.locate(u64(1000, 2050), u64(100, 50)).region_id == 1
    assert known.locate(u64(1000, 5000), u64(1, 1)) is True
    log.remove(1)
    look(log, known)
    assert known.locate(u64(1000), u64(1)) is False
    assert known.locate(u64(5000), u64(100)).region_id == 2


@pytest.mark.parametrize("where", [(999, 1), (1000, 101), (1100, 1), (2**64 - 50, 100)])
def test_what_leaves_a_region_is_not_found(log, where):
    known = RemoteRegions(KEY)
    log.add(region(1, 1000))
    look(log, known)
    assert known.locate(u64(where[0]), u64(where[1])) is False


def test_ranges_that_touch_become_one():
    begins, sizes = joined(u64(300, 100, 200, 500), u64(100, 100, 100, 7))
    assert (list(begins), list(sizes)) == ([100, 500], [300, 7])
    begins, sizes = joined(u64(100, 150), u64(100, 100))  # these overlap
    assert (list(begins), list(sizes)) == ([100, 150], [100, 100])


def test_kinds_are_not_mixed(log):
    known = RemoteRegions(KEY)
    log.add(region(1, 1000))
    log.add(region(2, 5000, kind="VRAM"))
    look(log, known)
    assert known.locate(u64(1000, 5000), u64(1, 1)) is False


def test_a_range_is_forgotten_with_its_region(log):
    known = RemoteRegions(KEY)
    log.add(region(1, 1000, 9000))
    log.add(region(2, 5000))
    look(log, known)
    assert known.forget(9050, 1) == [1]
    assert known.forget(900, 100) == []
    assert known.locate(u64(1000), u64(1)) is False


def test_a_full_log_is_written_anew(log, monkeypatch):
    for module in (region_log, region_records):
        monkeypatch.setattr(module, "LOG_BYTES", 4096)
    known = RemoteRegions(KEY)
    chance, live = random.Random(1), {}
    for number in range(200):
        live[number] = 1000 * (number + 1)
        log.add(region(number, live[number], blob=bytes(300)))
        if len(live) > 5:
            gone = chance.choice(list(live))
            del live[gone]
            log.remove(gone)
        look(log, known)
        assert set(known.known) == set(live)
        assert all(known.locate(u64(start), u64(100)) for start in live.values())
    assert known.era > 1


def frames(*records, era=1, key=KEY):
    """What an owner writes."""
    data = b""
    for record in records:
        data += framed(record, key, era, len(data))
    return data


def test_a_torn_record_waits():
    known = RemoteRegions(KEY)
    whole = frames(region(1, 1000), region(2, 2000))
    torn = whole[:-3] + bytes(3)
    assert [each.region_id for each in take(known, 1, torn)] == [1]
    assert [each.region_id for each in take(known, 1, whole[known.tail :])] == [2]


def test_no_byte_of_the_log_can_be_changed_on_the_way():
    whole = frames(region(1, 1000))
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        assert take(RemoteRegions(KEY), 1, bytes(changed)) == []
    assert len(take(RemoteRegions(KEY), 1, whole)) == 1


def test_a_record_is_worth_nothing_elsewhere():
    """Not in another era, at another place of the log, or in another log."""
    one, two = region(1, 1000), region(2, 2000)
    first = frames(one)
    assert take(RemoteRegions(KEY), 2, first) == []
    assert take(RemoteRegions(KEY), 1, frames(one, two)[len(first) :]) == []
    for key in (
        log_key(b"a", bytes(16)),
        log_key(b"b", bytes(16)),
        log_key(b"a", bytes(15) + b"1"),
    ):
        assert (key == log_key(b"a", bytes(16))) == (
            len(take(RemoteRegions(log_key(b"a", bytes(16))), 1, frames(one, key=key))) == 1
        )


#: By the order of the fields: what no owner writes there. None: a field that is left out.
WRONG_TYPES = [None, True, 1.5, float("nan"), "text", [], {}, [1, 2]]
ODD = {
    "region_id": [-1, 2**63, 2**64 - 1],
    "kind": ["", "DRAMA", b"DRAM", 0, "x" * 1000],
    "unit_bytes": [-1, 2**46 + 1, 2**64 - 1],
    "device_id": [-1, 2**16, 2**64 - 1],
    "addresses": [b"", b"1234567", bytes(16), b"\xff" * 8, bytes(8 * (2**16 + 1))],
    "sizes": [b"", b"1234567", bytes(16), b"\xff" * 8, bytes(8 * (2**16 + 1))],
    "metadata": [b""],
}
CASES = [
    (at, value)
    for at, name in enumerate(ODD)
    for value in ODD[name]
    + [each for each in WRONG_TYPES if not (name == "kind" and each == "text")]
]


@pytest.mark.parametrize(("at", "value"), CASES, ids=lambda each: f"{each!r:.20}")
def test_odd_values_are_no_regions(at, value):
    """They are passed over; what follows counts."""
    good = msgspec.to_builtins(region(1, 1000), builtin_types=(bytes,))
    odd = list(good)
    odd[1 + at] = value  # behind the tag
    data = b""
    for record in (odd, list(good)):
        body = msgspec.msgpack.encode(record)
        data += FRAME.pack(len(body), mac_of(KEY, 1, len(data), body)) + body
    known = RemoteRegions(KEY)
    assert [each.region_id for each in take(known, 1, data)] == [1]
    assert known.locate(u64(1000), u64(100)).region_id == 1


def test_a_peer_fills_no_memory_with_regions(monkeypatch):
    monkeypatch.setattr(remote_regions, "_MAX_REGIONS", 3)
    known = RemoteRegions(KEY)
    take(known, 1, frames(*(region(number, 1000 * number) for number in range(1, 9))))
    assert set(known.known) == {1, 2, 3}


@pytest.mark.parametrize(("address", "size"), [(0, 2**64 - 1), (2**64 - 1, 2**64 - 1)])
def test_odd_ranges_can_be_forgotten(address, size):
    known = RemoteRegions(KEY)
    take(known, 1, frames(region(1, 1000)))
    assert known.forget(address, size) == ([1] if address == 0 else [])
