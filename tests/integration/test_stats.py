"""LLMDataDist.stats: each call is counted once, and the rest is what the tables have."""

import dataclasses
import json
import re

import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    LayerSynchronizer,
    LLMDataDist,
    LLMException,
    LLMRole,
    MemInfo,
    Memtype,
    TransferConfig,
)
from llm_datadist.testing import FaultPolicy, FaultRule, inject_faults
from support.instances import finalize, linked_sides, succeeds_or
from support.setup import LOOPBACK, options_of

UNIT = 1024
TENSORS = 4


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index, timeout_in_millis):
        return True


class Counted:
    """What the transfers of a side have added since this was made."""

    def __init__(self, side):
        self.side = side
        self.before = self.now()

    def now(self):
        return {
            (entry.operation, entry.path): (entry.completed, entry.num_bytes, dict(entry.errors))
            for entry in self.side.instance.stats().transfers
        }

    def added(self):
        """Return by operation and path what has changed: transfers, bytes, failures."""
        found = {}
        for key, (completed, num_bytes, errors) in self.now().items():
            old = self.before.get(key, (0, 0, {}))
            failed = {name: count - old[2].get(name, 0) for name, count in errors.items()}
            failed = {name: count for name, count in failed.items() if count}
            if completed != old[0] or failed:
                found[key] = completed - old[0], num_bytes - old[1], failed
        return found


def test_each_call_is_counted_with_its_path_and_bytes(sides, backend):
    own, peer = sides
    blocks, slots = own.blocks(), own.slots()
    peer.blocks(1, key=0)
    remote = peer.slots(2)
    counted = Counted(own)
    own.manager.pull_blocks(peer.blocks_key(), blocks.cache, [1, 2, 3], [0, 4, 2])
    own.manager.pull_blocks(peer.blocks_key(), blocks.cache, [1], [0])
    own.manager.push_blocks(peer.blocks_key(), blocks.cache, [0, 1], [2, 3])
    own.manager.pull_cache(remote.slot(1), slots.cache, 0)
    own.manager.push_cache(remote.slot(1), slots.cache, 0, size=8)
    assert counted.added() == {
        ("pull_blocks", backend): (2, 4 * TENSORS * UNIT, {}),
        ("pull_cache", backend): (1, TENSORS * UNIT, {}),
        ("push_blocks", backend): (1, 2 * TENSORS * UNIT, {}),
        ("push_cache", backend): (1, TENSORS * 8, {}),
    }


def test_a_layer_wise_transfer_is_counted_for_each_layer(sides, backend):
    own, peer = sides
    source, target = own.blocks(1), peer.blocks(accessible=True)
    counted = Counted(own)
    config = TransferConfig(peer.id, [tensor.ctypes.data for tensor in target.data])
    task = own.manager.transfer_cache_async(source.cache, Ready(), [config], [0, 1], [2, 3])
    assert task.synchronize() == 0
    layers, moved = TENSORS // 2, 2 * TENSORS * UNIT
    assert counted.added() == {("transfer_cache_async", backend): (layers, moved, {})}


def test_failures_are_counted_by_status(sides, backend):
    own, peer = sides
    blocks = own.blocks()
    counted = Counted(own)
    pull = own.manager.pull_blocks
    assert not succeeds_or("LLM_KV_CACHE_NOT_EXIST", pull, peer.blocks_key(9), blocks.cache)
    assert not succeeds_or("LLM_NOT_YET_LINK", pull, BlocksCacheKey(77), blocks.cache)
    assert counted.added() == {
        ("pull_blocks", backend): (0, 0, {"LLM_KV_CACHE_NOT_EXIST": 1}),
        ("pull_blocks", "none"): (0, 0, {"LLM_NOT_YET_LINK": 1}),
    }


