"""A peer's notice of a fault is a reason to look, and looking is limited."""

import threading
import time
from types import SimpleNamespace

import pytest

from llm_datadist._engine.link.messages import MAX_RANGES, Faulted
from llm_datadist._engine.memory.fault_notices import MAX_BYTES, MAX_WAITING, FaultNotices
from llm_datadist._plan.layout import Layout, Piece

ENTRY = (7, 101)
BLOCK, BLOCKS = 4096, 16
START = 1 << 20
LINK = SimpleNamespace(cluster_id=2)
OTHER = SimpleNamespace(cluster_id=3)


def a_cache(*, device=None, blocks=BLOCKS):
    return SimpleNamespace(device=device, layout=Layout.of([START], blocks * BLOCK, blocks))


class Owner:
    """Own memory in which some addresses cannot be read, and what has been found."""

    def __init__(self, cache=None, bad=()):
        self.caches = {ENTRY: cache or a_cache()}
        self.bad = set(bad)
        self.looked = []
        self.found = []
        self.now_ns = 10**12
        self.gate = threading.Event()
        self.gate.set()
        self.notices = FaultNotices(self, self.look, self.note, lambda: self.now_ns)

    def accessible_at(self, entry):
        return self.caches.get(entry)

    def look(self, addresses, sizes, deadline_ns):
        self.gate.wait()
        self.looked += addresses
        return [addr not in self.bad for addr in addresses]

    def note(self, link, cache, message, bad):
        self.found.append((link, message, bad))

    def settle(self):
        assert self.notices._workers.wait_idle(5)

    def hears(self, *ranges, link=LINK, entry=ENTRY):
        self.notices.receive(link, Faulted(entry, ranges))


def test_only_what_the_owner_cannot_read_is_found():
    owner = Owner(bad=[START + 2 * BLOCK])
    owner.hears((START + BLOCK, 3 * BLOCK))
    owner.settle()
    assert owner.looked == [START + BLOCK * number for number in (1, 2, 3)]
    ((link, _, bad),) = owner.found
    assert link is LINK
    assert bad == [Piece(0, 2, START + 2 * BLOCK, BLOCK)]


def test_a_notice_that_is_wrong_finds_nothing():
    owner = Owner()
    owner.hears((START, BLOCK), (0, 8), (2**64 - 1, 1 << 20), (START, 0))
    owner.settle()
    assert owner.looked == [START]
    assert [bad for _, _, bad in owner.found] == [[]]


@pytest.mark.parametrize("entry", [(8, 101), (7, 103), (0, 0)])
def test_another_life_of_the_cache_or_none_is_left_alone(entry):
    owner = Owner(bad=[START])
    owner.hears((START, BLOCK), entry=entry)
    owner.settle()
    assert owner.looked == owner.found == []


def test_memory_of_an_accelerator_is_not_marked_on_a_peers_word():
    owner = Owner(a_cache(device=0), bad=[START])
    owner.hears((START, BLOCK))
    owner.settle()
    assert owner.looked == owner.found == []


@pytest.mark.expects_log("notices of faults by cluster 2 were dropped")
def test_a_peer_has_so_many_ranges_looked_at_in_a_second(caplog):
    owner = Owner()
    owner.hears(*[(START, 1)] * MAX_RANGES)
    owner.settle()
    assert len(owner.looked) == MAX_RANGES
    for _ in range(100):
        owner.hears((START, 1))
    owner.settle()
    assert len(owner.looked) == MAX_RANGES
    assert len(caplog.records) == 1, "one line a minute"
    owner.hears((START, 1), link=OTHER)
    owner.settle()
    assert len(owner.looked) == MAX_RANGES + 1, "the other peer has its own share"
    owner.now_ns += 1_000_000_000
    owner.hears((START, 1))
    owner.settle()
    assert len(owner.looked) == MAX_RANGES + 2


@pytest.mark.expects_log("notices of faults by cluster 2 were dropped")
def test_a_peer_has_so_many_bytes_looked_at_in_a_second(caplog):
    owner = Owner()
    owner.hears((START, MAX_BYTES))
    owner.settle()
    assert len(owner.looked) == BLOCKS
    owner.hears((START, 1))
    owner.settle()
    assert len(owner.looked) == BLOCKS
    owner.now_ns += 61 * 1_000_000_000
    owner.hears((START, MAX_BYTES + 1))
    assert [record.args[0] for record in caplog.records] == [1, 1]


def test_one_range_of_very_many_blocks_is_a_bounded_look():
    owner = Owner(a_cache(blocks=1 << 17))
    owner.hears((START, BLOCK << 17))
    owner.settle()
    assert len(owner.looked) == MAX_RANGES


@pytest.mark.expects_log("notices of faults by cluster . were dropped")
def test_memory_that_never_answers_keeps_one_thread_and_nobody_else():
    """Further notices wait, or are dropped; closing does not wait."""
    owner = Owner()
    owner.gate.clear()
    threads = threading.active_count()
    began = time.monotonic()
    for number in range(10 * MAX_WAITING):
        owner.hears((START, 1), link=SimpleNamespace(cluster_id=1 + number % 9))
    assert threading.active_count() == threads + 1
    owner.notices.close()
    owner.hears((START, 1))
    assert time.monotonic() - began < 2
    owner.gate.set()
    owner.settle()
    assert len(owner.looked) <= 1
    assert not owner.found[1:]


def test_what_the_deadline_leaves_out_is_not_taken_as_readable():
    owner = Owner()
    owner.notices._probe = lambda addresses, sizes, deadline_ns: [True, False]
    owner.hears((START, 4 * BLOCK))
    owner.settle()
    assert [piece.unit_index for piece in owner.found[0][2]] == [1]
    owner.notices._probe = lambda addresses, sizes, deadline_ns: [True]
    owner.hears((START, 4 * BLOCK))
    owner.settle()
    assert len(owner.found) == 1
