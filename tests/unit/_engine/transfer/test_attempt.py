"""Transfers over a made-up link: lookups, retries, consumption, memory faults, errors."""

import re
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, CacheKey, DataType, LLMException
from llm_datadist._backends.outcomes import Code, Outcome
from llm_datadist._engine.instance import Lifetime
from llm_datadist._engine.transfer import attempt
from llm_datadist._engine.transfer.attempt import Attempts, Request
from llm_datadist._engine.transfer.counters import TransferCounters
from llm_datadist._errors import FIRST_GENERATION_STATUSES, LLMStatusCode, fail, invalid
from llm_datadist._plan import Layout, plan_blocks
from llm_datadist._registry import CorruptDirectory, Resolved
from llm_datadist._types.refs import NO_REF

S = LLMStatusCode
OWN, PEER = 1, 2
TENSORS, BLOCKS, UNIT = 2, 4, 64
KEY = BlocksCacheKey(PEER)
KEY_REF = (9, 91)


def a_cache(cache_id, start, ref):
    addrs = [start + 0x10000 * tensor for tensor in range(TENSORS)]
    return SimpleNamespace(
        cache_id=cache_id,
        ref=ref,
        desc=CacheDesc(TENSORS, [BLOCKS, UNIT], DataType.DT_INT8),
        layout=Layout.of(addrs, BLOCKS * UNIT, BLOCKS),
        is_blocks=True,
        device=None,
        on_device=False,
        faulted=(),
    )


def a_range(cache, tensor, block):
    return int(cache.layout.starts[tensor]) + block * UNIT, UNIT


class Directory:
    """A peer's directory: `known` is what the reader has read, `published` what is new."""

    version = 40

    def __init__(self, *published, known=None):
        self.published = list(published)
        self.known = known
        self.refreshed = 0

    def refresh(self, operation, deadline_ns):
        self.refreshed += 1
        if self.published:
            self.known = self.published.pop(0)

    def resolve(self, operation, key, deadline_ns, *, fresh):
        if isinstance(self.known, Exception):
            raise self.known
        return self.known


class Link:
    """A link and its data plane. The memory of `bad` cannot be accessed; `outcomes` come first."""

    lost = SimpleNamespace(is_set=lambda: False, wait=lambda seconds: False)
    reason = ""
    address = ("192.0.2.1", 5)

    def __init__(self, directory, *outcomes, bad=(), published=False):
        self.data = self
        self.path, self.device_path = "of host memory", "of device memory"
        self.directory = directory
        self.outcomes = list(outcomes)
        self.bad = bad
        self.published = published
        self.checked = self.in_process = False
        self.marks = ()
        self.device_trouble = ""
        self.failures = self.mismatches = 0
        self.counted = []
        self.transfers = []
        self.consumed = []
        self.consume_outcome = Outcome(Code.OK)
        self.is_open = True
        self.lanes = self

    def run(self, transfer):
        self.transfers.append(transfer)
        if self.outcomes:
            return self.outcomes.pop(0)
        moved = 0
        for index, (local, remote, size) in enumerate(
            zip(transfer.local, transfer.remote, transfer.length, strict=True)
        ):
            for code, begin in ((Code.LOCAL_FAULT, local), (Code.REMOTE_FAULT, remote)):
                if any(begin < addr + length and addr < begin + size for addr, length in self.bad):
                    return Outcome(code, 14, index, moved)
            moved += int(size)
        return Outcome(Code.OK, moved_bytes=moved)

    def consume(self, key_ref, deadline_ns):
        self.consumed.append(key_ref)
        return self.consume_outcome

    def required_version(self):
        return self.directory.version

    def peer_end_is_open(self):
        return self.is_open

    def count(self, num_bytes, write):
        self.counted.append((num_bytes, write))


class Marks:
    """Fault marks of the local instance, and what peers are notified of."""

    def __init__(self):
        self.marked = []
        self.of_entry = []
        self.reported = []
        self.refused_by = []

    def check_local(self, operation, cache, plan, peer, *, local):
        assert cache.faulted, "the cache has no marks"
        assert local
        raise LLMException("marked", status_code=S.LLM_DEVICE_MEM_ERROR)

    def check_peer(self, operation, link, remote, plan):
        if remote.ref in self.refused_by:
            raise LLMException("marked", status_code=S.LLM_SUSPECT_REMOTE_ERROR)

    def mark(self, cache, ref, faults):
        self.marked += faults
        self.of_entry += [ref] * len(faults)

    def report_to_owner(self, link, entry, faults):
        self.reported += [(entry, fault) for fault in faults]


