"""Memory that cannot be read or written: checklist item 58."""

import time

import numpy as np
import pytest

from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    CacheKeyByIdAndIndex,
    DataType,
    MemInfo,
    Memtype,
)
from llm_datadist.testing import PeerGroup
from support.instances import (
    PAGE,
    Pages,
    Side,
    eventually,
    failing,
    finalize,
    link,
    pattern,
    take_away,
    unmap,
)

LOCAL, REMOTE = "LLM_DEVICE_MEM_ERROR", "LLM_SUSPECT_REMOTE_ERROR"
UNITS = 8
WORDS = PAGE // 8

pytestmark = pytest.mark.expects_log("met a fault in local memory")


@pytest.fixture
def pages(sides):
    """Make caches with one page a slot or block; what was done to the pages is undone."""
    made = []

    def make(side, *, slots=False, **kwargs):
        memory = Pages(2, UNITS)
        memory.data[:] = pattern(memory.shape, side.id)
        register = side.slots if slots else side.blocks
        made.append(memory)
        return register(data=memory.data, **kwargs), memory

    yield make
    for side in sides:
        side.clean()
    for memory in made:
        for tensor in range(2):
            for unit in range(UNITS):
                memory.replace(tensor, unit)
        memory.close()


def break_page(memory, tensor, unit, how):
    if how == "unmapped":
        memory.unmap(tensor, unit)
    else:
        memory.protect(tensor, unit)


def check_fault(error, held, tensor, unit):
    """One record that names the cache, tensor and block."""
    (fault,) = [fault for fault in error.value.faults if fault.tensor_index == tensor]
    assert fault.cluster_id == held.side.id
    assert fault.cache_id == held.id
    assert (fault.block, fault.slot) == (unit, None)
    assert fault.size == PAGE
    assert fault.addr == held.cache.tensor_addrs[tensor] + unit * PAGE
    assert f"{fault.addr:#x}" in str(error.value)


@pytest.mark.parametrize("how", ["unmapped", "protected"])
@pytest.mark.parametrize("operation", ["pull_blocks", "push_blocks"])
@pytest.mark.parametrize("side", [LOCAL, REMOTE])
def test_a_bad_block(sides, pages, side, operation, how):
    """Item 58: status by side, record by block, in a call of one block and in one of many; other
    blocks are unaffected; after repair and remap it works again."""
    owner, user = sides
    remote, remote_pages = pages(owner, key=0)
    local, local_pages = pages(user)
    held, memory = (local, local_pages) if side == LOCAL else (remote, remote_pages)
    call = getattr(user.manager, operation)
    break_page(memory, 1, 5, how)
    for blocks in ([5], [2, 5, 7], list(range(UNITS))):
        with failing(side, operation, f"cache {held.id}, tensor 1, block 5", peer=1) as error:
            call(BlocksCacheKey(1), local.cache, blocks, blocks)
        check_fault(error, held, 1, 5)
    good = [unit for unit in range(UNITS) if unit != 5]
    user.manager.pull_blocks(BlocksCacheKey(1), local.cache, good, good)
    assert (local.data[:, good] == remote.data[:, good]).all()
    user.manager.push_blocks(BlocksCacheKey(1), local.cache, good, good)
    memory.replace(1, 5)
    held.side.manager.remap_registered_memory(
        MemInfo(Memtype.MEM_TYPE_DEVICE, memory.at(1, 5), PAGE)
    )
    call(BlocksCacheKey(1), local.cache, [5], [5])
    assert (local.data[:, 5] == remote.data[:, 5]).all()


def test_a_push_out_of_a_pool_to_a_bad_block(sides, pages):
    """Item 58: where the source is mapped the target's lane threads copy, and catch the fault."""
    owner, user = sides
    remote, memory = pages(owner, key=0)
    desc = CacheDesc(2, [UNITS, WORDS], DataType.DT_UINT64)
    local = user.manager.allocate_blocks_cache(desc)
    memory.unmap(1, 5)
    every = list(range(UNITS))
    with failing(REMOTE, "push_blocks", f"cache {remote.id}, tensor 1, block 5", peer=1):
        user.manager.push_blocks(BlocksCacheKey(1), local, every, every)
    user.manager.push_blocks(BlocksCacheKey(1), local, every[:5], every[:5])
    user.manager.deallocate_blocks_cache(local)


