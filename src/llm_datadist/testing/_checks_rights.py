"""Backend checks: a transfer succeeds only while everything that it names is valid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llm_datadist._backends.outcomes import ANY_ENTRY, Code
from llm_datadist.testing._arena import NUM_TENSORS, TENSOR_BYTES, pattern
from llm_datadist.testing._backend_target import digests

if TYPE_CHECKING:
    from llm_datadist._backends.outcomes import Outcome
    from llm_datadist._backends.transfer import Transfer
    from llm_datadist.testing._backend_pair import BackendPair

PIECE = [(0, 0, 4096)]
BOTH = (False, True)


def check_remote_unregistered(pair: BackendPair) -> None:
    """No transfer succeeds after the target has closed the cache's entry."""
    _fill_both(pair)
    pair.ask("close_entry")
    for write in BOTH:
        _expect(pair, pair.transfer(PIECE, write=write), Code.GONE)
    _expect_untouched(pair)


def check_remote_remapped(pair: BackendPair) -> None:
    """After the target has remapped the cache, only its new reference works."""
    _fill_both(pair)
    index, value = pair.ask("reopen_entry")
    for write in BOTH:
        _expect(pair, pair.transfer(PIECE, write=write), Code.GONE)
    _expect_untouched(pair)
    for write in BOTH:
        _expect(pair, pair.transfer(PIECE, write=write, cache_ref=(index, value)), Code.OK)


def check_local_unregistered(pair: BackendPair) -> None:
    """No transfer succeeds after the local entry has been closed."""
    _fill_both(pair)
    pair.local.node.close_entry(*pair.local.cache_ref)
    for write in BOTH:
        _expect(pair, pair.transfer(PIECE, write=write), Code.LOCAL_GONE)
    _expect_untouched(pair)


def check_dead_key(pair: BackendPair) -> None:
    """A read that names a key succeeds only while the key is live."""
    _fill_both(pair)
    _expect(pair, pair.transfer(PIECE, key_ref=pair.remote.key_ref), Code.OK)
    pair.local.arena.fill(8)
    pair.ask("close_key")
    _expect(pair, pair.transfer(PIECE, key_ref=pair.remote.key_ref), Code.GONE)
    _expect_untouched(pair)


def check_stale_directory(pair: BackendPair) -> None:
    """A write that names an old version of the directory is refused."""
    _fill_both(pair)
    version = pair.ask("append_record")
    _expect(pair, pair.transfer(PIECE, write=True, version=version), Code.OK)
    pair.ask("fill", 7)
    pair.ask("append_record")
    _expect(pair, pair.transfer(PIECE, write=True, version=version), Code.STALE)
    _expect_untouched(pair)


def check_writes_outside_registered_memory(pair: BackendPair) -> None:
    """A write is refused as a whole if any byte of it lies outside the target's ranges."""
    _fill_both(pair)
    beyond = NUM_TENSORS * TENSOR_BYTES
    for cache_ref in (pair.remote.cache_ref, ANY_ENTRY):
        for bad in ((0, beyond, 16), (0, beyond - 8, 16), (0, TENSOR_BYTES - 8, 16)):
            pieces = [*PIECE, bad]
            _expect(pair, pair.transfer(pieces, write=True, cache_ref=cache_ref), Code.DENIED)
    _expect_untouched(pair)
    _expect(pair, pair.transfer(PIECE, write=True, cache_ref=ANY_ENTRY), Code.OK)


def check_addresses_that_wrap(pair: BackendPair) -> None:
    """A range that wraps around the address space is refused (ValueError is accepted, too)."""
    _fill_both(pair)
    for write in BOTH:
        transfer = pair.transfer(PIECE, write=write)
        transfer.remote[:] = np.iinfo(np.uint64).max - 100
        try:
            outcome = pair.run(transfer)
        except ValueError:
            continue
        assert outcome.code in {Code.DENIED, Code.REMOTE_FAULT, Code.PROTOCOL}, outcome
    _expect_untouched(pair)


def check_dropped_link(pair: BackendPair) -> None:
    """No transfer succeeds after the target has ended the link."""
    _fill_both(pair)
    pair.ask("drop_link")
    for write in BOTH:
        outcome = pair.run(pair.transfer(PIECE, write=write, timeout_s=2))
        assert outcome.code in {Code.GONE, Code.PEER_DEAD}, outcome
    _expect_untouched(pair)


def check_closed_channel(pair: BackendPair) -> None:
    """A closed channel transfers nothing; closing it again does nothing."""
    _fill_both(pair)
    pair.local.close_link()
    pair.local.channel.close()
    for write in BOTH:
        outcome = pair.run(pair.transfer(PIECE, write=write, timeout_s=2))
        assert outcome.code in {Code.CANCELLED, Code.PEER_DEAD}, outcome
    _expect_untouched(pair)


def check_closed_instance(pair: BackendPair) -> None:
    """Every transfer fails after the local instance has closed."""
    _fill_both(pair)
    pair.local.node.close()
    for write in BOTH:
        outcome = pair.run(pair.transfer(PIECE, write=write, timeout_s=2))
        assert outcome.code in {Code.CLOSED, Code.LOCAL_GONE}, outcome
    _expect_untouched(pair)


def _fill_both(pair: BackendPair) -> None:
    pair.ask("fill", 7)
    pair.local.arena.fill(8)


def _expect(pair: BackendPair, transfer: Transfer, code: Code) -> Outcome:
    outcome = pair.run(transfer)
    direction = "write" if transfer.write else "read"
    assert outcome.code == code, f"{direction}: {outcome}, expected {code.name}"
    return outcome


def _expect_untouched(pair: BackendPair) -> None:
    """Check that neither memory has changed since `_fill_both`."""
    assert np.array_equal(pair.local.arena.contents(), pattern(8)), "bytes landed locally"
    assert pair.ask("digest") == digests(pattern(7)), "bytes landed at the target"