LOCAL = a_cache(1, 0x100000, (3, 31))
REMOTE = a_cache(7, 0x900000, (5, 51))
REPLACED = a_cache(8, 0xA00000, (6, 61))
FOUND = Resolved(REMOTE, 0, NO_REF)


def a_plan(indices, remote):
    every = range(TENSORS)
    return plan_blocks(LOCAL.layout, indices, every, remote.layout, indices, every)


class World:
    def __init__(
        self, link, life=None, local=LOCAL, *, statuses=MappingProxyType({}), slow_ms=None
    ):
        self.link = link
        self.local = local
        self.marks = Marks()
        self.life = life or Lifetime()
        self.links = SimpleNamespace(get=lambda cluster_id, operation: link)
        self.cluster_id = OWN
        self.config = SimpleNamespace(
            sync_timeout_ms=1000, statuses=statuses, slow_transfer_ms=slow_ms
        )
        self.counters = TransferCounters()
        self.attempts = Attempts(self, self.marks, None, self.counters)

    def run(self, key=KEY, *, write=False, layers=None, blocks=range(BLOCKS)):
        indices = np.array(list(blocks), np.int64)

        def plan(found):
            return a_plan(indices, found.cache)

        self.attempts.run(Request("pull_blocks", key, self.local, plan, layers, write))

    def push_raw(self):
        request = Request("transfer_cache_async", KEY, self.local, None, write=True)
        self.attempts.run(request, a_plan(np.arange(BLOCKS), REMOTE))

    def fails(self, status, *texts, **more):
        with pytest.raises(LLMException) as raised:
            self.run(**more)
        assert raised.value.status_code is status
        for text in texts:
            assert text in str(raised.value)
        assert self.link.failures == 1
        assert self.link.counted == []
        assert self.counted() == ("pull_blocks", "of host memory", 0, {status.name: 1})
        return raised.value

    def counted(self):
        """What the only entry of the counters has."""
        (entry,) = self.counters.stats()
        return entry.operation, entry.path, entry.num_bytes, entry.errors


def test_a_known_key_needs_no_message_before_the_transfer():
    world = World(Link(Directory(known=FOUND)))
    world.run()
    (transfer,) = world.link.transfers
    assert world.link.directory.refreshed == 0
    assert (transfer.local_ref, transfer.cache_ref) == (LOCAL.ref, REMOTE.ref)
    assert transfer.version == Directory.version
    assert world.link.counted == [(TENSORS * BLOCKS * UNIT, False)]


def test_a_mapped_directory_is_read_each_time():
    world = World(Link(Directory(FOUND), published=True))
    world.run()
    assert world.link.directory.refreshed == 1


def test_a_stale_directory_is_read_and_the_transfer_repeated():
    changed = Resolved(REPLACED, 0, NO_REF)
    world = World(Link(Directory(changed, known=FOUND), Outcome(Code.STALE)))
    world.run()
    assert [transfer.cache_ref for transfer in world.link.transfers] == [REMOTE.ref, REPLACED.ref]
    assert world.link.failures == 0


@pytest.mark.parametrize("known", [invalid("x", "not accessible", "y"), None])
def test_what_an_old_directory_refuses_is_looked_up_again(known):
    """Also a cache with marks, which may have been replaced since."""
    world = World(Link(Directory(FOUND, known=known or Resolved(REPLACED, 0, NO_REF))))
    world.link.marks = (1,)
    world.marks.refused_by = [REPLACED.ref]
    world.run()
    assert [transfer.cache_ref for transfer in world.link.transfers] == [REMOTE.ref]


def test_a_refusal_by_a_fresh_directory_is_final():
    refusal = invalid("x", "not accessible", "y")
    world = World(Link(Directory(known=refusal)))
    assert world.fails(S.LLM_PARAM_INVALID) is refusal
    assert world.link.directory.refreshed == 1
    assert world.link.transfers == []


def test_a_corrupt_directory_is_a_failure():
    world = World(Link(Directory(known=CorruptDirectory("odd"))))
    world.fails(S.LLM_FAILED, "directory cannot be read: odd", "peer cluster 2")


