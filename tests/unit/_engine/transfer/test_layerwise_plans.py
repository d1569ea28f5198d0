"""What each layer of a layer-wise push sends where, and what the peer's cache must be like."""

from types import SimpleNamespace

import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LLMException,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from llm_datadist._engine.transfer.layerwise_plans import make_destination, make_source
from llm_datadist._errors import LLMStatusCode
from llm_datadist._registry import CacheRegistry, Resolved
from llm_datadist._registry.layouts import cache_layout
from llm_datadist._types.refs import NO_REF
from llm_datadist.testing.in_memory_node import InMemoryNode

PEER, TENSORS, UNITS, UNIT = 2, 8, 4, 64
LAYERS = range(1, 3)  # of four
BLOCKS, SLOT = BlocksCacheKey(PEER), CacheKeyByIdAndIndex(PEER, 1, 2)


def starts(first, tensors=TENSORS):
    return [first + 0x10000 * tensor for tensor in range(tensors)]


def a_remote(*, is_blocks=True, units=UNITS, unit=UNIT, tensors=TENSORS):
    desc = CacheDesc(tensors, [units, unit], DataType.DT_INT8)
    layout = cache_layout(desc, starts(0x900000, tensors), is_blocks=is_blocks)
    return SimpleNamespace(layout=layout, is_blocks=is_blocks)


class Pusher:
    """An instance whose pushes are written down as (local, remote, bytes)."""

    def __init__(self, remote=None, slot=0, *, is_blocks=True):
        registry = CacheRegistry(InMemoryNode())
        desc = CacheDesc(TENSORS, [UNITS, UNIT], DataType.DT_INT8)
        register = registry.register_blocks_cache if is_blocks else registry.register_cache
        self.local = registry.find("x", register(desc, starts(0x100000)))
        self.found = Resolved(remote, slot, NO_REF)

    def push_raw(self, operation, cluster_id, local, plan, trace):
        assert cluster_id == PEER
        self._note(plan)

    def push_planned(self, operation, key, local, plan, trace):
        self._note(plan(self.found))

    def _note(self, plan):
        self.pushed = list(zip(*plan.rows.tolist(), strict=True))
        assert sum(size for _, _, size in self.pushed) == plan.total_bytes

    def send(self, layer, config, *indices):
        source = make_source(
            "x", self.local, *(*indices, None, None, None)[:3], all_blocks_allowed=True
        )
        make_destination(self, source, config).send(layer)
        return self.pushed


def by_key(key, src=LAYERS, dst=LAYERS, slot=0):
    return TransferWithCacheKeyConfig(key, src, dst, slot)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_n_of_a_range_goes_to_the_nth_pair_of_addresses(layer):
    pusher = Pusher(is_blocks=False)
    addrs = [0x900000, 0x800000, 0x700000, 0x600000]
    pair = addrs[2 * (layer - 1) : 2 * layer]
    locals_ = [start + 3 * UNIT for start in starts(0x100000)[2 * layer : 2 * layer + 2]]
    expected = list(zip(locals_, pair, [UNIT, UNIT], strict=True))
    assert pusher.send(layer, TransferConfig(PEER, addrs, LAYERS, 3)) == expected


def test_blocks_go_to_blocks_behind_bare_addresses():
    pusher = Pusher()
    config = TransferConfig(PEER, [0x900000, 0x800000], range(2, 3))
    pushed = pusher.send(2, config, [0, 3], [5, 1], UNIT)
    assert [(local - 0x140000, remote) for local, remote, _ in pushed] == [
        (0, 0x900000 + 5 * UNIT),
        (3 * UNIT, 0x900000 + UNIT),
        (0x10000, 0x800000 + 5 * UNIT),
        (0x10000 + 3 * UNIT, 0x800000 + UNIT),
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_n_of_a_range_goes_to_layer_n_of_the_other(layer):
    pusher = Pusher(a_remote())
    pushed = pusher.send(layer, by_key(BLOCKS, LAYERS, range(2, 4)), [1], [2])
    remote = starts(0x900000)[2 * (layer + 1) : 2 * (layer + 2)]
    locals_ = starts(0x100000)[2 * layer : 2 * layer + 2]
    assert pushed == [
        (local + UNIT, start + 2 * UNIT, UNIT) for local, start in zip(locals_, remote, strict=True)
    ]


def test_a_slot_goes_to_the_slot_of_the_key():
    pusher = Pusher(a_remote(is_blocks=False), slot=2, is_blocks=False)
    pushed = pusher.send(1, by_key(SLOT, slot=3))
    assert pushed[0] == (0x120000 + 3 * UNIT, 0x920000 + 2 * UNIT, UNIT)


REFUSALS = {
    "layers": (a_remote(tensors=4), BLOCKS, ([0], [0]), "beyond the peer's 4 tensors"),
    "blocks": (a_remote(), BLOCKS, ([0], [UNITS]), "block 4 of the peer's 4"),
    "block bytes": (a_remote(unit=UNIT + 1), BLOCKS, ([0], [0]), "64 bytes locally, 65"),
    "kind": (a_remote(is_blocks=False), BLOCKS, ([0], [0]), "of the other kind"),
    "kind of a slot": (a_remote(), SLOT, (), "of the other kind"),
    "slots": (a_remote(is_blocks=False, units=2), SLOT, (), "slot 2 of the peer's 2"),
    "slot bytes": (a_remote(is_blocks=False, unit=UNIT - 1), SLOT, (), "64 bytes locally, 63"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_push_that_the_peers_cache_cannot_take(case):
    remote, key, indices, text = REFUSALS[case]
    slot = 2 if key is SLOT else 0
    pusher = Pusher(remote, slot, is_blocks=key is BLOCKS)
    with pytest.raises(LLMException, match=text) as raised:
        pusher.send(2, by_key(key), *indices)
    assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize("tensors", [6, TENSORS])
def test_the_last_layer_of_the_peers_cache_is_taken(tensors):
    assert Pusher(a_remote(tensors=tensors)).send(2, by_key(BLOCKS), [0], [0])
