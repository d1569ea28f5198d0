"""Reading a directory that changes meanwhile, by several threads, and until a deadline."""

from __future__ import annotations

import threading
import time

import pytest

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._registry.reader import DirectoryReader
from llm_datadist._registry.records import UNREGISTERED, encode_frame
from support.directories import FAR, PEER, Source, added, by_id, key_record


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
