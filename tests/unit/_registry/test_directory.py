"""The writer and the reader of a directory, over a log in memory."""

from __future__ import annotations

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._plan.layouts import to_bytes
from llm_datadist._registry.records import (
    DEALLOCATED,
    REMOVED,
    UNREGISTERED,
)
from llm_datadist._registry.remote_caches import Resolved
from llm_datadist._registry.writer import DirectoryFull
from llm_datadist._types import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from llm_datadist._types.refs import NO_REF
from support.directories import PEER, Peer, added, by_id, key_record, layout, missing


def test_resolves_a_blocks_cache(peer):
    peer.writer.add(added(1, blocks_key=3))
    found = peer.resolve(BlocksCacheKey(PEER, 3))
    cache = found.cache
    assert (cache.cache_id, cache.ref, found.slot, found.key_ref) == (1, (2, 5), 0, NO_REF)
    assert cache.layout.starts == (4096, 8192)
    assert (cache.layout.tensor_bytes, cache.layout.unit_bytes, cache.layout.num_units) == (
        80,
        20,
        4,
    )
    assert peer.resolve(by_id(1, 2)) == Resolved(cache, 2, NO_REF)
    assert missing(peer, BlocksCacheKey(PEER, 4))


def test_resolves_slots(peer):
    keys = (key_record(100, 0, (7, 1)), key_record(101, 2, (8, 1)))
    peer.writer.add(added(1, is_blocks=False, shape=(5, 4), batch_dim_index=1, keys=keys))
    found = peer.resolve(CacheKey(PEER, 101))
    cache = found.cache
    assert (found.slot, found.key_ref) == (2, (8, 1))
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
    (cache,) = peer.reader.caches()
    cache.check()
    assert cache.layout.starts == ()


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


def test_a_layout_travels_with_its_cache(peer):
    peer.writer.add(added(1, kv_layout=to_bytes(layout())))
    peer.writer.add(added(2))
    assert peer.resolve(by_id(1)).cache.kv_layout == layout()
    assert peer.resolve(by_id(2)).cache.kv_layout is None