def test_a_cache_that_is_gone_is_a_failure_unless_another_has_its_key():
    world = World(Link(Directory(known=FOUND), Outcome(Code.GONE)))
    world.fails(S.LLM_KV_CACHE_NOT_EXIST, "cache 7 of the peer")
    world = World(Link(Directory(Resolved(REPLACED, 0, NO_REF), known=FOUND), Outcome(Code.GONE)))
    world.run()
    assert world.link.counted


def test_a_link_that_has_ended_is_named_instead_of_the_cache():
    world = World(Link(Directory(known=FOUND), Outcome(Code.GONE)))
    world.link.is_open = False
    world.fails(S.LLM_LINK_FAILED, "192.0.2.1")
    assert world.link.directory.refreshed == 0


def test_a_success_that_moved_less_is_none():
    world = World(Link(Directory(known=FOUND), Outcome(Code.OK, moved_bytes=1)))
    world.fails(S.LLM_FAILED, "PROTOCOL", "1 of 512 bytes")


def test_an_instance_that_is_closing_says_so():
    world = World(Link(Directory(known=FOUND), Outcome(Code.CLOSED)), Lifetime(closing=True))
    world.fails(S.LLM_ENGINE_FINALIZED, "finalized")


@pytest.mark.parametrize(
    ("layers", "key_ref", "consumed"),
    [
        ((None, None, 2), KEY_REF, [KEY_REF]),
        ((range(1), range(1), 2), KEY_REF, [KEY_REF]),
        ((range(1), range(1), 1), KEY_REF, []),
        ((None, None, 2), NO_REF, []),
        (None, KEY_REF, []),
    ],
)
def test_a_pull_of_all_layers_consumes_the_key(layers, key_ref, consumed):
    world = World(Link(Directory(known=Resolved(REMOTE, 0, key_ref))))
    world.run(CacheKey(PEER, 1), layers=layers)
    assert world.link.consumed == consumed


def test_a_failed_pull_consumes_nothing_and_a_second_puller_fails():
    pulled = Resolved(REMOTE, 0, KEY_REF)
    world = World(Link(Directory(known=pulled), Outcome(Code.TIMEOUT)))
    world.fails(S.LLM_TIMEOUT, "1000 ms", layers=(None, None, 2))
    assert world.link.consumed == []
    world = World(Link(Directory(known=pulled)))
    world.link.consume_outcome = Outcome(Code.GONE)
    world.fails(S.LLM_KV_CACHE_NOT_EXIST, layers=(None, None, 2))


def test_memory_at_fault_is_marked_and_the_rest_is_moved():
    bad = [a_range(LOCAL, 0, 1), a_range(REMOTE, 1, 2)]
    world = World(Link(Directory(known=FOUND), bad=bad))
    error = world.fails(S.LLM_DEVICE_MEM_ERROR)
    named = [(f.cluster_id, f.cache_id, f.tensor_index, f.block) for f in error.faults]
    assert named == [(OWN, 1, 0, 1), (PEER, 7, 1, 2)]
    assert world.marks.marked == [error.faults[0]]
    assert world.marks.reported == [(REMOTE.ref, error.faults[1])]
    parts = [transfer for transfer in world.link.transfers if transfer.version == 0]
    assert len(parts) == len(world.link.transfers) - 1


def test_a_fault_that_is_no_more_repeats_the_transfer():
    world = World(Link(Directory(known=FOUND), Outcome(Code.REMOTE_FAULT, 14, 0)))
    world.run()
    assert world.marks.reported == []
    assert world.link.counted == [(TENSORS * BLOCKS * UNIT, False)]


def test_a_peer_that_dies_during_containment_ends_it():
    outcomes = Outcome(Code.REMOTE_FAULT, 14, 0), Outcome(Code.PEER_DEAD)
    world = World(Link(Directory(known=FOUND), *outcomes))
    world.fails(S.LLM_LINK_FAILED)


def test_checked_transfers_of_device_memory_are_refused():
    remote = SimpleNamespace(**vars(REMOTE) | {"on_device": True})
    world = World(Link(Directory(known=Resolved(remote, 0, NO_REF))))
    world.link.checked = True
    with pytest.raises(LLMException, match=r"llm\.Checksum") as raised:
        world.run()
    assert raised.value.status_code is S.LLM_FEATURE_NOT_ENABLED


def test_a_push_to_bare_addresses_looks_nothing_up():
    world = World(Link(Directory(), bad=[(0x900000, 1)]))
    with pytest.raises(LLMException) as raised:
        world.push_raw()
    assert raised.value.status_code is S.LLM_SUSPECT_REMOTE_ERROR
    assert [(fault.cluster_id, fault.addr) for fault in raised.value.faults] == [(PEER, 0x900000)]
    world.link.bad = ()
    world.push_raw()
    assert world.link.counted == [(TENSORS * BLOCKS * UNIT, True)]


