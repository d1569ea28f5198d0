"""The log of regions: what an owner writes is what a peer finds."""

import ctypes
import random

import numpy as np
import pytest

from llm_datadist._backends.nixl import regions
from llm_datadist._backends.nixl.regions import (
    HEADER_BYTES,
    Added,
    RegionLog,
    RemoteRegions,
    joined,
    parse_header,
    words_bytes,
)
from llm_datadist.testing.in_memory_node import InMemoryNode


class Node(InMemoryNode):
    def open_entry(self, addresses, sizes, accessible, device=None):
        return super().open_entry(np.array(addresses), np.array(sizes), accessible, device)


def u64(*values):
    return np.array(values, np.uint64)


def region(number, *starts, size=100, kind="DRAM", blob=b"x"):
    sizes = np.full(len(starts), size, np.uint64)
    return Added(number, kind, 10, 0, words_bytes(u64(*starts)), words_bytes(sizes), blob)


@pytest.fixture
def log():
    made = RegionLog(Node())
    yield made
    made.close()


def look(log, known):
    """Read what is new, as a peer does; return what was added."""
    era, tail = parse_header(ctypes.string_at(log.address, HEADER_BYTES))
    begin = known.tail if era == known.era else 0
    return known.take(era, ctypes.string_at(log.address + HEADER_BYTES + begin, tail - begin))


def test_only_what_is_new_is_read(log):
    known = RemoteRegions()
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
    known = RemoteRegions()
    log.add(region(1, 1000))
    look(log, known)
    assert known.locate(u64(where[0]), u64(where[1])) is False


def test_ranges_that_touch_become_one():
    begins, sizes = joined(u64(300, 100, 200, 500), u64(100, 100, 100, 7))
    assert (list(begins), list(sizes)) == ([100, 500], [300, 7])
    begins, sizes = joined(u64(100, 150), u64(100, 100))  # these overlap
    assert (list(begins), list(sizes)) == ([100, 150], [100, 100])


def test_kinds_are_not_mixed(log):
    known = RemoteRegions()
    log.add(region(1, 1000))
    log.add(region(2, 5000, kind="VRAM"))
    look(log, known)
    assert known.locate(u64(1000, 5000), u64(1, 1)) is False


def test_a_range_is_forgotten_with_its_region(log):
    known = RemoteRegions()
    log.add(region(1, 1000, 9000))
    log.add(region(2, 5000))
    look(log, known)
    assert known.forget(9050, 1) == [1]
    assert known.forget(900, 100) == []
    assert known.locate(u64(1000), u64(1)) is False


def test_a_full_log_is_written_anew(log, monkeypatch):
    monkeypatch.setattr(regions, "_LOG_BYTES", 4096)
    known = RemoteRegions()
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


def test_a_torn_record_waits():
    known = RemoteRegions()
    whole = regions._frame(region(1, 1000)) + regions._frame(region(2, 2000))
    torn = whole[:-3] + bytes(3)
    assert [each.region_id for each in known.take(1, torn)] == [1]
    assert [each.region_id for each in known.take(1, whole[known.tail :])] == [2]
