"""The owner's side of leases, without links: requests, refusals, ends, the callback."""

from types import SimpleNamespace

import numpy as np
import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, CacheKey, DataType
from llm_datadist._engine.leases import book
from llm_datadist._engine.leases.lender import Lender
from llm_datadist._engine.link.messages import (
    Granted,
    Lend,
    Refused,
    Release,
    Renew,
    decode_answer,
)
from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._protocol.codec import ProtocolError
from llm_datadist._registry import CacheRegistry
from llm_datadist._types.lease import LeaseEnd
from llm_datadist.testing.in_memory_node import InMemoryNode

S = LLMStatusCode
OWN, READER = 1, 2
DESC = CacheDesc(2, [8, 64], DataType.DT_INT8)
ADDRS = [0x10000, 0x20000]
LONG_MS = 60_000


class Owner:
    """An instance with caches; calls that are scheduled run when the test says."""

    def __init__(self):
        self.cluster_id = OWN
        self.registry = CacheRegistry(InMemoryNode())
        self.links = self
        self.scheduled = []
        self.lender = Lender(self)
        self.registry.on_gone = self.lender.cache_gone
        self.blocks = self.registry.register_blocks_cache(DESC, ADDRS, BlocksCacheKey(OWN))
        keys = [CacheKey(OWN, 11), CacheKey(OWN, 12)]
        self.slots = self.registry.register_cache(DESC, ADDRS, keys)
        self.ends = []
        self.lender.on_end(self.ends.append)

    def call_later(self, seconds, call):
        self.scheduled.append((seconds, call))

    def run_scheduled(self):
        """Run what is due at once; expiries stay."""
        while due := [entry for entry in self.scheduled if entry[0] == 0]:
            self.scheduled.remove(due[0])
            due[0][1]()

    def lend(self, key, blocks=None, *, lease_id=1, link=None, ttl_ms=LONG_MS):
        words = None if blocks is None else np.array(blocks, np.dtype("<u4")).tobytes()
        message = Lend(lease_id, key, words, ttl_ms)
        return decode_answer(self.lender.lend(link or a_link(), message))

    def leased(self, cache=None):
        return self.lender.leased_blocks(cache or self.blocks)


def a_link(link_id=5, *, alive=True):
    return SimpleNamespace(link_id=link_id, cluster_id=READER, alive=alive)


@pytest.fixture
def owner():
    return Owner()


def test_all_that_a_key_names(owner):
    by_id, blocks = (owner.blocks.cache_id,), owner.blocks
    for lease_id, (key, given, cache, expected) in enumerate(
        (
            ((0,), None, blocks, range(8)),
            ((0,), (), blocks, ()),
            ((0,), (5, 1, 1), blocks, (1, 5)),
            ((*by_id, 0), (2, 3), blocks, (2, 3)),
            ((*by_id, 4), None, blocks, (4,)),
            ((owner.slots.cache_id, 5), None, owner.slots, (5,)),
            ((12, 0, 2**64 - 1), None, owner.slots, (1,)),
        )
    ):
        assert owner.lend(key, given, lease_id=lease_id) == Granted(), key
        assert owner.leased(cache) == set(expected), key
        owner.lender.release(a_link(), Release(lease_id))
        assert owner.leased(cache) == frozenset()


def test_every_end_is_reported_not_only_the_first(owner):
    for lease_id in (1, 2):
        owner.lend((0,), [3], lease_id=lease_id)
        owner.lender.release(a_link(), Release(lease_id))
        owner.run_scheduled()
        assert len(owner.ends) == lease_id
    owner.lend((0,), [3], lease_id=3)
    owner.lender.release(a_link(), Release(3))
    owner.lender.on_end(None)
    owner.run_scheduled()  # nothing is called or logged
    assert len(owner.ends) == 2


def test_a_cache_that_ends_while_it_is_leased_is_not(owner):
    grant, cache_id = owner.lender._book.grant, owner.blocks.cache_id

    def unregister_and_grant(*arguments):
        owner.registry.unregister_cache(cache_id)
        grant(*arguments)

    owner.lender._book.grant = unregister_and_grant
    assert owner.lend((0,)).status == S.LLM_KV_CACHE_NOT_EXIST
    assert owner.lender._book.leased(cache_id) == frozenset()