def test_the_owner_remembers_own_faults(sides, pages):
    """Item 58: further transfers that touch the block fail at once, until it is remapped."""
    owner, user = sides
    pages(owner, key=0)
    local, memory = pages(user)
    assert user.manager.faulted_ranges() == ()
    memory.unmap(1, 5)
    pull = user.manager.pull_blocks
    with failing(LOCAL, "pull_blocks", peer=1) as error:
        pull(BlocksCacheKey(1), local.cache, [5, 6], [5, 6])
    assert user.manager.faulted_ranges() == error.value.faults
    memory.replace(1, 5)
    for operation, blocks in (("pull_blocks", [4, 5]), ("push_blocks", [5])):
        with failing(LOCAL, operation, "found at fault before", "remap", peer=1) as error:
            getattr(user.manager, operation)(BlocksCacheKey(1), local.cache, blocks, blocks)
        assert error.value.faults == user.manager.faulted_ranges()
    with failing(LOCAL, "copy_blocks", "found at fault before"):
        user.manager.copy_blocks(local.cache, {5: [1]})
    pull(BlocksCacheKey(1), local.cache, [4, 6], [4, 6])
    # A remap of a part of the range is enough: the pages at fault may be fewer than the block has.
    user.manager.remap_registered_memory(MemInfo(Memtype.MEM_TYPE_DEVICE, memory.at(1, 5) + 64, 64))
    assert user.manager.faulted_ranges() == ()
    pull(BlocksCacheKey(1), local.cache, [5], [5])


def test_marks_go_with_the_cache(sides, pages):
    """Item 58: memory that is registered again is taken as good."""
    owner, user = sides
    pages(owner, key=0)
    local, memory = pages(user)
    memory.unmap(0, 0)
    with failing(LOCAL, "pull_blocks", peer=1):
        user.manager.pull_blocks(BlocksCacheKey(1), local.cache, [0], [0])
    user.manager.unregister_cache(local.id)
    assert user.manager.faulted_ranges() == ()
    memory.replace(0, 0)
    again = user.blocks(data=memory.data)
    user.manager.pull_blocks(BlocksCacheKey(1), again.cache, [0], [0])


def test_the_owner_learns_of_faults_that_peers_meet(sides, pages):
    """Item 58: reads by a peer fail without the owner's knowledge, so the peer notifies it."""
    owner, user = sides
    remote, memory = pages(owner, key=0)
    local, _ = pages(user)
    memory.unmap(0, 3)
    with failing(REMOTE, "pull_blocks", peer=1) as error:
        user.manager.pull_blocks(BlocksCacheKey(1), local.cache, [3], [3])
    eventually(lambda: owner.manager.faulted_ranges() == error.value.faults)
    with failing(LOCAL, "copy_blocks", "found at fault before"):
        owner.manager.copy_blocks(remote.cache, {3: [4]})
    memory.replace(0, 3)
    owner.manager.remap_registered_memory(MemInfo(Memtype.MEM_TYPE_DEVICE, memory.at(0, 3), PAGE))
    assert owner.manager.faulted_ranges() == ()
    user.manager.pull_blocks(BlocksCacheKey(1), local.cache, [3], [3])


def test_copy_blocks(sides, pages):
    """Item 58: a bad source, a bad destination."""
    side = sides[0]
    held, memory = pages(side)
    for tensor, unit, end in ((1, 2, "source"), (0, 7, "destination")):
        memory.unmap(tensor, unit)
        with failing(LOCAL, "copy_blocks", end, f"block {unit}") as error:
            side.manager.copy_blocks(held.cache, {2: [3]} if end == "source" else {1: [7]})
        check_fault(error, held, tensor, unit)
    assert len(side.manager.faulted_ranges()) == 2


