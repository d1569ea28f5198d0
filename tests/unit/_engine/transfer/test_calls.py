"""The transfer calls: their plans, and what they refuse, against one cache of a peer."""

from types import SimpleNamespace

import pytest

from llm_datadist import BlocksCacheKey, CacheDesc, CacheKeyByIdAndIndex, DataType, LLMException
from llm_datadist._engine.transfer.calls import Transfers
from llm_datadist._errors import LLMStatusCode
from llm_datadist._registry import CacheRegistry, Resolved
from llm_datadist._registry.layouts import cache_layout
from llm_datadist._types.refs import NO_REF
from llm_datadist.testing.in_memory_node import InMemoryNode

PEER, TENSORS, UNITS, UNIT = 2, 4, 8, 64
BLOCKS, SLOT = BlocksCacheKey(PEER), CacheKeyByIdAndIndex(PEER, 1, 3)
ALL = (None, None, 2)


def starts(first):
    return [first + 0x10000 * tensor for tensor in range(TENSORS)]


def a_remote(*, is_blocks=True, units=UNITS, unit=UNIT, tensors=TENSORS, batch_dim=0):
    desc = CacheDesc(tensors, [units, unit], DataType.DT_INT8, batch_dim_index=batch_dim)
    layout = cache_layout(desc, starts(0x900000)[:tensors], is_blocks=is_blocks)
    return SimpleNamespace(cache_id=7, ref=(5, 51), desc=desc, layout=layout, is_blocks=is_blocks)


class Caller:
    """An instance with a blocks cache and a contiguous cache; its transfers are only planned."""

    def __init__(self, remote, slot=0):
        self.registry = CacheRegistry(InMemoryNode())
        desc = CacheDesc(TENSORS, [UNITS, UNIT], DataType.DT_INT8)
        self.blocks = self.registry.register_blocks_cache(desc, starts(0x100000))
        self.slots = self.registry.register_cache(desc, starts(0x200000))
        self.found = Resolved(remote, slot, NO_REF)
        self.transfers = Transfers(self, self)

    def run(self, request, plan=None):
        self.request = request
        self.plan = plan or request.plan(self.found)

    def planned(self, call, *arguments):
        """Make a call; return the pieces that it would move, as (local, remote, bytes)."""
        getattr(self.transfers, call)("x", *arguments)
        return list(zip(*self.plan.rows.tolist(), strict=True))


def refused(caller, text, call, *arguments, error=LLMException):
    with pytest.raises(error, match=text) as raised:
        caller.planned(call, *arguments)
    if error is LLMException:
        assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def test_blocks_go_where_the_lists_say():
    caller = Caller(a_remote(units=UNITS + 1))
    layers = (range(1), range(1), 1)
    pulled = caller.planned("pull_blocks", BLOCKS, caller.blocks, [UNITS, 1], [0, 7], layers)
    assert pulled == [(0x100000 + 7 * UNIT, 0x900000 + UNIT, UNIT), (0x100000, 0x900200, UNIT)]
    assert not caller.request.write
    assert caller.request.pulled_layers == layers
    pushed = caller.planned("push_blocks", BLOCKS, caller.blocks, [0], [UNITS], layers)
    assert pushed == [(0x100000, 0x900000 + UNITS * UNIT, UNIT)]
    assert caller.request.write
    assert caller.request.pulled_layers is None


def test_layers_of_a_pull_may_differ():
    caller = Caller(a_remote())
    layers = (range(1, 2), range(1), 2)
    pulled = caller.planned("pull_blocks", BLOCKS, caller.blocks, [0], [0], layers)
    assert [(local, remote) for local, remote, _ in pulled] == [
        (0x100000, 0x920000),
        (0x110000, 0x930000),
    ]


def test_slots_go_where_the_key_and_the_index_say():
    caller = Caller(a_remote(is_blocks=False, unit=2 * UNIT), slot=3)
    layers = (range(1), range(1), 1)
    pulled = caller.planned("pull_slot", SLOT, caller.slots, 2, -1, layers)
    assert pulled == [(0x200000 + 2 * UNIT, 0x900000 + 3 * 2 * UNIT, UNIT)]
    pushed = caller.planned("push_slot", SLOT, caller.slots, 2, 5, layers)
    assert pushed == [(0x200000 + 2 * UNIT, 0x900000 + 3 * 2 * UNIT, 5)]
    assert caller.request.write


def test_a_slot_is_cut_into_the_blocks_of_the_destination():
    caller = Caller(a_remote(is_blocks=False, unit=3 * UNIT), slot=3)
    layers = (range(1), range(1), 1)
    pulled = caller.planned("pull_blocks", SLOT, caller.blocks, [], [5, 1], layers)
    begin = 0x900000 + 3 * 3 * UNIT
    assert pulled == [(0x100000 + 5 * UNIT, begin, UNIT), (0x100000 + UNIT, begin + UNIT, UNIT)]


