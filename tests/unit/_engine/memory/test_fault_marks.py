"""Marks on local memory, what peers are sent of them, and marks of peers."""

import threading
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from llm_datadist import LLMException
from llm_datadist._backends.outcomes import ANY_ENTRY
from llm_datadist._engine.link.messages import MAX_RANGES, Faulted, Marked
from llm_datadist._engine.link.peer_fault_marks import PeerFaultMarks
from llm_datadist._engine.memory.containment import BadRange
from llm_datadist._engine.memory.fault_marks import FaultMarks, described, fault_at, fault_of
from llm_datadist._engine.memory.fault_notices import MAX_BYTES
from llm_datadist._errors import LLMStatusCode, fail
from llm_datadist._plan import Layout, Plan
from llm_datadist._registry.ranges import MemoryRanges

S = LLMStatusCode
OWN, PEER = 1, 2
UNIT, BLOCKS, START = 64, 16, 0x10000
ENTRY = (3, 31)


class Cache(SimpleNamespace):
    def overlaps(self, addr, size):
        return any(self.layout.locate(addr, size))


def a_cache(cache_id=4, *, accessible=True, is_blocks=True, start=START):
    return Cache(
        cache_id=cache_id,
        ref=ENTRY,
        accessible=accessible,
        is_blocks=is_blocks,
        layout=Layout.of([start], BLOCKS * UNIT, BLOCKS),
        faulted=(),
    )


class Links:
    """Links whose peers get notices; those in `broken` cannot be reached."""

    def __init__(self, *cluster_ids):
        self.broken = set()
        self.sent = []
        self.all = [
            SimpleNamespace(
                cluster_id=cluster_id,
                data=SimpleNamespace(
                    marks=PeerFaultMarks(), peer=SimpleNamespace(cluster_id=cluster_id)
                ),
            )
            for cluster_id in cluster_ids
        ]

    def links(self):
        return self.all

    def notify(self, link, body):
        if link.cluster_id in self.broken:
            raise fail(S.LLM_LINK_FAILED, "notify", "gone", "link again")
        self.sent.append((link.cluster_id, msgspec.msgpack.decode(body, type=Marked | Faulted)))


class Owner:
    def __init__(self, *caches):
        self.cluster_id = OWN
        self.caches = caches or (a_cache(),)
        self.cache = self.caches[0]
        live = {cache.cache_id: cache for cache in self.caches}
        self.registry = SimpleNamespace(ranges=MemoryRanges(live, threading.Lock()))
        self.links = Links(PEER, 3)
        self.link = self.links.all[0]
        self.node = SimpleNamespace(probe=None)
        self.marks = FaultMarks(self)

    def fault(self, block):
        piece = next(iter(self.cache.layout.locate(START + block * UNIT, UNIT)))
        return fault_of(OWN, self.cache, piece)


def a_plan(*blocks):
    local = np.array([START + block * UNIT for block in blocks], np.uint64)
    return Plan.of(local, local + np.uint64(1 << 20), np.full(len(blocks), UNIT, np.uint64))


def test_marked_memory_is_sent_to_all_peers_and_refused():
    owner = Owner()
    owner.links.broken.add(3)
    owner.marks.mark(owner.cache, ENTRY, [owner.fault(2)])
    marked = Marked(ENTRY, ((START + 2 * UNIT, UNIT),))
    assert owner.links.sent == [(PEER, marked)]
    assert owner.marks.ranges() == (owner.fault(2),)
    owner.marks.check_local("push_blocks", owner.cache, a_plan(1, 3), PEER, local=True)
    owner.marks.check_local("push_blocks", owner.cache, a_plan(2), PEER, local=False)
    with pytest.raises(LLMException, match="block 2") as raised:
        owner.marks.check_local("push_blocks", owner.cache, a_plan(1, 2), PEER, local=True)
    assert raised.value.status_code is S.LLM_DEVICE_MEM_ERROR
    assert raised.value.faults == (owner.fault(2),)


def test_a_transfer_of_any_part_of_marked_memory_is_refused():
    owner = Owner()
    owner.marks.mark(owner.cache, ENTRY, [owner.fault(2)])
    first, last = START + 2 * UNIT, START + 3 * UNIT - 1
    touching = [(first - UNIT, UNIT + 1), (first - UNIT, 3 * UNIT), (first, 1), (last, UNIT)]
    beside = [(first - UNIT, UNIT), (last + 1, UNIT), (first, 0)]
    for addr, size in touching + beside:
        start = np.array([addr], np.uint64)
        plan = Plan.of(start, start, np.array([size], np.uint64))
        if (addr, size) in beside:
            owner.marks.check_local("push_blocks", owner.cache, plan, PEER, local=True)
            continue
        with pytest.raises(LLMException, match="block 2"):
            owner.marks.check_local("push_blocks", owner.cache, plan, PEER, local=True)


def test_what_is_marked_already_is_not_sent_again():
    owner = Owner()
    for _ in range(2):
        owner.marks.mark(owner.cache, ENTRY, [owner.fault(2)])
    assert len(owner.links.sent) == 2  # once to each peer


