"""The registry, and a peer that reads its directory, against dictionaries.

The model says at every step what a peer must find under every key, who holds which memory and what
the pool has left; some readers follow every change, one looks only now and then.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llm_datadist._errors import LLMException, LLMStatusCode
from llm_datadist._registry import CacheRegistry, DirectoryReader, Pool
from llm_datadist._types import (
    BlocksCacheKey,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    Placement,
)
from llm_datadist.testing.in_memory_node import InMemoryNode

pytestmark = pytest.mark.expects_log("now names cache")

OWN = 3
LIMIT = 8
NUM_PAGES = 6
BATCH = 3
FAR = time.monotonic_ns() + 10**15
PLACEHOLDER = 2**64 - 1

REQUESTS = st.integers(1, 4)
KEY_LISTS = st.lists(REQUESTS | st.just(PLACEHOLDER), max_size=BATCH + 1)
MODELS = st.none() | st.integers(0, 1)


@dataclass
class Model:
    """One live cache."""

    cache: object
    num_tensors: int
    allocated: bool
    accessible: bool = True
    named: bool = True
    keys: dict[int, int] = field(default_factory=dict)  # req_id -> slot


class Source:
    def __init__(self, node):
        self.node = node

    def version(self, _deadline_ns):
        return self.node.version()

    def read_log(self, offset, size, _deadline_ns):
        return self.node.read_log(offset, size)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        logging.getLogger("llm_datadist").setLevel(logging.ERROR)
        self.node = InMemoryNode(guard_capacity=64, log_capacity=600)
        self.pool = Pool(1 << 32, NUM_PAGES << 10, 10)
        self.registry = CacheRegistry(
            self.node,
            max_registered_addrs=LIMIT,
            pools={Placement.DEVICE: self.pool},
            log_capacity=600,
        )
        self.live: dict[int, Model] = {}
        self.dead: list[object] = []
        self.blocks_keys: dict[int, int] = {}
        self.last_id = 0
        self.follower = DirectoryReader(Source(self.node), OWN)
        self.sleeper = DirectoryReader(Source(self.node), OWN)

    def teardown(self):
        self.registry.close()
        assert self.node.statistics() == (0, 0, 0)
        assert self.pool.statistics().free == NUM_PAGES << 10
        logging.getLogger("llm_datadist").setLevel(logging.NOTSET)

    # ---- the model

    def holder(self, request):
        """Id of the cache that has this key, or None."""
        return next((i for i, model in self.live.items() if request in model.keys), None)

    def registered(self):
        return sum(model.num_tensors for model in self.live.values() if not model.allocated)

    def add(self, cache, blocks_model=None, keys=(), **facts):
        self.last_id += 1
        assert cache.cache_id == self.last_id
        slots = {request: slot for slot, request in enumerate(keys) if request != PLACEHOLDER}
        self.live[cache.cache_id] = Model(cache, keys=slots, **facts)
        if blocks_model is not None:
            self.blocks_keys[blocks_model] = cache.cache_id

    def drop_if_free(self, cache_id):
        model = self.live[cache_id]
        if not model.named and not (model.allocated and model.keys):
            self.forget(cache_id)

    def forget(self, cache_id):
        self.dead.append(self.live.pop(cache_id).cache)
        self.blocks_keys = {key: i for key, i in self.blocks_keys.items() if i != cache_id}

    def status_of(self, call):
        """Run a call that may be refused; return (result, status)."""
        try:
            return call(), None
        except LLMException as error:
            return None, error.status_code

    def expected(self, keys, num_tensors, allocated):
        wanted = set(keys) - {PLACEHOLDER}
        if len(keys) > BATCH or any(self.holder(request) for request in wanted):
            return LLMStatusCode.LLM_PARAM_INVALID
        if not allocated and self.registered() + num_tensors > LIMIT:
            return LLMStatusCode.LLM_PARAM_INVALID
        return None

    # ---- rules

    @rule(num_tensors=st.integers(1, 3), keys=KEY_LISTS, accessible=st.booleans())
    def register(self, num_tensors, keys, accessible):
        desc = CacheDesc(num_tensors, (BATCH, 8), DataType.DT_INT8)
        cache_keys = [CacheKey(OWN, request) for request in keys]
        addrs = [4096 * place for place in range(1, num_tensors + 1)]
        expected = self.expected(keys, num_tensors, allocated=False)
        cache, status = self.status_of(
            lambda: self.registry.register_cache(desc, addrs, cache_keys, accessible)
        )
        self.settle(status, expected)
        if status is None:
            self.add(
                cache, keys=keys, num_tensors=num_tensors, allocated=False, accessible=accessible
            )

    @rule(num_tensors=st.integers(1, 3), model_id=MODELS)
    def register_blocks(self, num_tensors, model_id):
        desc = CacheDesc(num_tensors, (BATCH, 8), DataType.DT_INT8)
        key = None if model_id is None else BlocksCacheKey(OWN, model_id)
        addrs = [4096 * place for place in range(1, num_tensors + 1)]
        expected = self.expected((), num_tensors, allocated=False)
        cache, status = self.status_of(
            lambda: self.registry.register_blocks_cache(desc, addrs, key)
        )
        self.settle(status, expected)
        if status is None:
            self.add(cache, model_id, num_tensors=num_tensors, allocated=False)

    @rule(num_tensors=st.integers(1, 3), keys=KEY_LISTS)
    def allocate(self, num_tensors, keys):
        desc = CacheDesc(num_tensors, (BATCH, 8), DataType.DT_INT8)
        cache_keys = [CacheKey(OWN, request) for request in keys]
        expected = self.expected(keys, num_tensors, allocated=True)
        if len(keys) <= BATCH and self.pages_left() < num_tensors:
            expected = LLMStatusCode.LLM_OUT_OF_MEMORY
        cache, status = self.status_of(lambda: self.registry.allocate_cache(desc, cache_keys))
        self.settle(status, expected)
        if status is None:
            self.add(cache, keys=keys, num_tensors=num_tensors, allocated=True)

    @rule(num_tensors=st.integers(1, 3), model_id=MODELS)
    def allocate_blocks(self, num_tensors, model_id):
        desc = CacheDesc(num_tensors, (BATCH, 8), DataType.DT_INT8)
        key = None if model_id is None else BlocksCacheKey(OWN, model_id)
        expected = LLMStatusCode.LLM_OUT_OF_MEMORY if self.pages_left() < num_tensors else None
        cache, status = self.status_of(lambda: self.registry.allocate_blocks_cache(desc, key))
        self.settle(status, expected)
        if status is None:
            self.add(cache, model_id, num_tensors=num_tensors, allocated=True)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data):
        model = data.draw(st.sampled_from(list(self.live.values())))
        cache_id = model.cache.cache_id
        if model.allocated:
            self.registry.deallocate("deallocate_cache", model.cache)
            model.named = False
            self.drop_if_free(cache_id)
        else:
            self.registry.unregister_cache(cache_id)
            self.forget(cache_id)

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def end_again(self, data):
        cache = data.draw(st.sampled_from(self.dead))
        self.registry.unregister_cache(cache.cache_id)
        self.registry.deallocate("deallocate_cache", cache)
        with pytest.raises(LLMException) as error:
            self.registry.find("copy_cache", cache)
        assert error.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST

    @rule(request=REQUESTS)
    def remove_key(self, request):
        self.registry.remove_cache_key(CacheKey(OWN, request))
        self.lose_key(request)

    @rule(request=REQUESTS, reaped=st.booleans())
    def consume(self, request, reaped):
        cache_id = self.holder(request)
        if cache_id is None:
            return
        self.refresh(self.follower)
        found = self.follower.lookup(CacheKey(OWN, request))
        assert self.node.consume(*found.key_ref)
        assert not self.node.consume(*found.key_ref)
        self.lose_key(request)
        if reaped:
            assert self.registry.reap() >= 1

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def remap(self, data):
        cache_id = data.draw(st.sampled_from(list(self.live)))
        local = self.registry.get(cache_id)
        if local is not None:  # it may be freed already, by a consumed key that no one reaped
            before = local.ref
            self.registry.remap([local])
            assert local.ref == (before[0], before[1] + 2)

    @rule()
    def wake_the_sleeper(self):
        self.compare(self.sleeper)

    def lose_key(self, request):
        cache_id = self.holder(request)
        if cache_id is not None:
            del self.live[cache_id].keys[request]
            self.drop_if_free(cache_id)

    def pages_left(self):
        used = sum(model.num_tensors for model in self.live.values() if model.allocated)
        return NUM_PAGES - used

    def settle(self, status, expected):
        full = status is LLMStatusCode.LLM_OUT_OF_MEMORY and self.alive_bytes() > 300
        assert status is expected or full  # the log is small, so that it is compacted often

    def alive_bytes(self):
        return sum(60 + 25 * len(model.keys) for model in self.live.values())

    # ---- what peers see

    def refresh(self, reader):
        reader.refresh("pull_blocks", FAR)

    def compare(self, reader):
        self.registry.reap()
        self.refresh(reader)
        assert {cache.cache_id for cache in reader.caches()} == set(self.live)
        for request in (1, 2, 3, 4):
            found = reader.lookup(CacheKey(OWN, request))
            holder = self.holder(request)
            assert (found and found.cache.cache_id) == holder
            if found:
                assert found.slot == self.live[holder].keys[request]
                assert self.node.guard(found.key_ref[0]) == found.key_ref[1]
        for model_id in (0, 1):
            found = reader.lookup(BlocksCacheKey(OWN, model_id))
            assert (found and found.cache.cache_id) == self.blocks_keys.get(model_id)
        for cache_id, model in self.live.items():
            found = reader.lookup(CacheKeyByIdAndIndex(OWN, cache_id))
            assert (found is not None) == model.named
        for remote in reader.caches():
            model = self.live[remote.cache_id]
            assert remote.accessible == model.accessible
            assert self.node.guard(remote.ref[0]) == remote.ref[1]
            assert remote.ref == self.registry.get(remote.cache_id).ref
            addrs = tuple(model.cache.tensor_addrs) if model.accessible else ()
            remote.check()
            assert remote.layout.starts == addrs

    @invariant()
    def a_peer_that_looks_sees_what_there_is(self):
        self.compare(self.follower)

    @invariant()
    def nothing_is_held_that_no_one_holds(self):
        statistics = self.node.statistics()
        assert statistics.live_entries == len(self.live)
        assert statistics.live_guards == sum(len(model.keys) for model in self.live.values())
        assert statistics.used_slots == statistics.live_entries + statistics.live_guards
        assert self.pool.statistics().free == self.pages_left() << 10


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
