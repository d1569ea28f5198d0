"""What no reader takes from a peer's directory, and no owner publishes."""

from __future__ import annotations

import gc

import pytest

from llm_datadist._plan.layouts import to_bytes
from llm_datadist._registry import remote_caches, writer
from llm_datadist._registry.reader import DirectoryReader
from llm_datadist._registry.records import (
    MAX_LOG_BYTES,
    REMOVED,
    UNREGISTERED,
    Added,
    CorruptDirectory,
    encode_frame,
)
from llm_datadist._registry.writer import DirectoryFull
from llm_datadist._types import BlocksCacheKey
from llm_datadist.testing.in_memory_node import InMemoryNode
from support.directories import FAR, PEER, Source, added, by_id, key_record, layout


def test_a_log_beyond_the_limit_is_not_read(peer):
    peer.source.version = lambda _deadline_ns: MAX_LOG_BYTES + 1
    with pytest.raises(CorruptDirectory, match=f"at most {MAX_LOG_BYTES}"):
        peer.refresh()
    assert peer.source.reads == []


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


def test_one_huge_record_is_refused_before_it_is_read():
    log = InMemoryNode(log_capacity=4 << 20)
    log.append(((2 << 20).to_bytes(4, "little")) + bytes(2 << 20))
    with pytest.raises(CorruptDirectory, match="a record of 2097152 bytes"):
        DirectoryReader(Source(log), PEER).refresh("pull_blocks", FAR)


def test_a_cache_that_is_there_twice_is_refused(peer):
    peer.log.append(encode_frame(added(1)) * 2)
    with pytest.raises(CorruptDirectory, match="cache 1 is there twice"):
        peer.refresh()


def test_what_stands_before_a_bad_record_counts_once(peer):
    """Each further call finds the bad one again, and applies no record a second time."""
    for cache_id in (1, 2):
        peer.writer.add(added(cache_id))
    good = peer.writer.tail
    peer.log.append(encode_frame(added(2)) + encode_frame(added(3)))
    for _ in range(2):
        with pytest.raises(CorruptDirectory, match="cache 2 is there twice"):
            peer.refresh()
        assert [cache.cache_id for cache in peer.reader.caches()] == [1, 2]
        assert peer.reader.version == good
    assert peer.resolve(by_id(2)).cache.cache_id == 2


@pytest.mark.parametrize("is_applied", [True, False])
def test_after_a_signal_handler_has_raised_the_whole_log_is_read(peer, monkeypatch, is_applied):
    """Nothing is applied twice, or left out, if the handler ran between the two steps of it."""
    peer.writer.add(added(1))
    peer.refresh()
    apply = remote_caches.RemoteTables.apply

    def interrupted(tables, record):
        if is_applied:
            apply(tables, record)
        raise KeyboardInterrupt

    peer.writer.add(added(2))
    monkeypatch.setattr(remote_caches.RemoteTables, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        peer.refresh()
    monkeypatch.setattr(remote_caches.RemoteTables, "apply", apply)
    peer.writer.add(added(3))
    peer.refresh()
    assert [cache.cache_id for cache in peer.reader.caches()] == [1, 2, 3]
    assert peer.reader.version == peer.source.version(0)


def test_pythons_garbage_collector_does_not_look_at_each_cache_of_a_peer(peer):
    """It would take longer than parsing, with tens of thousands of them."""
    peer.writer.add(added(1, blocks_key=3))
    found = peer.resolve(BlocksCacheKey(PEER, 3), fresh=True)
    assert not gc.is_tracked(found)
    assert not gc.is_tracked(found.cache)
    assert not gc.is_tracked(found.cache.record)