WAYS = {
    "pull": World.run,
    "push": lambda world: world.run(write=True),
    "push to bare addresses": World.push_raw,
}


@pytest.mark.parametrize("way", WAYS)
def test_local_memory_known_to_be_at_fault_is_not_touched(way):
    local = SimpleNamespace(**vars(LOCAL) | {"faulted": (a_range(LOCAL, 0, 1),)})
    world = World(Link(Directory(known=FOUND)), local=local)
    with pytest.raises(LLMException) as raised:
        WAYS[way](world)
    assert raised.value.status_code is S.LLM_DEVICE_MEM_ERROR
    assert world.link.transfers == []


@pytest.mark.parametrize("write", [False, True])
def test_memory_that_the_peer_has_marked_is_not_touched(write):
    world = World(Link(Directory(FOUND, known=FOUND)))
    world.link.marks = (1,)
    world.marks.refused_by = [REMOTE.ref]
    world.fails(S.LLM_SUSPECT_REMOTE_ERROR, write=write)
    assert world.link.transfers == []


def test_a_transfer_on_condition_of_a_version_follows_no_older_record():
    directory = Directory(known=FOUND)
    resolve = directory.resolve

    def publish_and_resolve(*arguments, **more):
        directory.version += 1  # by another call
        return resolve(*arguments, **more)

    directory.resolve = publish_and_resolve
    world = World(Link(directory))
    world.run()
    assert world.link.transfers[0].version == Directory.version


@pytest.mark.parametrize("code", [Code.LOCAL_FAULT, Code.REMOTE_FAULT])
@pytest.mark.parametrize("end", [Code.GONE, Code.STALE])
def test_a_fault_in_a_cache_that_has_changed_meanwhile_marks_nothing(code, end):
    fault = Outcome(code, 14, 0)
    outcomes = fault, fault, fault, Outcome(end)  # the descriptor, its halves, a block
    world = World(Link(Directory(known=FOUND), *outcomes, Outcome(Code.GONE)))
    error = world.fails(S.LLM_KV_CACHE_NOT_EXIST)
    assert (world.marks.marked, world.marks.reported, error.faults) == ([], [], ())


def test_marks_and_notices_name_the_generation_that_the_transfer_has_used():
    """A remap during the transfer changes the records of both caches in place."""
    local, remote = (SimpleNamespace(**vars(cache)) for cache in (LOCAL, REMOTE))
    bad = [a_range(local, 0, 1), a_range(remote, 1, 2)]
    world = World(Link(Directory(known=Resolved(remote, 0, NO_REF)), bad=bad), local=local)
    run = world.link.run

    def run_and_remap(transfer):
        local.ref, remote.ref = (3, 33), (5, 53)
        return run(transfer)

    world.link.run = run_and_remap
    world.fails(S.LLM_DEVICE_MEM_ERROR)
    assert world.marks.of_entry == [LOCAL.ref]
    assert [entry for entry, _ in world.marks.reported] == [REMOTE.ref]


