"""Every call that takes an index, with any integer: it is taken, or refused with the true count."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMException,
    LLMStatusCode,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from support.setup import info_of, started

NUM_BLOCKS = 8
KEY, SLOT = BlocksCacheKey(2), CacheKeyByIdAndIndex(2, 2)
REFUSED = {LLMStatusCode.LLM_PARAM_INVALID, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST}
POWERS = [sign * 2**bits for bits in (31, 32, 53, 62, 63, 64, 70) for sign in (1, -1)]
INTEGERS = st.one_of(
    st.integers(),
    st.integers(-2, NUM_BLOCKS + 1),
    st.builds(lambda power, more: power + more, st.sampled_from(POWERS), st.integers(-1, 1)),
    st.integers(0, 2**64 - 1).map(np.uint64),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
)


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


class World:
    """Two linked instances with the same tensors as a blocks cache (id 1) and as slots (id 2)."""

    def __init__(self):
        self.sides = [started(number) for number in (1, 2)]
        assert self.sides[0].link_clusters([info_of(self.sides[1])])[0] == 0
        self.memory = np.zeros((8, NUM_BLOCKS, 64), np.float32)
        desc = CacheDesc(4, [NUM_BLOCKS, 64], DataType.DT_FLOAT)
        self.addrs = [tensor.ctypes.data for tensor in self.memory]
        made = []
        for side, where in zip(self.sides, (self.addrs[:4], self.addrs[4:]), strict=True):
            key = BlocksCacheKey(side.cluster_id)
            made.append(side.cache_manager.register_blocks_cache(desc, where, key))
            made.append(side.cache_manager.register_cache(desc, where))
        self.blocks, self.slots, _, _ = made
        self.manager = self.sides[0].cache_manager

    def transfer(self, cache, layers, *lists, slot=0):
        count = 2 * len(layers)
        config = TransferConfig(2, self.addrs[4 : 4 + count], layers, slot)
        self.manager.transfer_cache_async(cache, Ready(), [config], *lists).synchronize()

    def close(self):
        for side in self.sides:
            side.finalize()


@pytest.fixture(scope="module")
def world():
    made = World()
    yield made
    made.close()


CALLS = {
    "pull_blocks src": lambda w, n: w.manager.pull_blocks(KEY, w.blocks, [n], [0]),
    "pull_blocks more src": lambda w, n: w.manager.pull_blocks(KEY, w.blocks, [1, n], [0, 1]),
    "pull_blocks dst": lambda w, n: w.manager.pull_blocks(KEY, w.blocks, [0], [n]),
    "pull_blocks slot": lambda w, n: w.manager.pull_blocks(SLOT, w.blocks, [], [n]),
    "pull_blocks model": lambda w, n: w.manager.pull_blocks(BlocksCacheKey(2, n), w.blocks),
    "push_blocks src": lambda w, n: w.manager.push_blocks(KEY, w.blocks, (n,), (0,)),
    "push_blocks dst": lambda w, n: w.manager.push_blocks(KEY, w.blocks, [0], [n]),
    "push_blocks more dst": lambda w, n: w.manager.push_blocks(KEY, w.blocks, [0, 1], [n, 7]),
    "copy_blocks key": lambda w, n: w.manager.copy_blocks(w.blocks, {n: [3]}),
    "copy_blocks value": lambda w, n: w.manager.copy_blocks(w.blocks, {1: [2, n]}),
    "swap_blocks key": lambda w, n: w.manager.swap_blocks(w.blocks, w.blocks, {n: 7}),
    "swap_blocks value": lambda w, n: w.manager.swap_blocks(w.blocks, w.blocks, {1: 2, 3: n}),
    "pull_cache slot": lambda w, n: w.manager.pull_cache(SLOT, w.slots, n),
    "pull_cache key": lambda w, n: w.manager.pull_cache(CacheKeyByIdAndIndex(2, 2, n), w.slots),
    "pull_cache id": lambda w, n: w.manager.pull_cache(CacheKeyByIdAndIndex(2, n), w.slots),
    "push_cache slot": lambda w, n: w.manager.push_cache(SLOT, w.slots, n),
    "copy_cache dst": lambda w, n: w.manager.copy_cache(w.slots, w.slots, n, 1),
    "copy_cache src": lambda w, n: w.manager.copy_cache(w.slots, w.slots, 1, n),
    "transfer src": lambda w, n: w.transfer(w.blocks, range(2), [n], [0]),
    "transfer slot": lambda w, n: w.transfer(w.slots, range(1), slot=n),
    "lease": lambda w, n: w.manager.lease(KEY, [0, n]).release(),
}
LAYERS = {
    "pull_cache": lambda w, r: w.manager.pull_cache(SLOT, w.slots, src_layer_range=r),
    "pull_blocks": lambda w, r: w.manager.pull_blocks(KEY, w.blocks, dst_layer_range=r),
    "push_cache": lambda w, r: w.manager.push_cache(SLOT, w.slots, 0, r, r),
    "push_blocks": lambda w, r: w.manager.push_blocks(KEY, w.blocks, [], [], r, r),
    "config": lambda w, r: TransferConfig(2, [], r),
    "source of a key": lambda w, r: TransferWithCacheKeyConfig(KEY, r, range(1)).ranges("x"),
    "destination of a key": lambda w, r: TransferWithCacheKeyConfig(KEY, range(1), r).ranges("x"),
}


def taken(world, call, argument):
    """Return whether a call takes an argument; it may refuse it in the documented ways only."""
    try:
        call(world, argument)
    except ValueError:
        return False
    except LLMException as error:
        assert error.status_code in REFUSED, error
        for count in re.findall(r"has (\d+) (?:blocks|slots)", str(error)):
            assert int(count) == NUM_BLOCKS, error
        return False
    return True


@pytest.mark.parametrize("name", CALLS)
def test_an_index_that_there_is_is_taken(world, name):
    """Otherwise a call that refuses everything would pass the next test."""
    only_one = {"pull_blocks model": 0, "pull_cache id": 2}
    assert taken(world, CALLS[name], only_one.get(name, 4))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_there_are_are_taken(world, name):
    as_many_as_the_other_side = {"pull_cache": range(2), "pull_blocks": range(2)}
    assert taken(world, LAYERS[name], as_many_as_the_other_side.get(name, range(1)))


@pytest.mark.parametrize("name", CALLS)
@settings(deadline=None, max_examples=30)
@given(number=INTEGERS)
def test_an_index_is_taken_or_refused(world, name, number):
    if taken(world, CALLS[name], number):
        assert 0 <= number < NUM_BLOCKS


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", [True, False, np.bool_(True), 1.0, "1", None])
def test_no_other_type_is_an_index(world, name, value):
    with pytest.raises(TypeError):
        CALLS[name](world, value)


@pytest.mark.parametrize("number", [2**63, 2**64, 2**70, np.uint64(2**63), np.uint64(2**64 - 1)])
@pytest.mark.parametrize("more", [[], [1]])
def test_a_destination_at_bare_addresses_that_does_not_exist(world, number, more):
    with pytest.raises(ValueError, match=rf"dst_block_indices\[{len(more)}\] must be in"):
        world.transfer(world.blocks, range(2), [0, *more], [*more, number])


@pytest.mark.parametrize("name", LAYERS)
@settings(deadline=None, max_examples=30)
@given(start=st.one_of(st.integers(0, 2), st.integers()), stop=INTEGERS.map(int))
def test_layers_are_taken_or_refused(world, name, start, stop):
    if taken(world, LAYERS[name], range(start, stop)):
        assert 0 <= start < stop