@pytest.mark.parametrize("call", ["pull_blocks", "push_blocks"])
@pytest.mark.parametrize(
    ("lists", "text"),
    [
        (([UNITS], [0]), "has index 8, the peer's cache has 8 blocks"),
        (([0, 1], [2, 2]), r"dst_blocks\[1\] is 2 again"),
        (([], [2]), "src_blocks has 0"),
        (([0, 1], [2]), "src_blocks has 2 entries, dst_blocks 1"),
    ],
)
def test_block_lists_that_cannot_be(call, lists, text):
    caller = Caller(a_remote())
    if call == "push_blocks" and lists[0] == [UNITS]:
        lists = lists[::-1]
    refused(caller, text, call, BLOCKS, caller.blocks, *lists, ALL)
    other = [UNITS], [0]
    if call == "push_blocks":
        refused(caller, "the cache has 8", call, BLOCKS, caller.blocks, *other, ALL)
    else:
        refused(caller, "the cache has 8", call, BLOCKS, caller.blocks, *other[::-1], ALL)
    refused(caller, "negative", call, BLOCKS, caller.blocks, [-1], [0], ALL, error=ValueError)
    refused(caller, "negative", call, BLOCKS, caller.blocks, [0], [-1], ALL, error=ValueError)


@pytest.mark.parametrize("unit", [UNIT - 1, UNIT + 1])
def test_blocks_of_unequal_bytes(unit):
    caller = Caller(a_remote(unit=unit))
    for call in ("pull_blocks", "push_blocks"):
        refused(
            caller, f"64 bytes locally and {unit} at", call, BLOCKS, caller.blocks, [0], [0], ALL
        )


def test_caches_of_unequal_tensors():
    caller = Caller(a_remote(tensors=2))
    for call in ("pull_blocks", "push_blocks"):
        refused(caller, "tensors", call, BLOCKS, caller.blocks, [0], [0], ALL)


def test_a_push_sends_layers_to_the_same_layers():
    caller = Caller(a_remote())
    layers = (range(1), range(1, 2), 2)
    text = "push sends layers to the same"
    refused(caller, text, "push_blocks", BLOCKS, caller.blocks, [0], [0], layers)
    refused(caller, text, "push_slot", SLOT, caller.slots, 0, -1, layers)


def test_caches_of_the_other_kind():
    caller = Caller(a_remote())
    for call in ("pull_blocks", "push_blocks"):
        refused(caller, "contiguous cache", call, BLOCKS, caller.slots, [0], [0], ALL)
    for call in ("pull_slot", "push_slot"):
        refused(caller, "blocks cache", call, SLOT, caller.blocks, 0, -1, ALL)


def test_source_blocks_with_the_key_of_a_slot():
    caller = Caller(a_remote(is_blocks=False))
    refused(caller, "leave src_blocks", "pull_blocks", SLOT, caller.blocks, [0], [0], ALL)


def test_more_blocks_than_the_slot_has_pieces():
    caller = Caller(a_remote(is_blocks=False, unit=3 * UNIT - 1))
    assert len(caller.planned("pull_blocks", SLOT, caller.blocks, [], [0, 2], ALL)) == 2 * TENSORS
    refused(caller, "holds 2 pieces", "pull_blocks", SLOT, caller.blocks, [], [0, 2, 4], ALL)


@pytest.mark.parametrize("call", ["pull_slot", "push_slot"])
@pytest.mark.parametrize("size", [0, -2])
def test_sizes_that_are_none(call, size):
    caller = Caller(a_remote(is_blocks=False))
    refused(caller, f"size is {size}", call, SLOT, caller.slots, 0, size, ALL)


@pytest.mark.parametrize("call", ["pull_slot", "push_slot"])
def test_sizes_that_either_slot_cannot_hold(call):
    caller = Caller(a_remote(is_blocks=False, unit=UNIT - 1))
    for size in (UNIT, -1):
        refused(caller, "the peer's slot has 63", call, SLOT, caller.slots, 0, size, ALL)
    caller = Caller(a_remote(is_blocks=False, unit=UNIT + 1))
    refused(caller, "the local slot has 64", call, SLOT, caller.slots, 0, UNIT + 1, ALL)


@pytest.mark.parametrize("call", ["pull_slot", "push_slot"])
def test_slots_that_there_are_not(call):
    remote = a_remote(is_blocks=False)
    caller = Caller(remote, slot=UNITS)
    refused(caller, "slot 8, the peer's cache has 8", call, SLOT, caller.slots, 0, -1, ALL)
    caller = Caller(remote)
    name = {"pull_slot": "batch_index", "push_slot": "src_batch_index"}[call]
    text = f"{name} is 8, cache . has 8 slots"
    refused(caller, text, call, SLOT, caller.slots, UNITS, -1, ALL)


def test_slots_that_are_not_contiguous():
    caller = Caller(a_remote(is_blocks=False, batch_dim=1))
    refused(caller, "not the outermost", "pull_slot", SLOT, caller.slots, 0, -1, ALL)


def test_a_push_to_bare_addresses_has_the_callers_plan():
    caller, plan = Caller(a_remote()), object()
    caller.transfers.push_raw("x", PEER, caller.registry.find("x", caller.blocks), plan, None)
    assert caller.plan is plan
    assert (caller.request.key.cluster_id, caller.request.write) == (PEER, True)