@pytest.mark.parametrize("write", [False, True])
def test_within_a_process_nothing_is_copied_onto_a_part_of_itself(write):
    shifted = a_cache(7, int(LOCAL.layout.starts[0]) + UNIT // 2, (5, 51))
    world = World(Link(Directory(known=Resolved(shifted, 0, NO_REF))))
    world.link.in_process = True
    world.fails(S.LLM_PARAM_INVALID, "overlaps the source", write=write)
    assert world.link.transfers == []


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now_ns = 10**12

    def monotonic_ns(self):
        return self.now_ns

    def run(self, world, ms):
        """Carry out a transfer each of whose attempts takes so long."""

        def plan(found):
            self.now_ns += ms * 1_000_000
            return a_plan(np.arange(BLOCKS), found.cache)

        world.attempts.run(Request("pull_blocks", KEY, world.local, plan))


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(attempt, "time", made)
    return made


@pytest.mark.parametrize("way", WAYS)
def test_a_transfer_has_the_time_of_sync_kv_timeout(clock, way):
    world = World(Link(Directory(known=FOUND)))
    WAYS[way](world)
    (transfer,) = world.link.transfers
    assert transfer.deadline_ns == clock.now_ns + 1_000_000_000


def test_a_transfer_that_is_part_of_a_call_has_the_deadline_of_that(clock):
    world, deadline_ns = World(Link(Directory(known=FOUND))), 5 * 10**12

    def plan(found):
        return a_plan(np.arange(1), found.cache)

    request = Request("pull_resharded", KEY, LOCAL, plan, deadline_ns=deadline_ns)
    world.attempts.run(request)
    assert world.link.transfers[0].deadline_ns == deadline_ns


def test_a_transfer_is_counted_once_with_its_bytes_and_its_duration(clock):
    """Also one that is repeated; its duration is that of the call."""
    changed = Resolved(REPLACED, 0, NO_REF)
    world = World(Link(Directory(changed, known=FOUND), Outcome(Code.STALE)))
    clock.run(world, 70)
    assert world.counted() == ("pull_blocks", "of host memory", TENSORS * BLOCKS * UNIT, {})
    (entry,) = world.counters.stats()
    assert entry.completed == 1
    assert entry.seconds.sum == pytest.approx(0.14)


def test_a_transfer_of_device_memory_is_counted_for_the_path_of_that():
    remote = SimpleNamespace(**vars(REMOTE) | {"on_device": True})
    world = World(Link(Directory(known=Resolved(remote, 0, NO_REF))))
    world.run()
    assert world.counted()[1] == "of device memory"


def test_a_push_to_bare_addresses_is_counted():
    world = World(Link(Directory()))
    world.push_raw()
    moved = TENSORS * BLOCKS * UNIT
    assert world.counted() == ("transfer_cache_async", "of host memory", moved, {})


def test_a_transfer_without_a_link_is_counted_as_a_failure():
    world = World(Link(Directory(known=FOUND)))

    def no_link(cluster_id, operation):
        raise fail(S.LLM_NOT_YET_LINK, operation, "no link", "link")

    world.links.get = no_link
    calls = (
        world.run,
        world.push_raw,
        lambda: world.attempts.look_up("pull_resharded", KEY, LOCAL, 0),
    )
    for call in calls:
        with pytest.raises(LLMException):
            call()
    assert [(each.operation, each.path, each.errors) for each in world.counters.stats()] == [
        (operation, "none", {"LLM_NOT_YET_LINK": 1})
        for operation in ("pull_blocks", "pull_resharded", "transfer_cache_async")
    ]


def test_a_lookup_is_counted_only_when_it_fails():
    world = World(Link(Directory(FOUND)))
    world.attempts.look_up("pull_resharded", KEY, LOCAL, 10**18)
    assert world.counters.stats() == ()
    world.link.directory.known = invalid("x", "not accessible", "y")
    with pytest.raises(LLMException):
        world.attempts.look_up("pull_resharded", KEY, LOCAL, 10**18)
    failed = {"LLM_PARAM_INVALID": 1}
    assert world.counted() == ("pull_resharded", "of host memory", 0, failed)


def test_a_failure_has_the_status_of_its_generation():
    link = Link(Directory(known=FOUND), Outcome(Code.TIMEOUT))
    world = World(link, statuses=FIRST_GENERATION_STATUSES)
    world.fails(S.LLM_WAIT_PROCESS_TIMEOUT, "[LLM_WAIT_PROCESS_TIMEOUT]", "1000 ms")


@pytest.mark.expects_log("slow transfer")
def test_a_slow_transfer_is_logged_once(clock, caplog):
    clock.run(World(Link(Directory(known=FOUND)), slow_ms=200), 201)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.fullmatch(
        r"slow transfer: pull_blocks, peer cluster 2 at 192\.0\.2\.1:5, 512 bytes over of host "
        r"memory, 201\.0 ms, llm\.SlowTransferMs is 200",
        record.getMessage(),
    )


@pytest.mark.expects_log("slow transfer")
def test_a_slow_transfer_that_fails_is_logged_with_its_status(clock, caplog):
    world = World(Link(Directory(known=FOUND), Outcome(Code.TIMEOUT)), slow_ms=200)
    with pytest.raises(LLMException):
        clock.run(world, 400)
    (record,) = caplog.records
    assert "failed over of host memory with LLM_TIMEOUT" in record.getMessage()


@pytest.mark.parametrize("slow_ms", [None, 500])
def test_a_quick_transfer_is_not_logged(clock, caplog, slow_ms):
    clock.run(World(Link(Directory(known=FOUND)), slow_ms=slow_ms), 500)
    assert caplog.records == []
