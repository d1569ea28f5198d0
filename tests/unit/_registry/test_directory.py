"""The writer and the reader of a directory, over a log in memory."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._plan.layouts import dense, to_bytes
from llm_datadist._registry import remote_caches, writer
from llm_datadist._registry.reader import DirectoryReader
from llm_datadist._registry.records import (
    DEALLOCATED,
    MAX_LOG_BYTES,
    REMOVED,
    UNREGISTERED,
    Added,
    CorruptDirectory,
    KeyRecord,
    encode_frame,
)
from llm_datadist._registry.writer import DirectoryFull, DirectoryWriter
from llm_datadist._types import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex, DataType
from llm_datadist._types.refs import NO_REF
from llm_datadist.testing.in_memory_node import InMemoryNode

PEER = 9
FAR = time.monotonic_ns() + 10**15
UNUSED_PREFIX = 2**64 - 1


class Source:
    """A log as a reader sees it; counts what it is asked."""

    def __init__(self, log):
        self.log = log
        self.version_calls = 0
        self.reads = []

    def version(self, _deadline_ns):
        self.version_calls += 1
        return self.log.version()

    def read_log(self, offset, size, _deadline_ns):
        self.reads.append((offset, size))
        return self.log.read_log(offset, size)


class Peer:
    def __init__(self, capacity=1 << 20):
        self.log = InMemoryNode(log_capacity=capacity)
        self.writer = DirectoryWriter(self.log, capacity)
        self.source = Source(self.log)
        self.reader = DirectoryReader(self.source, PEER)

    def refresh(self):
        return self.reader.refresh("pull_blocks", FAR)

    def resolve(self, key, fresh=False):
        return self.reader.resolve("pull_blocks", key, FAR, fresh=fresh)


@pytest.fixture
def peer():
    return Peer()


def added(cache_id, *, is_blocks=True, shape=(4, 10), addrs=(4096, 8192), accessible=True, **more):
    return Added(
        cache_id=cache_id,
        entry=(cache_id * 2, 5),
        is_blocks=is_blocks,
        num_tensors=len(addrs),
        shape=shape,
        data_type=DataType.DT_FLOAT16.value,
        placement=1,
        batch_dim_index=more.pop("batch_dim_index", 0),
        addrs=np.array(addrs if accessible else [], "<u8").tobytes(),
        accessible=accessible,
        **more,
    )


def key_record(req_id, slot, guard):
    return KeyRecord(req_id, 0, UNUSED_PREFIX, slot, guard)


def layout(**change):
    """A layout that fits `added`: K and V of one layer, 10 elements a block."""
    fields = {"layers": range(7, 8), "kv_heads": 4, "heads": range(1, 2), "head_size": 5}
    return dense("NHD", **(fields | change), data_type=DataType.DT_FLOAT16, block_tokens=2)


def by_id(cache_id, index=0):
    return CacheKeyByIdAndIndex(PEER, cache_id, index)


def missing(peer, key, fresh=True):
    with pytest.raises(LLMException, match=r"peer cluster 9: the peer has no cache under") as error:
        peer.resolve(key, fresh)
    return error.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


def test_resolves_a_blocks_cache(peer):
    peer.writer.add(added(1, blocks_key=3))
    cache, slot, key_ref = peer.resolve(BlocksCacheKey(PEER, 3))
    assert (cache.cache_id, cache.ref, slot, key_ref) == (1, (2, 5), 0, NO_REF)
    assert cache.layout.starts == (4096, 8192)
    assert (cache.layout.tensor_bytes, cache.layout.unit_bytes, cache.layout.num_units) == (
        80,
        20,
        4,
    )
    assert peer.resolve(by_id(1, 2)) == (cache, 2, NO_REF)
    assert missing(peer, BlocksCacheKey(PEER, 4))


def test_resolves_slots(peer):
    keys = (key_record(100, 0, (7, 1)), key_record(101, 2, (8, 1)))
    peer.writer.add(added(1, is_blocks=False, shape=(5, 4), batch_dim_index=1, keys=keys))
    cache, slot, key_ref = peer.resolve(CacheKey(PEER, 101))
    assert (slot, key_ref) == (2, (8, 1))
    assert cache.layout.num_units == 1  # the batch is not outermost: no slot is one piece
    peer.writer.add(added(2, is_blocks=False, shape=(1, 4, 5), batch_dim_index=1))
    assert peer.resolve(by_id(2)).cache.layout.unit_bytes == 10
    peer.writer.remove_key(1, (8, 1), REMOVED)
    assert missing(peer, CacheKey(PEER, 101))
    assert peer.resolve(CacheKey(PEER, 100)).cache is cache


def test_an_unchanged_directory_costs_one_comparison(peer):
    peer.writer.add(added(1))
    assert peer.refresh()
    peer.source.version_calls, peer.source.reads = 0, []
    assert not peer.refresh()
    peer.resolve(by_id(1), fresh=True)
    peer.resolve(by_id(1), fresh=False)
    assert (peer.source.version_calls, peer.source.reads) == (2, [])


def test_only_new_records_are_fetched(peer):
    peer.writer.add(added(1))
    peer.refresh()
    tail = peer.writer.tail
    peer.writer.add(added(2))
    assert peer.refresh()
    assert peer.source.reads[-1] == (tail, peer.writer.tail - tail)
    assert {cache.cache_id for cache in peer.reader.caches()} == {1, 2}
    assert peer.reader.version == peer.log.version()


def test_a_miss_refreshes_and_a_hit_does_not(peer):
    peer.writer.add(added(1))
    peer.resolve(by_id(1))
    peer.writer.remove(1, UNREGISTERED)
    assert peer.resolve(by_id(1)).cache.cache_id == 1  # stale until the peer refuses it
    peer.writer.add(added(2))
    peer.resolve(by_id(2))
    assert missing(peer, by_id(1), fresh=False)


def test_the_last_cache_of_a_blocks_key_wins(peer):
    key = BlocksCacheKey(PEER)
    peer.writer.add(added(1, blocks_key=0))
    peer.writer.add(added(2, blocks_key=0))
    assert peer.resolve(key).cache.cache_id == 2
    peer.writer.remove(1, UNREGISTERED)
    assert peer.resolve(key, fresh=True).cache.cache_id == 2
    peer.writer.add(added(3, blocks_key=0))
    peer.writer.remove(3, UNREGISTERED)
    assert missing(peer, key)
    assert peer.resolve(by_id(2)).cache.cache_id == 2


def test_the_blocks_key_of_a_cache_that_is_gone_can_be_used_again(peer):
    peer.writer.add(added(1, blocks_key=0))
    peer.writer.remove(1, UNREGISTERED)
    peer.writer.add(added(2, blocks_key=0))
    assert peer.resolve(BlocksCacheKey(PEER), fresh=True).cache.cache_id == 2


def test_a_key_that_was_bound_again_survives_its_former_cache(peer):
    peer.writer.add(added(1, is_blocks=False, keys=(key_record(100, 0, (7, 1)),)))
    peer.writer.add(added(2, is_blocks=False, keys=(key_record(100, 1, (7, 3)),)))
    peer.writer.remove_key(1, (7, 1), REMOVED)
    peer.writer.remove(1, UNREGISTERED)
    assert peer.resolve(CacheKey(PEER, 100)).key_ref == (7, 3)


def test_an_id_can_go_before_its_keys(peer):
    peer.writer.add(added(1, is_blocks=False, keys=(key_record(100, 0, (7, 1)),)))
    peer.writer.unname(1)
    assert missing(peer, by_id(1))
    assert peer.resolve(CacheKey(PEER, 100)).cache.cache_id == 1


def test_a_remap_changes_the_entry(peer):
    peer.writer.add(added(1))
    cache = peer.resolve(by_id(1)).cache
    peer.writer.remap(1, 7)
    peer.refresh()
    assert cache.ref == (2, 7)


def test_a_cache_that_is_kept_local_is_named_in_the_refusal(peer):
    peer.writer.add(added(6, accessible=False, blocks_key=1))
    with pytest.raises(LLMException, match=r"cache 6, named by .* not remote-accessible") as error:
        peer.resolve(BlocksCacheKey(PEER, 1))
    assert error.value.status_code is LLMStatusCode.LLM_PARAM_INVALID
    assert peer.reader.caches()[0].layout.starts == ()


def test_a_long_log_is_compacted_and_read_again():
    peer = Peer(capacity=4096)
    keys = (key_record(100, 0, (7, 1)), key_record(101, 1, (8, 1)))
    peer.writer.add(added(1, is_blocks=False, keys=keys, blocks_key=None))
    peer.writer.add(added(2, blocks_key=0))
    peer.writer.add(added(3, blocks_key=0))
    peer.writer.remove_key(1, (7, 1), REMOVED)
    peer.writer.remap(2, 9)
    peer.refresh()
    while peer.log.version() >> 40 == 0:
        peer.writer.add(added(50))
        peer.writer.remove(50, UNREGISTERED)
    assert peer.log.version() >> 40 == 2
    assert peer.refresh()
    assert {cache.cache_id for cache in peer.reader.caches()} - {50} == {1, 2, 3}
    assert peer.resolve(by_id(2)).cache.ref == (4, 9)
    assert peer.resolve(BlocksCacheKey(PEER)).cache.cache_id == 3
    assert peer.resolve(CacheKey(PEER, 101)).slot == 1
    assert missing(peer, CacheKey(PEER, 100))
    peer.writer.remove(3, UNREGISTERED)
    assert missing(peer, BlocksCacheKey(PEER))


def test_reasons_outlive_the_log_that_had_them(peer):
    peer.writer.add(added(1, keys=(key_record(5, 0, (7, 1)),), blocks_key=3))
    peer.refresh()
    peer.writer.remove_key(1, (7, 1), REMOVED)
    peer.writer.remove(1, UNREGISTERED)
    peer.refresh()
    peer.writer._compact()
    for gone, why in (
        (CacheKey(PEER, 5), "its owner has removed it"),
        (BlocksCacheKey(PEER, 3), "its cache was unregistered"),
        (CacheKeyByIdAndIndex(PEER, 1), "it was unregistered"),
    ):
        with pytest.raises(LLMException, match=why):
            peer.resolve(gone, fresh=True)
    peer.writer.add(added(2, keys=(key_record(5, 0, (9, 1)),)))
    assert peer.resolve(CacheKey(PEER, 5)).cache.cache_id == 2
    peer.writer.remove(2, DEALLOCATED)
    with pytest.raises(LLMException, match="its cache was deallocated"):
        peer.resolve(CacheKey(PEER, 5), fresh=True)


def test_a_compacted_log_says_what_the_long_one_said():
    """To a reader that has read nothing before. A key that went over does not come back."""
    peer = Peer(capacity=4096)
    peer.writer.add(added(1, is_blocks=False, keys=(key_record(100, 0, (7, 1)),)))
    peer.writer.add(added(2, blocks_key=0))
    peer.writer.add(added(3, blocks_key=0))
    peer.writer.remove(3, UNREGISTERED)
    peer.writer.unname(1)
    peer.writer.remap(2, 9)
    while peer.log.version() >> 40 == 0:
        peer.writer.add(added(50))
        peer.writer.remove(50, UNREGISTERED)
    assert missing(peer, by_id(1))
    assert peer.resolve(CacheKey(PEER, 100)).cache.cache_id == 1
    assert peer.resolve(by_id(2)).cache.ref == (4, 9)
    assert missing(peer, BlocksCacheKey(PEER))


def test_a_log_beyond_the_limit_is_not_read(peer):
    peer.source.version = lambda _deadline_ns: MAX_LOG_BYTES + 1
    with pytest.raises(CorruptDirectory, match=f"at most {MAX_LOG_BYTES}"):
        peer.refresh()
    assert peer.source.reads == []


def test_waste_is_compacted_long_before_the_log_is_full():
    peer = Peer(capacity=1 << 30)
    for cache_id in range(1, 6000):
        peer.writer.add(added(cache_id))
        peer.writer.remove(cache_id, UNREGISTERED)
    assert peer.writer.tail <= 256 << 10
    peer.refresh()
    assert peer.reader.caches() == []


def test_a_log_that_is_full_of_live_caches_refuses_more():
    peer = Peer(capacity=1024)
    count = 0
    with pytest.raises(DirectoryFull):
        for cache_id in range(1, 100):
            peer.writer.add(added(cache_id))
            count = cache_id
    assert count > 5
    for cache_id in range(1, count + 1):
        peer.writer.remap(cache_id, 2**64 - 1)
    peer.refresh()
    assert len(peer.reader.caches()) == count
    peer.writer.remove(1, UNREGISTERED)
    peer.writer.add(added(count + 1))
    peer.refresh()
    assert {cache.cache_id for cache in peer.reader.caches()} == set(range(2, count + 2))


class Rewriting(Source):
    """A log that is being rewritten for the next few looks."""

    odd_looks = 0

    def version(self, deadline_ns):
        version = super().version(deadline_ns)
        if self.odd_looks:
            self.odd_looks -= 1
            return version + (1 << 40)
        return version


def test_waits_while_the_log_is_being_rewritten(peer):
    peer.writer.add(added(1))
    source = Rewriting(peer.log)
    source.odd_looks = 3
    reader = DirectoryReader(source, PEER)
    assert reader.refresh("pull_blocks", FAR)
    assert [cache.cache_id for cache in reader.caches()] == [1]


def test_gives_up_at_the_deadline_when_the_peer_never_finishes(peer):
    source = Rewriting(peer.log)
    source.odd_looks = 10**9
    reader = DirectoryReader(source, PEER)
    with pytest.raises(LLMException, match="rewriting its directory") as error:
        reader.refresh("pull_blocks", time.monotonic_ns() + 5_000_000)
    assert error.value.status_code is LLMStatusCode.LLM_TIMEOUT


def test_what_was_read_across_a_rewrite_is_thrown_away(peer):
    class Torn(Source):
        def read_log(self, offset, size, deadline_ns):
            if not self.reads:
                super().read_log(offset, size, deadline_ns)
                self.log.rewrite(encode_frame(added(8)))
                return b"\xff" * size
            return super().read_log(offset, size, deadline_ns)

    peer.writer.add(added(1))
    reader = DirectoryReader(Torn(peer.log), PEER)
    reader.refresh("pull_blocks", FAR)
    assert [cache.cache_id for cache in reader.caches()] == [8]


@pytest.mark.parametrize(
    "log",
    [
        b"\x01\x00\x00\x00\xc1",
        b"\xff\xff\xff\xff",
    ],
)
def test_nonsense_is_refused(peer, log):
    peer.log.append(log)
    with pytest.raises(CorruptDirectory):
        peer.refresh()


@pytest.mark.parametrize(
    "log",
    [
        encode_frame(added(1, addrs=(1, 2), shape=())),
        encode_frame(added(1, addrs=(2**64 - 1,))),
        encode_frame(Added(1, (1, 1), True, 2, (4,), 1, 1, 0, b"12345678", True)),
        encode_frame(Added(1, (1, 1), True, 1, (4,), 5, 1, 0, b"12345678", True)),
        encode_frame(Added(1, (1, 1), True, 1, (4,), 13, 1, 0, b"12345678", True)),
        encode_frame(Added(1, (1, 1), True, 1, (2**60, 2**60), 1, 1, 0, b"12345678", True)),
        encode_frame(added(1, kv_layout=b"no layout")),
        encode_frame(added(1, kv_layout=to_bytes(layout(head_size=9)))),
        encode_frame(added(1, kv_layout=to_bytes(layout(layers=range(3))))),
        encode_frame(added(1, kv_layout=to_bytes(layout()), is_blocks=False)),
    ],
)
def test_an_impossible_cache_is_refused_when_it_is_named(peer, log):
    peer.log.append(log)
    peer.writer.add(added(2))
    assert peer.resolve(by_id(2), fresh=True).cache.cache_id == 2
    for _ in range(2):
        with pytest.raises(CorruptDirectory, match="cache 1"):
            peer.resolve(by_id(1))


def test_a_record_about_nothing_is_refused(peer):
    peer.writer.add(added(1))
    peer.log.rewrite(b"")
    peer.writer.remove(1, UNREGISTERED)
    with pytest.raises(CorruptDirectory, match="there is none"):
        peer.refresh()


def test_a_layout_travels_with_its_cache(peer):
    peer.writer.add(added(1, kv_layout=to_bytes(layout())))
    peer.writer.add(added(2))
    assert peer.resolve(by_id(1)).cache.kv_layout == layout()
    assert peer.resolve(by_id(2)).cache.kv_layout is None


def test_many_threads_refresh_at_once(peer):
    failures = []
    done = threading.Event()

    def follow():
        while not done.is_set():
            try:
                peer.refresh()
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for cache_id in range(1, 300):
        peer.writer.add(added(cache_id, blocks_key=0))
        if cache_id > 3:
            peer.writer.remove(cache_id - 3, UNREGISTERED)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    peer.refresh()
    assert {cache.cache_id for cache in peer.reader.caches()} == {297, 298, 299}


def test_parsing_ends_at_the_deadline_and_goes_on_from_there(peer):
    for cache_id in range(1, 601):
        peer.writer.add(added(cache_id))
    for parsed in (256, 512):
        with pytest.raises(LLMException, match="the deadline passed after 256 records") as error:
            peer.reader.refresh("pull_blocks", time.monotonic_ns())
        assert error.value.status_code is LLMStatusCode.LLM_TIMEOUT
        assert len(peer.reader.caches()) == parsed
        assert peer.reader.version != peer.log.version()
    assert peer.refresh()
    assert len(peer.reader.caches()) == 600
    assert peer.reader.version == peer.log.version()
    ends = [offset + size for offset, size in peer.source.reads]
    assert len(set(ends)) == 1
    assert sorted({offset for offset, _ in peer.source.reads}) == [o for o, _ in peer.source.reads]


class Forever(Source):
    """A log whose era changes whenever somebody looks."""

    def version(self, deadline_ns):
        self.version_calls += 1
        return self.version_calls << 41 | 8

    def read_log(self, offset, size, deadline_ns):
        return bytes(size)


def test_a_log_that_changes_for_ever_ends_at_the_deadline(peer):
    reader = DirectoryReader(Forever(peer.log), PEER)
    with pytest.raises(LLMException, match="LLM_TIMEOUT"):
        reader.refresh("pull_blocks", time.monotonic_ns() + 20_000_000)


def test_a_call_does_not_wait_for_another_beyond_its_own_deadline(peer):
    """The other one, with a later deadline, parses a long log."""
    peer.writer.add(added(1))
    with (
        peer.reader._lock,
        pytest.raises(LLMException, match=r"another call .* until the deadline"),
    ):
        peer.reader.refresh("pull_blocks", time.monotonic_ns() + 10_000_000)
    assert peer.refresh()


def test_records_that_are_long_are_looked_at_one_by_one(peer):
    """The deadline is looked at by bytes too, not only every so many records."""
    keys = tuple(key_record(number, 0, (number, 1)) for number in range(8000))
    for number in range(1, 4):
        peer.writer.add(added(number, is_blocks=False, keys=keys))
    with pytest.raises(LLMException, match="passed after 1 records"):
        peer.reader.refresh("pull_blocks", time.monotonic_ns() + 1_000_000)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("MAX_RECORD_BYTES", "bytes of a cache's record"),
        ("MAX_KEYS", "keys of a cache"),
        ("MAX_DIMENSIONS", "dimensions"),
        ("MAX_CACHES", "caches"),
        ("MAX_ALL_KEYS", "keys of all caches"),
    ],
)
def test_an_owner_publishes_nothing_that_no_peer_would_take(peer, monkeypatch, limit, words):
    """Nothing is written; what goes makes room."""
    monkeypatch.setattr(writer, limit, 1 if limit != "MAX_RECORD_BYTES" else 64)
    one = added(1, keys=(key_record(1, 0, (4, 5)),), shape=(4,))
    if limit == "MAX_RECORD_BYTES":
        monkeypatch.setattr(writer, limit, len(encode_frame(one)) + 16)
    peer.writer.add(one)
    keys = tuple(key_record(number, 0, (number, 5)) for number in (6, 7))
    tail = peer.writer.tail
    with pytest.raises(DirectoryFull, match=words):
        peer.writer.add(added(2, keys=keys, shape=(4, 10)))
    assert peer.writer.tail == tail
    peer.writer.remove(1, UNREGISTERED)
    peer.writer.add(one)


@pytest.mark.parametrize(("limit", "most"), [("MAX_CACHES", 3), ("MAX_ALL_KEYS", 6)])
def test_a_peer_cannot_have_more_kept_than_a_directory_has(peer, monkeypatch, limit, most):
    """What goes does not count any more."""
    monkeypatch.setattr(remote_caches, limit, most)
    for number in range(1, 4):
        guards = tuple(key_record(number, 0, (number * 10 + at, 1)) for at in range(2))
        peer.writer.add(added(number, keys=guards))
    peer.writer.remove_key(1, (10, 1), REMOVED)
    peer.writer.remove(2, UNREGISTERED)
    peer.writer.add(added(4, keys=(key_record(4, 0, (40, 1)),)))
    peer.refresh()
    peer.writer.add(added(5, keys=tuple(key_record(5, 0, (50 + at, 1)) for at in range(6))))
    with pytest.raises(CorruptDirectory, match="more than"):
        peer.refresh()


def test_keys_of_one_guard_are_refused(peer):
    """They would not count as keys, nor go with their cache."""
    keys = tuple(key_record(number, 0, (7, 1)) for number in range(2))
    peer.log.append(encode_frame(added(1, keys=keys)))
    with pytest.raises(CorruptDirectory, match="several keys of one guard"):
        peer.refresh()


def test_a_key_that_another_thread_has_read_meanwhile_is_found(peer):
    """Between a miss and its refresh the other thread finishes, so that nothing is new."""
    peer.writer.add(added(1))
    version = peer.source.version

    def after_the_other_thread(deadline_ns):
        peer.source.version = version
        peer.refresh()
        return version(deadline_ns)

    peer.source.version = after_the_other_thread
    assert peer.resolve(by_id(1)).cache.cache_id == 1


def test_one_huge_record_is_refused_before_it_is_read():
    log = InMemoryNode(log_capacity=4 << 20)
    log.append(((2 << 20).to_bytes(4, "little")) + bytes(2 << 20))
    with pytest.raises(CorruptDirectory, match="a record of 2097152 bytes"):
        DirectoryReader(Source(log), PEER).refresh("pull_blocks", FAR)


def test_a_cache_that_is_there_twice_is_refused(peer):
    peer.log.append(encode_frame(added(1)) * 2)
    with pytest.raises(CorruptDirectory, match="cache 1 is there twice"):
        peer.refresh()