def test_memory_before_a_remap_leaves_no_mark():
    owner = Owner()
    owner.marks.mark(owner.cache, (3, 29), [owner.fault(2)])
    assert owner.marks.ranges() == ()
    assert owner.links.sent == []


def test_peers_are_sent_marks_of_accessible_caches_and_no_more_than_a_message_holds():
    hidden = a_cache(5, accessible=False, start=1 << 20)
    many = a_cache(6, start=1 << 30)
    many.layout = Layout.of([1 << 30], 2 * MAX_RANGES * UNIT, 2 * MAX_RANGES)
    owner = Owner(hidden, many)
    for cache in (hidden, many):
        owner.registry.ranges.mark_faulted(cache.layout.starts[0], cache.layout.tensor_bytes)
    (message,) = owner.marks.for_peers()
    assert message.ranges[0] == (1 << 30, UNIT)
    assert len(message.ranges) == MAX_RANGES - BLOCKS
    owner.marks.clear(0, 1 << 40)


def test_faults_of_a_peer_are_remembered_and_reported():
    owner = Owner()
    fault = owner.fault(1)
    owner.marks.report_to_owner(owner.link, ENTRY, [fault])
    assert owner.links.sent == [(PEER, Faulted(ENTRY, ((fault.addr, UNIT),)))]
    assert owner.link.data.marks
    owner.links.broken.add(PEER)
    owner.marks.report_to_owner(owner.link, ENTRY, [fault])  # nothing is raised
    owner.links.broken.clear()
    owner.marks.report_to_owner(owner.link, ANY_ENTRY, [fault])  # bare addresses have no owner
    owner.marks.report_to_owner(owner.link, ENTRY, [])
    assert len(owner.links.sent) == 1


def test_a_report_has_as_many_ranges_as_the_owner_probes():
    owner = Owner()
    huge = fault_at(PEER, None, BadRange(False, 1, MAX_BYTES, None))
    owner.marks.report_to_owner(owner.link, ENTRY, [huge, owner.fault(1)])
    owner.marks.report_to_owner(owner.link, ENTRY, [owner.fault(1)] * (MAX_RANGES + 5))
    assert [len(message.ranges) for _, message in owner.links.sent] == [1, MAX_RANGES]


def test_marks_of_a_peer_refuse_transfers_until_it_replaces_them():
    owner = Owner()
    remote = a_cache(9, start=START + (1 << 20))
    owner.marks.on_peer_marks(owner.link, Marked(ENTRY, ((START + (1 << 20) + UNIT, UNIT),)))
    owner.marks.check_peer("pull_blocks", owner.link, remote, a_plan(0, 2))
    with pytest.raises(LLMException, match="cache 9, tensor 0, block 1") as raised:
        owner.marks.check_peer("pull_blocks", owner.link, remote, a_plan(1))
    assert raised.value.status_code is S.LLM_SUSPECT_REMOTE_ERROR
    owner.marks.on_peer_marks(owner.link, Marked(ENTRY, ()))
    owner.marks.check_peer("pull_blocks", owner.link, remote, a_plan(1))


@pytest.mark.expects_log("cluster 2 met a fault in local memory, 64 bytes at 0x10080")
def test_a_notice_that_is_true_marks_the_memory():
    owner = Owner()
    bad = list(owner.cache.layout.locate(START + 2 * UNIT, UNIT))
    message = Faulted(ENTRY, ((START + 2 * UNIT, UNIT),))
    owner.marks._found(owner.link, owner.cache, message, bad)
    assert list(owner.marks.ranges()) == [owner.fault(2)]
    assert [cluster_id for cluster_id, _ in owner.links.sent] == [PEER, 3]


def test_a_notice_that_is_wrong_is_answered_with_the_marks_there_are():
    owner = Owner()
    message = Faulted(ENTRY, ((START, UNIT),))
    owner.marks._found(owner.link, owner.cache, message, [])
    assert owner.links.sent == [(PEER, Marked(ENTRY, ()))]
    owner.cache.ref = (3, 33)
    owner.marks._found(owner.link, owner.cache, message, [])
    assert len(owner.links.sent) == 1


def test_a_notice_probed_before_a_remap_marks_nothing_after_it():
    owner = Owner()
    bad = list(owner.cache.layout.locate(START + 2 * UNIT, UNIT))
    owner.cache.ref = (3, 33)
    owner.marks._found(owner.link, owner.cache, Faulted(ENTRY, ((START + 2 * UNIT, UNIT),)), bad)
    assert owner.marks.ranges() == ()
    assert owner.links.sent == []


def test_texts_name_slots_blocks_or_bare_memory():
    slots = a_cache(is_blocks=False)
    piece = next(iter(slots.layout.locate(START, 1)))
    assert "slot 0" in described([fault_of(OWN, slots, piece)])
    assert described([fault_at(OWN, None, BadRange(True, 16, 8, None))]) == "8 bytes at 0x10"
    assert described([]) == "the address is unknown"