@pytest.mark.parametrize("operation", ["pull_blocks", "push_blocks"])
def test_one_bad_page_in_a_large_transfer(sides, operation):
    """Item 58: found in 16 MiB that several threads move."""
    owner, user = sides
    memory = Pages(1, 64, 64)
    remote = owner.blocks(data=memory.data, key=0)
    local = user.blocks(1, tensors=1, units=64, words=64 * WORDS)
    every = list(range(64))
    bad = memory.at(0, 41) + 17 * PAGE
    unmap(bad, PAGE)
    call = getattr(user.manager, operation)
    with failing(REMOTE, operation, "block 41", peer=1) as error:
        call(BlocksCacheKey(1), local.cache, every, every)
    assert [fault.block for fault in error.value.faults] == [41]
    good = [unit for unit in every if unit != 41]
    call(BlocksCacheKey(1), local.cache, good, good)
    assert (local.data[:, good] == remote.data[:, good]).all()
    owner.clean()
    memory.replace(0, 41)
    memory.close()


def own_pages(member, backend):
    """Body: own a cache, break pages of it on request, answer requests."""
    side = Side(1, backend, pool=1 << 20)
    memory = Pages(2, UNITS)
    memory.data[:] = pattern(memory.shape, 1)
    desc = CacheDesc(2, [UNITS, WORDS], DataType.DT_UINT64)
    side.manager.register_blocks_cache(
        desc, [tensor.ctypes.data for tensor in memory.data], BlocksCacheKey(1)
    )
    pooled = side.manager.allocate_cache(CacheDesc(2, [1, 16 * WORDS], DataType.DT_UINT64))
    pooled.tensor(0)[:], pooled.tensor(1)[:] = 5, 6
    member.set_event("address", [list(side.address), pooled.cache_id])
    while (order := member.receive()) is not None:
        if order == "break":
            memory.unmap(1, 5)
            take_away(pooled.tensor_addrs[1], 16 * PAGE)
        elif order == "repair":
            memory.replace(1, 5)
            memory.data[1, 5] = 55
            infos = [MemInfo(Memtype.MEM_TYPE_DEVICE, memory.at(1, 5), PAGE)]
            side.manager.remap_registered_memory(infos)
        member.send(len(side.manager.faulted_ranges()))
    finalize(side)


def test_across_processes(backend):
    """Item 58: neither process crashes; the owner goes on serving, repairs, and is pulled from."""
    with PeerGroup() as group:
        peer = group.start(own_pages, backend)
        user = Side(2, backend)
        try:
            address, pooled_id = group.wait_for("address")
            link(user.instance, address)
            local = user.blocks(tensors=2, units=UNITS, words=WORDS)
            peer.send("break")
            peer.receive()
            every = list(range(UNITS))
            for _ in range(3):
                for operation in ("pull_blocks", "push_blocks"):
                    call = getattr(user.manager, operation)
                    with failing(REMOTE, operation, "tensor 1, block 5", peer=1) as error:
                        call(BlocksCacheKey(1), local.cache, every, every)
                    assert [fault.block for fault in error.value.faults] == [5]
            good = every[:5] + every[6:]
            user.manager.pull_blocks(BlocksCacheKey(1), local.cache, good, good)
            asked = time.monotonic()
            while time.monotonic() - asked < 10:
                peer.send("look")
                if peer.receive() == 1:
                    break
            peer.send("repair")
            assert peer.receive() == 0
            user.manager.pull_blocks(BlocksCacheKey(1), local.cache, [5], [5])
            assert (local.data[1, 5] == 55).all()
            assert pooled_id
            peer.send(None)
        finally:
            finalize(user)


@pytest.mark.leaves_resources("a pool of which a part is unmapped")
def test_pool_memory_that_its_owner_has_unmapped():
    """Item 58: where peers map the pool they read its file on; over TCP it is a fault."""
    owner, user = Side(1, "tcp", pool=1 << 20), Side(2, "tcp")
    try:
        link(user.instance, owner.address)
        cache = owner.manager.allocate_cache(CacheDesc(2, [1, 16 * WORDS], DataType.DT_UINT64))
        target = user.slots(tensors=2, units=1, words=16 * WORDS)
        key = CacheKeyByIdAndIndex(1, cache.cache_id)
        user.manager.pull_cache(key, target.cache)
        take_away(cache.tensor_addrs[1], 16 * PAGE)
        with failing(REMOTE, "pull_cache", "tensor 1", peer=1):
            user.manager.pull_cache(key, target.cache)
        assert np.count_nonzero(target.data) == 0
    finally:
        finalize(owner, user)