def test_what_cannot_be_leased(owner):
    """As a pull of the same key would say it; nothing is leased then."""
    hidden = owner.registry.register_blocks_cache(DESC, ADDRS, None, remote_accessible=False)
    blocks, slots = owner.blocks.cache_id, owner.slots.cache_id
    for key, given, status, words in (
        ((77,), [0], S.LLM_KV_CACHE_NOT_EXIST, "model_id=77"),
        ((10**6, 0), None, S.LLM_KV_CACHE_NOT_EXIST, "1000000"),
        ((99, 0, 0), None, S.LLM_KV_CACHE_NOT_EXIST, "99"),
        ((0,), [0, 8], S.LLM_PARAM_INVALID, "block 8"),
        ((blocks, 8), None, S.LLM_PARAM_INVALID, "block 8"),
        ((blocks, 1), [0], S.LLM_PARAM_INVALID, "blocks were given"),
        ((slots, 8), None, S.LLM_PARAM_INVALID, "slot 8"),
        ((slots, 0), [0], S.LLM_PARAM_INVALID, "blocks were given"),
        ((11, 0, 2**64 - 1), [0], S.LLM_PARAM_INVALID, "blocks were given"),
        ((hidden.cache_id, 0), None, S.LLM_PARAM_INVALID, "not remote-accessible"),
    ):
        answer = owner.lend(key, given)
        assert isinstance(answer, Refused), key
        assert answer.status == status
        assert words in answer.problem
    for cache in (owner.blocks, owner.slots, hidden):
        assert owner.leased(cache) == frozenset()
    with pytest.raises(ProtocolError):
        owner.lend((1, 2**63))
    other = CacheRegistry(InMemoryNode()).register_blocks_cache(DESC, ADDRS)
    with pytest.raises(LLMException, match="another instance"):
        owner.lender.leased_blocks(other)


def test_a_link_has_a_limit(owner, monkeypatch):
    monkeypatch.setattr(book, "MOST_LEASES", 1)
    assert owner.lend((0,)) == Granted()
    answer = owner.lend((0,), lease_id=2)
    assert (answer.status, "release leases" in answer.remedy) == (S.LLM_OUT_OF_MEMORY, True)
    assert owner.lend((0,), link=a_link(6)) == Granted()


def test_leases_of_several_readers_add_up_and_are_reported_in_order(owner):
    for link_id in (5, 6):
        owner.lend((0,), [0, link_id], link=a_link(link_id))
    assert owner.leased() == {0, 5, 6}
    owner.lender.release(a_link(5), Release(1))
    owner.lender.release(a_link(5), Release(1))
    owner.lender.link_ended(6)
    assert owner.leased() == frozenset()
    assert owner.ends == []  # never on the thread of a peer's request
    owner.run_scheduled()
    cache_id = owner.blocks.cache_id
    assert owner.ends == [
        LeaseEnd(READER, cache_id, (0, 5), "released"),
        LeaseEnd(READER, cache_id, (0, 6), "peer lost"),
    ]


def test_leases_end_with_their_cache(owner):
    owner.lend((0,), [3])
    owner.registry.unregister_cache(owner.blocks.cache_id)
    owner.run_scheduled()
    assert [end.reason for end in owner.ends] == ["cache gone"]
    answer = decode_answer(owner.lender.renew(a_link(), Renew(1, LONG_MS)))
    assert answer.status == S.LLM_KV_CACHE_NOT_EXIST


def test_a_link_that_ended_meanwhile_keeps_no_lease(owner):
    owner.lend((0,), link=a_link(alive=False))
    assert owner.leased() == frozenset()


def test_the_next_expiry_is_watched(owner):
    owner.lend((0,), [1], ttl_ms=LONG_MS)
    owner.lend((0,), [2], ttl_ms=2 * LONG_MS, lease_id=2)
    ((_, expire),) = owner.scheduled
    owner.lend((0,), [3], ttl_ms=LONG_MS // 2, lease_id=3)
    assert [round(seconds) for seconds, _ in owner.scheduled] == [60, 30]
    assert decode_answer(owner.lender.renew(a_link(), Renew(3, LONG_MS))) == Granted()
    expire()  # a false alarm: nothing has expired yet
    assert owner.leased() == {1, 2, 3}
    assert [round(seconds) for seconds, _ in owner.scheduled] == [60, 30, 30]


@pytest.mark.expects_log("callback of on_lease_end failed")
@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_errors_of_the_callback_stay_there(owner, kind):
    def callback(end):
        owner.ends.append(end)
        raise kind("of the callback")

    owner.lender.on_end(callback)
    for lease_id in range(2):
        owner.lend((0,), [lease_id], lease_id=lease_id)
    owner.lender.link_ended(5)
    owner.run_scheduled()
    assert [end.blocks for end in owner.ends] == [(0,), (1,)]