def test_durations_are_those_of_the_calls(sides):
    own, peer = sides
    peer.blocks(1, key=0)
    own.manager.pull_blocks(peer.blocks_key(), own.blocks().cache, [1], [0])
    for entry in own.instance.stats().transfers:
        histogram = entry.seconds
        assert histogram.count == entry.completed
        assert 0 <= histogram.sum < 60 * max(1, entry.completed)


def test_what_is_not_a_transfer_is_what_the_tables_have(sides):
    own, peer = sides
    before = own.instance.stats()
    held = own.blocks(key=0)
    own.slots()
    desc = CacheDesc(2, [4, UNIT], DataType.DT_INT8)
    pooled = own.manager.allocate_cache(desc)
    peer.blocks(key=0)
    lease, lent = own.manager.lease(peer.blocks_key()), peer.manager.lease(own.blocks_key(), [1, 5])
    with lease, lent:
        stats = own.instance.stats()
        assert dataclasses.astuple(stats.leases) == (1, 1, 2)
        assert dataclasses.astuple(peer.instance.stats().leases) == (1, 1, 8)
    assert stats.cluster_id == own.id
    assert (stats.links.linked, stats.links.connecting, stats.links.lost) == (1, 0, 0)
    assert stats.caches.registered == before.caches.registered + 2
    assert stats.caches.allocated == before.caches.allocated + 1
    assert stats.caches.allocated_bytes == before.caches.allocated_bytes + 2 * 4 * UNIT
    by_name = {pool.name: pool for pool in stats.pools}
    assert sorted(by_name) == ["device", "host"]
    assert by_name["device"].num_allocations == 2
    assert by_name["device"].used_bytes + by_name["device"].free_bytes == 16 << 20
    own.manager.deallocate_cache(pooled)
    own.manager.remap_registered_memory(
        MemInfo(Memtype.MEM_TYPE_DEVICE, held.data.ctypes.data, held.data.nbytes)
    )
    after = own.instance.stats()
    assert after.faults.remaps == before.faults.remaps + 1
    assert (after.faults.marked, after.faults.marked_bytes) == (0, 0)
    assert json.loads(json.dumps(dataclasses.asdict(after)))["cluster_id"] == own.id


@pytest.mark.expects_log("slow transfer: pull_blocks")
def test_a_transfer_that_takes_longer_than_the_option_says_is_logged(caplog):
    own, peer = sides = linked_sides("host", slow_transfer_ms=20)
    peer.blocks(1, key=0)
    blocks = own.blocks()
    with inject_faults(own.instance, FaultPolicy([FaultRule("delay", nth=2, delay_ms=25)])):
        for _ in range(3):
            own.manager.pull_blocks(peer.blocks_key(), blocks.cache, [1], [0])
    pattern = rf"pull_blocks, peer cluster 2 at {LOOPBACK}:\d+, {TENSORS * UNIT} bytes over host, "
    assert any(re.search(pattern, record.getMessage()) for record in caplog.records)
    finalize(*sides)


def test_counts_start_at_0_in_init():
    instance = LLMDataDist(LLMRole.MIX, 5)
    with pytest.raises(RuntimeError, match=r"stats: .* not initialized"):
        instance.stats()
    options = options_of(listen=None)
    for _ in range(2):
        instance.init(options)
        desc = CacheDesc(1, [1, 64], DataType.DT_INT8)
        cache = instance.cache_manager.register_cache(desc, [1 << 20])
        assert instance.stats().transfers == ()
        with pytest.raises(LLMException):
            instance.cache_manager.pull_cache(CacheKeyByIdAndIndex(9, 1), cache)
        (entry,) = instance.stats().transfers
        assert entry.errors == {"LLM_NOT_YET_LINK": 1}
        instance.finalize()


def test_a_first_generation_instance_has_one_pool():
    instance = LLMDataDist(LLMRole.DECODER, 6)
    instance.init({"ge.flowGraphMemMaxSize": str(1 << 20)})
    assert [pool.name for pool in instance.stats().pools] == ["shared"]
    instance.finalize()
